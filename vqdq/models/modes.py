"""Execution modes of a whole pipeline: set on what is loaded, predicted from a plan.

A prediction needs no weights: what is stored and what is decoded follow from the plan in closed
form. The seconds are ESTIMATED from the measured pace of each method's decoder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.activations.base import ActivationQuantizer, Site, axis_at
from vqdq.kernels import backend, int8_parts
from vqdq.layers import card, execution, residency
from vqdq.layers.residency import MODES, DecodedLayer, Mode, ModeSetting
from vqdq.models.denoisers import denoiser
from vqdq.recipe import Plan, PlannedLayer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["MODES", "Mode", "ModeEstimate", "held_bytes", "mode_estimates", "set_mode_"]

_TO_DEVICE = 10e9  # bytes a second to a card that decodes nothing itself; assumed, not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeEstimate:
    """What the weights of a planned component take while it draws in one mode, and what that costs.

    Bytes are exact for layers whose input is not rounded, and for rounded ones as far as a plan
    knows how they will be computed.

    Attributes:
        mode: as `vqdq.layers.residency.set_mode_` takes it.
        cache_bytes: the budget of "hybrid", else None.
        stored_bytes: packed tensors as in the file, and the others in the computing dtype.
        held_bytes: decoded weights that stay.
        transient_bytes: the most that exists beside them while one layer decodes.
        held_layers: layers that stay decoded, of those that are packed.
        decode_seconds: ESTIMATED, what decoding adds to each call of the component but the first.
        refusal: why the mode cannot be chosen; "" where it can.
        waiting_bytes: packed tensors that stay in the processor's memory while a card computes;
            they are not among `stored_bytes`.
        buffer_bytes: of `transient_bytes`, what stays while others work: two buffers for weights.
        brought_bytes: of `waiting_bytes`, what comes to the card at each call; layers that stay
            decoded, or whose output is kept for a whole picture, come less often.
    """

    mode: Mode
    cache_bytes: int | None
    stored_bytes: int
    held_bytes: int
    transient_bytes: int
    held_layers: int
    decode_seconds: float
    refusal: str = ""
    waiting_bytes: int = 0
    buffer_bytes: int = 0
    brought_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights at its highest, where they are computed with."""
        return self.stored_bytes + self.held_bytes + self.transient_bytes


def mode_estimates(
    plan: Plan,
    *,
    dtype: torch.dtype = torch.float16,
    device: str = "cpu",
    cache_bytes: int | None = None,
    cores: int | None = None,
    offload: bool = False,
) -> tuple[ModeEstimate, ...]:
    """Returns an estimate for each mode, in the order of `MODES`; loads no weights.

    Args:
        dtype: of the computation (`vqdq.load` opens in float32).
        device: "cpu", or that of a card. Its seconds are then those of weights that decode on the
            processor and travel (at an assumed 10 GB a second), an upper bound where the card has
            a kernel that decodes; whether it multiplies in 8 bits is known only where it is.
        cache_bytes: of "hybrid"; None is half of what all decoded weights take.
        cores: that decode; None is those of this computer.
        offload: in "streaming" and "hybrid" packed weights come to the card one layer ahead
            (`vqdq.layers.prefetch`); not those of layers with a rounded input. How long they are
            on their way is not among the seconds: see `brought_bytes`.
    """
    texts = _texts(plan)
    layers = {item.layer.name: _decoded(item, dtype, device, texts) for item in plan.quantized}
    whole = sum(layer.num_bytes for layer in layers.values())
    budget = whole // 2 if cache_bytes is None else cache_bytes
    paths = cores or os.cpu_count() or 1
    once = _served(plan)
    stored = _stored(plan, dtype)
    found: list[ModeEstimate] = []
    for mode in MODES:
        setting = ModeSetting(
            mode=mode, cache_bytes=budget if mode == "hybrid" else None, offload=offload
        )
        held = residency.held_in(setting, layers, card=device != "cpu")
        seconds = sum(
            layer.seconds / paths + layer.num_bytes / _TO_DEVICE * (device != "cpu")
            for name, layer in layers.items()
            if name not in held.kept and name not in once
        )
        waiting = sum(held.waiting.values())
        found.append(
            ModeEstimate(
                mode=mode,
                cache_bytes=setting.cache_bytes,
                stored_bytes=stored - waiting,
                held_bytes=held.held_bytes,
                transient_bytes=held.transient_bytes,
                held_layers=len(held.kept),
                decode_seconds=seconds,
                refusal=_refusal(plan, device) if mode == "integer" else "",
                waiting_bytes=waiting,
                buffer_bytes=held.buffer_bytes,
                brought_bytes=sum(
                    count
                    for name, count in held.waiting.items()
                    if name not in held.kept and name not in once
                ),
            )
        )
    return tuple(found)


def set_mode_(
    model: DiffusionPipeline | nn.Module,
    mode: Mode,
    cache_bytes: int | None = None,
    *,
    offload: bool = False,
) -> None:
    """Lets the packed layers of a pipeline or a module keep decoded weights as `mode` says.

    In a pipeline the mode is that of the denoiser. Other compressed components run once a picture:
    they are decoded at each use in "streaming" and "hybrid", and kept otherwise.

    Args:
        cache_bytes: of decoded weights in "hybrid".
        offload: packed weights stay in the processor's memory while a card computes; see
            `vqdq.layers.residency.set_mode_`.

    Raises:
        UserError: see `vqdq.layers.residency.set_mode_`; nothing is changed then.
    """
    if isinstance(model, nn.Module):
        residency.set_mode_(model, mode, cache_bytes, offload=offload)
        return
    name, module = denoiser(model)
    residency.set_mode_(module, mode, cache_bytes, offload=offload)
    rest: Mode = "streaming" if mode in ("streaming", "hybrid") else "resident"
    for key, part in _modules(model).items():
        if key != name and residency.packed_layers(part):
            residency.set_mode_(part, rest, offload=offload)


def setting_of(pipeline: DiffusionPipeline) -> ModeSetting:
    """Returns the mode of a pipeline's denoiser."""
    return residency.setting_of(denoiser(pipeline)[1])


def held_bytes(pipeline: DiffusionPipeline) -> int:
    """Returns the bytes of decoded weights that all components hold now."""
    return sum(residency.held_bytes(part) for part in _modules(pipeline).values())


def kept_bytes(pipeline: DiffusionPipeline) -> int:
    """Returns the bytes that decoded weights will take once every layer has run."""
    return sum(residency.kept_bytes(part) for part in _modules(pipeline).values())


def waiting_bytes(pipeline: DiffusionPipeline) -> int:
    """Returns the packed bytes that lie in the processor's memory while a card computes."""
    return sum(
        layer.packed.storage.total_bytes
        for part in _modules(pipeline).values()
        for layer in residency.packed_layers(part).values()
        if layer.offloaded
    )


def _modules(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    parts = cast(dict[str, object], cast(Any, pipeline).components)
    return {key: part for key, part in parts.items() if isinstance(part, nn.Module)}


def _decoded(
    item: PlannedLayer, dtype: torch.dtype, device: str, texts: frozenset[str]
) -> DecodedLayer:
    shape, quantizer = item.layer.shape, item.quantizer()
    if quantizer is None:
        size = shape.count * dtype.itemsize
    elif _simulated(quantizer, item.layer.site, device):
        size = residency.simulated_bytes(shape.count)
    else:
        axis = axis_at(quantizer, item.layer.site)
        size = residency.eight_bit_bytes(shape, axis, quantizer.code)
    return DecodedLayer(
        name=item.layer.name,
        num_bytes=size,
        seconds=residency.decode_seconds(item.method or "", shape.count),
        reads_text=item.layer.name in texts,
        packed_bytes=item.storage.total_bytes,
        waits=quantizer is None,
        matrix_bytes=residency.matrix_bytes(shape.count, dtype, rounded=quantizer is not None),
    )


def _stored(plan: Plan, dtype: torch.dtype) -> int:
    """Returns the bytes of all tensors in memory: packed ones as stored, the others in `dtype`."""
    uncast = {
        f"{item.layer.name}.{spec.name}"
        for item in plan.quantized
        for spec in (*item.storage.tensors, *item.inputs)
    }
    dense = {spec.name for spec in plan.component.tensors} - uncast
    return sum(
        spec.num_bytes // spec.dtype.itemsize * dtype.itemsize
        if spec.name in dense and spec.dtype.is_floating_point
        else spec.num_bytes
        for spec in plan.tensors
    )


def _texts(plan: Plan) -> frozenset[str]:
    """Returns the layers whose output `vqdq.layers.text_cache` keeps while the text is the same."""
    packed = {item.layer.name for item in plan.quantized}
    places = [place.name for place in plan.component.attentions if place.cross]
    return frozenset(f"{name}.{part}" for name in places for part in ("to_k", "to_v")) & packed


def _served(plan: Plan) -> frozenset[str]:
    """Returns those of them that decode once a picture: a UNet that reads the text as it comes."""
    made = any(spec.name.startswith("encoder_hid_proj.") for spec in plan.component.tensors)
    return frozenset() if plan.component.name != "unet" or made else _texts(plan)


def _refusal(plan: Plan, device: str) -> str:
    if not plan.activated:
        return "the recipe rounds no layer's input"
    if device != "cpu" and (why := _card_refusal(device)):
        return why
    reasons = [
        _simulated(quantizer, item.layer.site, device) or residency.not_integers(quantizer.code)
        for item in plan.activated
        if (quantizer := item.quantizer()) is not None
    ]
    return reasons[0] if all(reasons) else ""


def _simulated(quantizer: ActivationQuantizer[Any], site: Site, device: str) -> str:
    """Returns why a layer will be simulated, as far as it is known before calibration."""
    axis = axis_at(quantizer, site)
    if device == "cpu":
        return execution.on_processor(quantizer.code, axis)
    if quantizer.code == "fp8":
        return _unknown_card(device) or card.float_refusal(torch.empty(0, device=device))
    per_channel = "scales lie on the summed axis, one for each channel" if axis == "channel" else ""
    return _card_refusal(device) or per_channel


def _card_refusal(device: str) -> str:
    """Returns why a card multiplies no integers; "" where it does."""
    return _unknown_card(device) or backend.refusal(
        int8_parts.OPERATION, torch.empty(0, device=device)
    )


def _unknown_card(device: str) -> str:
    """Returns why nothing can be said of a card; "" where there is one."""
    if torch.cuda.is_available():
        return ""
    return f"whether {device} multiplies in 8 bits is known only on a computer with one"
