"""What a loaded pipeline takes of a card, planned, and what would fit where that is too much.

The bytes of weights are exact in every mode (`vqdq.layers.residency`); what activations take is
counted without weights (`footprint`) and an estimate. A picture goes through three phases: the
prompt is read, the denoiser draws, the autoencoder decodes; the largest one must fit.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers import card_memory, residency
from vqdq.layers.card_memory import CardState
from vqdq.layers.residency import Held, ModeSetting
from vqdq.models.denoisers import denoiser
from vqdq.models.footprint import config_of, decoding_bytes, drawing_bytes
from vqdq.quantities import size

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LEAST_CACHE = 0.15  # of all decoded weights: less is not worth a mode
_USUAL_SIZE = 1024  # pixels of a model that says no size
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a pipeline is run.

    Attributes:
        setting: of its denoiser; resolution: side of a square picture in pixels.
        alone: each component is on the card only while it works (`enable_model_cpu_offload`).
        dtype: of the computation.
    """

    setting: ModeSetting
    resolution: int
    alone: bool
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class CardUse:
    """What a picture takes of a card in the phase that takes the most.

    Attributes:
        phase: "reading", "drawing" or "decoding".
        weight_bytes: of all that is stored or decoded on the card then; exact.
        working_bytes: of activations; ESTIMATED.
    """

    phase: str
    weight_bytes: int
    working_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.weight_bytes + self.working_bytes


class CardWatch:
    """What one picture takes of the card that its pipeline is on.

    Other models may lie on the same card: what was there before beside this one is not counted.
    """

    def __init__(self, pipeline: DiffusionPipeline, card: torch.device) -> None:
        self._pipeline, self._card = pipeline, card
        own = sum(_present(part, card) for part in _parts(pipeline).values())
        self._others = max(0, card_memory.card_state(card).allocated_bytes - own)
        card_memory.reset_card_peak(card)

    @classmethod
    def of(cls, pipeline: DiffusionPipeline) -> CardWatch | None:
        """Returns a watch that begins now; None for a pipeline that is on no card."""
        card = card_memory.card_of(denoiser(pipeline)[1])
        if card is None and getattr(pipeline, "_all_hooks", None):
            asked = getattr(pipeline, "_offload_device", None)
            card = asked if isinstance(asked, torch.device) and asked.type == "cuda" else None
        return None if card is None else cls(pipeline, card)

    @property
    def measured_bytes(self) -> int:
        """The most that tensors took since the watch began."""
        return max(0, card_memory.card_peak(self._card) - self._others)

    def planned_bytes(self, resolution: int) -> int:
        """Returns what was to be expected of a square picture of `resolution` pixels."""
        way = replace(way_of(self._pipeline), resolution=resolution)
        return card_use(self._pipeline, way).total_bytes

    def advice(self, error: BaseException) -> str:
        """Returns the smallest change that would fit, of a card that was full just now."""
        state = card_memory.card_state(self._card)
        mine = CardState(
            allocated_bytes=max(0, state.allocated_bytes - self._others),
            available_bytes=max(0, state.available_bytes - self._others),
        )
        return smallest_change(self._pipeline, mine, card_memory.asked_bytes(error))


def way_of(pipeline: DiffusionPipeline) -> Way:
    """Returns how a pipeline is run now, at the size that it draws unless it is told another."""
    module = denoiser(pipeline)[1]
    side = config_of(module).get("sample_size")
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    first = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return Way(
        setting=residency.setting_of(module),
        resolution=side * scale if isinstance(side, int) else _USUAL_SIZE,
        alone=bool(getattr(pipeline, "_all_hooks", None)),
        dtype=first,
    )


def card_use(pipeline: DiffusionPipeline, way: Way) -> CardUse:
    """Returns what a picture takes of a card when a pipeline is run in a way.

    One picture at a time, with guidance. Packed components beside the denoiser keep their decoded
    weights in "resident" and "integer" and stream in the other modes, as `modes.set_mode_` does.
    """
    name, module = denoiser(pipeline)
    parts = _parts(pipeline)
    rest = ModeSetting(mode="resident")
    if way.setting.mode in residency.OFFLOADING:
        rest = ModeSetting(mode="streaming", offload=way.setting.offload)
    resting, running = dict[str, int](), dict[str, int]()
    for key, part in parts.items():
        stored, held = _weights(part, way.setting if key == name else rest, way.dtype)
        resting[key] = stored + held.held_bytes + held.buffer_bytes
        running[key] = stored + held.held_bytes + held.transient_bytes
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    drawing = _wide(
        drawing_bytes(config_of(module), way.resolution // scale, way.resolution), way.dtype
    )
    phases = [("drawing", name, drawing)]
    if (vae := parts.get("vae")) is not None:
        config = config_of(vae)
        upcast = bool(config.get("force_upcast"))
        decoded = decoding_bytes(config, way.resolution)
        phases.append(("decoding", "vae", decoded if upcast else _wide(decoded, way.dtype)))
    phases += [("reading", key, 0) for key in parts if key not in (name, "vae")]
    found: list[CardUse] = []
    for phase, key, working in phases:
        others = 0 if way.alone else sum(held for other, held in resting.items() if other != key)
        weights = running[key] + others
        found.append(CardUse(phase=phase, weight_bytes=weights, working_bytes=working))
    return max(found, key=lambda use: use.total_bytes)


def smallest_change(pipeline: DiffusionPipeline, card: CardState, asked_bytes: int) -> str:
    """Returns what to do where a picture did not fit a card: the smallest change that would.

    What the card was asked for beyond the plan is added to the plan of every change, too. Changes
    that leave the picture as it is come first.

    Args:
        card: when it was full; asked_bytes: of the allocation that failed.
    """
    now = way_of(pipeline)
    try:
        planned, failed = card_use(pipeline, now).total_bytes, card.allocated_bytes + asked_bytes
        needed = max(planned, failed)
        # what failed did not fit, however much seemed to be free
        room = min(card.available_bytes, failed - 1) - (needed - planned)
        for way, words in _changes(pipeline, now, room):
            total = card_use(pipeline, way).total_bytes
            if total <= room:
                least = f"{size(total + needed - planned)} of {size(card.available_bytes)}"
                return f"{words[0].upper()}{words[1:]}: that is planned to take {least}."
    except UserError:  # a pipeline that cannot be counted
        return "Draw fewer pixels, or choose a mode that keeps fewer decoded weights."
    least = f"a card with {size(needed)} free"
    if residency.packed_layers(denoiser(pipeline)[1]):
        return f"Nothing smaller fits: choose a recipe with fewer bits, or {least}."
    return f"Compress the model (vqdq fit names the recipes that fit a card), or use {least}."


def _changes(
    pipeline: DiffusionPipeline, now: Way, room: int
) -> Generator[tuple[Way, str], None, None]:
    """Yields ways to run a pipeline that take less, the smallest change first."""
    setting, smaller, steps = now.setting, now, list[str]()
    if residency.packed_layers(denoiser(pipeline)[1]):
        streaming = replace(now, setting=ModeSetting(mode="streaming", offload=setting.offload))
        if setting.mode != "streaming":
            cache = _cache(pipeline, streaming, room)
            if cache:
                hybrid = ModeSetting(mode="hybrid", cache_bytes=cache, offload=setting.offload)
                words = f"use the mode hybrid with a cache of {size(cache)}"
                yield replace(now, setting=hybrid), words
            yield streaming, "use the mode streaming, which keeps no decoded weights"
        smaller = replace(now, setting=ModeSetting(mode="streaming", offload=True))
        if now != smaller:
            steps.append("use the mode streaming with offload: packed weights wait in main memory")
            yield smaller, steps[0]
    if not now.alone:
        smaller = replace(smaller, alone=True)
        steps.append("call enable_model_cpu_offload() of the pipeline")
        yield smaller, "; ".join(steps)
    if now.dtype not in _HALVES:
        smaller = replace(smaller, dtype=torch.bfloat16)
        steps.append("compute in 16 bits, pipeline.to(torch.bfloat16)")
        yield smaller, "; ".join(steps)
    for way, before in ((now, list[str]()), (smaller, steps)):
        side = _side(pipeline, way, room)
        if side:
            yield (
                replace(way, resolution=side),
                "; ".join([*before, f"draw {side} x {side} pixels"]),
            )


def _side(pipeline: DiffusionPipeline, way: Way, room: int) -> int:
    """Returns the most pixels a side, less than now, that fit; 0 for none."""
    step = 8 * int(getattr(pipeline, "vae_scale_factor", 8))
    low, high = 0, (way.resolution - 1) // step  # low steps fit, more than high do not
    while low < high:
        middle = (low + high + 1) // 2
        fits = card_use(pipeline, replace(way, resolution=middle * step)).total_bytes <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * step


def _cache(pipeline: DiffusionPipeline, streaming: Way, room: int) -> int:
    """Returns the bytes of decoded weights that fit beside all else; 0 where it is not worth it."""
    layers = residency.packed_layers(denoiser(pipeline)[1])
    whole = sum(residency.decoded_layer(name, layer).num_bytes for name, layer in layers.items())
    left = room - card_use(pipeline, streaming).total_bytes
    unit = 10**7 if left >= 10**9 else 10**5  # as it is told
    return left // unit * unit if left >= _LEAST_CACHE * whole else 0


def _parts(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    parts = cast(dict[str, object], cast(Any, pipeline).components)
    return {key: part for key, part in parts.items() if isinstance(part, nn.Module)}


def _present(part: nn.Module, card: torch.device) -> int:
    """Returns the bytes of a component on the card now, what is kept decoded included."""
    there = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in (*part.parameters(), *part.buffers())
        if tensor.device == card
    }
    source = residency.source_of(part)
    buffers = 0 if source is None else source.held_bytes
    return sum(there.values()) + residency.held_bytes(part) + buffers


def _weights(part: nn.Module, setting: ModeSetting, dtype: torch.dtype) -> tuple[int, Held]:
    """Returns the bytes that a component stores on the card, and what its packed layers take."""
    packed = residency.packed_layers(part)
    uncast = {
        layer.get_buffer(key).data_ptr() for layer in packed.values() for key in layer.packed_names
    }
    layers = {
        name: residency.decoded_layer(name, layer, _narrower(layer.shown_dtype, dtype))
        for name, layer in packed.items()
    }
    held = residency.held_in(setting, layers, card=True)
    stored = {
        tensor.data_ptr(): tensor.nbytes
        if tensor.data_ptr() in uncast or not tensor.is_floating_point()
        else tensor.numel() * _narrower(tensor.dtype, dtype).itemsize
        for tensor in (*part.parameters(), *part.buffers())
    }
    return sum(stored.values()) - sum(held.waiting.values()), held


def _narrower(own: torch.dtype, asked: torch.dtype) -> torch.dtype:
    return asked if asked.itemsize < own.itemsize else own


def _wide(half: int, dtype: torch.dtype) -> int:
    """Returns the bytes in another dtype of what takes `half` in 16 bits."""
    return half * dtype.itemsize // 2
