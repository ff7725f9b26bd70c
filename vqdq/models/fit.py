"""Which recipe fits a graphics card: predicted from configs and headers, best quality first.

The bytes of weights are exact (the plan's, in each execution mode); what the activations take is
counted without weights (`footprint`) and an estimate. A picture goes through two phases: the
denoiser draws, then the autoencoder decodes; the larger one must fit.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqdq.errors import UserError
from vqdq.models.footprint import check_resolution, decoding_bytes, drawing_bytes, vae_scale
from vqdq.models.inventory import Inventory, Part
from vqdq.models.modes import ModeEstimate, mode_estimates
from vqdq.models.sources import presets_folder
from vqdq.recipe import Plan, Recipe, load_recipe, resolve

TIERS = (
    ("", "16 bits, as it is"),
    ("rtn-8bit", "Pictures stay the same"),
    ("trellis-4bit", "Hard to tell from 16 bits"),
    ("trellis-3bit", "Close to 16 bits"),
    ("trellis-2bit", "Changes can be seen"),
)
"""Recipes by falling quality, and what to expect of each; "" compresses nothing."""

CARDS = (
    ("6 GB · GTX 1660, RTX 2060", 6),
    ("8 GB · RTX 3060 Ti, RTX 4060", 8),
    ("10 GB · RTX 3080", 10),
    ("11 GB · GTX 1080 Ti, RTX 2080 Ti", 11),
    ("12 GB · RTX 3060, RTX 4070", 12),
    ("16 GB · RTX 4080, RTX 5080", 16),
    ("24 GB · RTX 3090, RTX 4090", 24),
    ("32 GB · RTX 5090", 32),
    ("48 GB · RTX A6000, L40S", 48),
    ("80 GB · A100, H100", 80),
)
"""Common cards and their memory in GB of 10^9 bytes: what they have beyond it the driver takes."""

_CARD = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|MB)?\b", re.IGNORECASE)
_MOST = 1e6
_LEAST_CACHE = 0.15  # of all decoded weights: less is not worth a mode
_FILLED = 0.9  # of the card: a cache leaves the allocator some room
_TRANSFER = 10e9  # bytes a second from main memory to a card; assumed, not measured
_SMALL = 1e9  # bytes in all, below which amounts are told in MB
_STEPS = 30  # of a picture, for what a mode costs
_VAE = "vae"


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Something that takes memory."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOption:
    """A way to draw with a model on a card; its memory is ESTIMATED.

    Attributes:
        recipe: a preset, or "" for the model as it is; `quality`: what to expect, in words.
        mode: how packed weights are kept; "" without any. `cache_bytes`: of "hybrid", else None.
        one_at_a_time: each component is on the card only while it works
            (`enable_model_cpu_offload`).
        bits: true bits per weight of each component.
        amounts: what takes the memory where it is at its highest; `phase`: "drawing" or "decoding".
        card_bytes, resolution: what was asked.
        seconds: ESTIMATED, what the mode and moving components add to a picture.
        reasons: why it is this way, in sentences.
    """

    recipe: str
    quality: str
    mode: str
    cache_bytes: int | None
    one_at_a_time: bool
    bits: dict[str, float]
    amounts: tuple[Amount, ...]
    phase: str
    card_bytes: int
    resolution: int
    seconds: float
    reasons: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """All amounts together."""
        return sum(amount.bytes for amount in self.amounts)

    @property
    def fits(self) -> bool:
        """True when the card holds it."""
        return self.total_bytes <= self.card_bytes

    @property
    def title(self) -> str:
        """What it is, in a few words: "trellis-3bit, decoded as it runs"."""
        how = {"resident": "kept decoded", "hybrid": "partly kept decoded", "": ""}
        words = [self.recipe or "16 bits", how.get(self.mode, "decoded as it runs")]
        if self.one_at_a_time:
            words.append("one component at a time")
        return ", ".join(filter(None, words))

    @property
    def sum(self) -> str:
        """The amounts as a sum: "1.0 GB weights + … = 4.7 of 8 GB, estimated"."""
        unit, name = (1e9, "GB") if self.total_bytes >= _SMALL else (1e6, "MB")
        parts = " + ".join(f"{item.bytes / unit:.1f} {name} {item.name}" for item in self.amounts)
        whole = f"{self.total_bytes / unit:.1f}"
        if self.card_bytes >= _SMALL > self.total_bytes:
            return f"{parts} = {whole} MB of {self.card_bytes / 1e9:g} GB, estimated"
        return f"{parts} = {whole} of {self.card_bytes / unit:g} {name}, estimated"

    def to_json(self) -> dict[str, Any]:
        """Returns the option as JSON values."""
        return {
            "recipe": self.recipe,
            "quality": self.quality,
            "mode": self.mode,
            "cache_bytes": self.cache_bytes,
            "one_at_a_time": self.one_at_a_time,
            "bits_per_weight": dict(self.bits),
            "phase": self.phase,
            "amounts": {item.name: item.bytes for item in self.amounts},
            "estimated_bytes": self.total_bytes,
            "card_bytes": self.card_bytes,
            "resolution": self.resolution,
            "estimated_seconds": self.seconds,
            "fits": self.fits,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """How the denoiser's weights are kept: what they take while it draws, and afterwards."""

    mode: str
    cache_bytes: int | None
    drawing: int
    resting: int
    seconds: float


def present_card() -> tuple[str, int] | None:
    """Returns the name and the memory in bytes of this computer's card, or None without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0), int(torch.cuda.get_device_properties(0).total_memory)


def card_bytes(text: str) -> int:
    """Returns the bytes of "8 GB", "600MB" or "8 GB · RTX 4060"; of the card that is here for "".

    Raises:
        UserError: no size, or there is no card here.
    """
    words = text.strip()
    if not words:
        present = present_card()
        if present is None:
            raise UserError(
                "there is no graphics card here.", where="card", remedy="Name its memory: 8GB."
            )
        return present[1]
    match = _CARD.match(words)
    if match is None or not 0 < float(match[1]) < _MOST:
        raise UserError(
            f"{words[:40]!r} is no memory of a card.", where="card", remedy="Write 8GB, or 600MB."
        )
    return round(float(match[1]) * (1e6 if (match[2] or "").upper() == "MB" else 1e9))


def fit(inventory: Inventory, card: int, resolution: int) -> tuple[FitOption, ...]:
    """Returns the ways that are predicted to fit, by falling quality, one for each recipe.

    Of each recipe the way that costs least time is taken. When nothing fits, the one that takes
    the least is returned, and its `fits` is False.

    Args:
        card: bytes of its memory that programs may use.
        resolution: side of a square picture in pixels.

    Raises:
        UserError: a resolution that gives no whole latents, or a model that is compressed already.
    """
    counted = _Counted(inventory, resolution)
    return tuple(_fitting(counted, card)) or (_least(counted, card),)


def fit_each(inventory: Inventory, cards: Sequence[int], resolution: int) -> tuple[FitOption, ...]:
    """Returns for each card the first that `fit` returns; what cards share is counted once."""
    counted = _Counted(inventory, resolution)
    return tuple(next(_fitting(counted, card), None) or _least(counted, card) for card in cards)


def _fitting(counted: _Counted, card: int) -> Generator[FitOption, None, None]:
    for options in counted.tiers(card):
        found = next((option for option in options if option.fits), None)
        if found is not None:
            yield _with_reasons(found, options)


def _least(counted: _Counted, card: int) -> FitOption:
    every = (option for options in counted.tiers(card) for option in options)
    return min(every, key=lambda option: option.total_bytes)


class _Counted:
    """What is the same for every card: the working memory, and a plan of each recipe, made when
    one is asked for.
    """

    def __init__(self, inventory: Inventory, resolution: int) -> None:
        denoiser = inventory.parts[0]
        if denoiser.quantized:
            raise UserError(
                "is compressed already.",
                where=inventory.reference,
                remedy="Choose the model it was made from.",
            )
        scale = _scale(inventory)
        check_resolution(resolution, scale)
        vae = inventory.part(_VAE)
        decoding = 0 if vae is None else decoding_bytes(_named(vae), resolution)
        self.inventory, self.resolution = inventory, resolution
        self.working = (drawing_bytes(_named(denoiser), resolution // scale, resolution), decoding)
        self._plans: dict[str, Plan | UserError | None] = {"": None}

    def tiers(self, card: int) -> Generator[list[FitOption], None, None]:
        """Yields the options of each recipe by falling quality, those of a recipe the fastest
        first; a recipe for which a layer of this model is too small is left out.
        """
        others = self.inventory.parts[1:]
        for name, quality in TIERS:
            plan = self._plan(name)
            if isinstance(plan, UserError):
                continue
            asked = (self.working, card, self.resolution)
            yield [
                _option(self.inventory, plan, quality, way, others, *asked, alone=alone)
                for alone in (False, True)
                for way in _ways(self.inventory, plan, others, self.working, card, alone=alone)
            ]

    def _plan(self, name: str) -> Plan | UserError | None:
        if name not in self._plans:
            recipe: Recipe = load_recipe(name, presets_folder())
            try:
                self._plans[name] = resolve(recipe, self.inventory.component)
            except UserError as error:
                self._plans[name] = error
        return self._plans[name]


def _ways(
    inventory: Inventory,
    plan: Plan | None,
    others: Sequence[Part],
    working: tuple[int, int],
    card: int,
    *,
    alone: bool,
) -> Generator[_Way, None, None]:
    """Yields the ways to keep the denoiser's weights, the fastest first."""
    if plan is None:
        whole = inventory.parts[0].half_bytes
        yield _Way(mode="", cache_bytes=None, drawing=whole, resting=whole, seconds=0.0)
        return
    modes = {each.mode: each for each in mode_estimates(plan, dtype=torch.float16, device="cuda")}
    resident, streaming = modes["resident"], modes["streaming"]
    yield _way(resident)
    beside = 0 if alone else sum(part.half_bytes for part in others)
    streamed = _way(streaming)
    taken = max(streamed.drawing + working[0], 0 if alone else streamed.resting + working[1])
    room = round(_FILLED * card) - beside - taken
    if _LEAST_CACHE * resident.held_bytes < room < resident.held_bytes:
        estimates = mode_estimates(plan, dtype=torch.float16, device="cuda", cache_bytes=room)
        yield _way(next(each for each in estimates if each.mode == "hybrid"))
    yield streamed


def _way(estimate: ModeEstimate) -> _Way:
    resting = estimate.stored_bytes + estimate.held_bytes
    return _Way(
        mode=estimate.mode,
        cache_bytes=estimate.cache_bytes,
        drawing=estimate.weight_bytes,
        resting=resting,
        seconds=_STEPS * estimate.decode_seconds,
    )


def _option(
    inventory: Inventory,
    plan: Plan | None,
    quality: str,
    way: _Way,
    others: Sequence[Part],
    working: tuple[int, int],
    card: int,
    resolution: int,
    *,
    alone: bool,
) -> FitOption:
    encoders = sum(part.half_bytes for part in others if part.name != _VAE)
    vae = sum(part.half_bytes for part in others if part.name == _VAE)
    if alone:
        largest = max((part.half_bytes for part in others if part.name != _VAE), default=0)
        phases = {
            "drawing": [("weights", way.drawing), ("working memory", working[0])],
            "decoding": [("autoencoder", vae), ("working memory", working[1])],
            "reading the prompt": [("text encoder", largest)],
        }
    else:
        rest = [("text encoders", encoders), ("autoencoder", vae)]
        phases = {
            "drawing": [("weights", way.drawing), *rest, ("working memory", working[0])],
            "decoding": [("weights", way.resting), *rest, ("working memory", working[1])],
        }
    phase, amounts = max(phases.items(), key=lambda item: sum(size for _, size in item[1]))
    moved = encoders + vae + way.resting if alone else 0
    bits = {part.name: 16.0 for part in inventory.parts}
    if plan is not None:
        bits[inventory.denoiser] = plan.model_bits_per_weight
    return FitOption(
        recipe="" if plan is None else plan.recipe.name,
        quality=quality,
        mode=way.mode,
        cache_bytes=way.cache_bytes,
        one_at_a_time=alone,
        bits=bits,
        amounts=tuple(Amount(name=name, bytes=size) for name, size in amounts if size),
        phase=phase,
        card_bytes=card,
        resolution=resolution,
        seconds=way.seconds + moved / _TRANSFER,
        reasons=(),
    )


def _with_reasons(option: FitOption, considered: Sequence[FitOption]) -> FitOption:
    """The option with why nothing faster was taken, and what its way costs."""
    reasons = [f"{option.quality}."]
    faster = considered[: considered.index(option)]
    kept = next((each for each in faster if each.one_at_a_time == option.one_at_a_time), None)
    if option.mode in ("streaming", "hybrid") and kept is not None:
        reasons.append(f"Kept decoded it would take {_size(kept.total_bytes)}.")
    if option.mode == "hybrid" and option.cache_bytes is not None:
        reasons.append(f"{_size(option.cache_bytes)} of its weights stay decoded.")
    if option.mode in ("streaming", "hybrid"):
        reasons.append("What is not kept is decoded each time it is used.")
    if option.one_at_a_time:
        together = min(each.total_bytes for each in considered if not each.one_at_a_time)
        reasons.append(
            f"With all components on the card it would take {_size(together)}, so each one"
            " waits in main memory until it works."
        )
    if option.seconds >= 1:
        reasons.append(
            f"That adds about {option.seconds:.0f} s to a picture of {_STEPS} steps, estimated."
        )
    return replace(option, reasons=tuple(reasons))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= _SMALL else f"{count / 1e6:.1f} MB"


def _named(part: Part) -> dict[str, Any]:
    return {**part.config, "_class_name": part.kind}


def _scale(inventory: Inventory) -> int:
    vae = inventory.part(_VAE)
    return (vae_scale(vae.config) if vae is not None else None) or 8
