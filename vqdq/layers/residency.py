"""Which decoded weights a packed model keeps: all, none, or as many as a budget holds.

Layers run in one fixed order, over and over. A cache that drops the least recently used layer would
then drop each just before it is needed again; a fixed choice of layers serves its share of every
call. The picture is the same in every mode: a weight decodes to the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from vqdq.activations.base import Axis, Code
from vqdq.codecs.base import WeightShape
from vqdq.errors import UserError
from vqdq.layers import card, execution, integer
from vqdq.layers.prefetch import Prefetch
from vqdq.layers.quantized import QuantizedLayer

Mode = Literal["resident", "streaming", "hybrid", "integer"]
MODES: tuple[Mode, ...] = get_args(Mode)
OFFLOADING: tuple[Mode, ...] = ("streaming", "hybrid")

# Weights a second that one core decodes to float32, as benchmarks/RESULTS.md measured them.
_PACE = {"trellis": 2.1e9, "additive": 1.9e9, "int8": 2.0e9, "half": 2.0e9}
_PACE_OTHER = 0.2e9
_SETTING = "_vqdq_mode"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeSetting:
    """What `set_mode_` was asked for.

    Attributes:
        mode: see there.
        cache_bytes: of "hybrid"; None elsewhere.
        offload: packed weights stay in the processor's memory while a card computes.
    """

    mode: Mode
    cache_bytes: int | None = None
    offload: bool = False


RESIDENT = ModeSetting(mode="resident")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedLayer:
    """What keeping one layer decoded takes and saves.

    Attributes:
        name: of the layer.
        num_bytes: of its decoded weight.
        seconds: ESTIMATED, of decoding it once.
        reads_text: its output is kept for a whole picture, so that keeping its weight saves little.
        packed_bytes: of its packed tensors; `waits`: they can stay in the processor's memory.
        matrix_bytes: of the float32 matrix that is made on the way to the decoded weight; 0 where
            that is the matrix itself.
    """

    name: str
    num_bytes: int
    seconds: float
    reads_text: bool = False
    packed_bytes: int = 0
    waits: bool = False
    matrix_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What the packed layers of a model take in a mode, beside what is stored.

    Attributes:
        kept: names of the layers that stay decoded; held_bytes: of their decoded weights.
        transient_bytes: the most that exists beside them while one layer decodes: a matrix, its
            form for products unless that stays, and where packed weights wait in the processor's
            memory their copy and the buffers.
        buffer_bytes: of the two buffers of `vqdq.layers.prefetch`, which stay.
        waiting: packed bytes, by layer, that are in the processor's memory and not on the card.
    """

    kept: frozenset[str]
    held_bytes: int
    transient_bytes: int
    buffer_bytes: int
    waiting: Mapping[str, int]


def held_in(setting: ModeSetting, layers: Mapping[str, DecodedLayer], *, card: bool) -> Held:
    """Returns what layers take in a mode.

    Args:
        card: they are computed on one; elsewhere nothing waits.
    """
    kept = _kept(setting, layers, layers.values)
    leaves = card and setting.offload and setting.mode in OFFLOADING
    waiting = {each.name: each.packed_bytes for each in layers.values() if leaves and each.waits}
    buffers = 2 * max((layers[name].num_bytes for name in waiting if name not in kept), default=0)
    passing = (
        waiting.get(name, 0) + each.matrix_bytes + (0 if name in kept else each.num_bytes)
        for name, each in layers.items()
    )
    return Held(
        kept=kept,
        held_bytes=sum(layers[name].num_bytes for name in kept),
        transient_bytes=buffers + max(passing, default=0),
        buffer_bytes=buffers,
        waiting=waiting,
    )


def _kept(
    setting: ModeSetting, names: Iterable[str], decoded: Callable[[], Iterable[DecodedLayer]]
) -> frozenset[str]:
    if setting.mode == "streaming":
        return frozenset()
    if setting.mode == "hybrid":
        return chosen(decoded(), setting.cache_bytes or 0)
    return frozenset(names)


def checked(mode: str, cache_bytes: int | None, offload: bool = False) -> ModeSetting:
    """Returns the setting after checking that its parts belong together.

    Raises:
        UserError: an unknown mode, "hybrid" without a budget, a budget for another mode, or packed
            weights that are to stay behind where every weight is kept decoded.
    """
    known: Mode | None = next((each for each in MODES if each == mode), None)
    if known is None:
        raise UserError(
            f'there is no mode "{mode}".', where="mode", remedy=f"Use {', '.join(MODES)}."
        )
    if known == "hybrid" and (cache_bytes is None or cache_bytes < 0):
        raise UserError(
            "hybrid needs the bytes that decoded weights may take.",
            where="cache",
            remedy="Name a budget, such as 2GB.",
        )
    if known != "hybrid" and cache_bytes is not None:
        raise UserError(
            f"{known} keeps no cache of a given size.",
            where="cache",
            remedy="Leave the budget out, or choose hybrid.",
        )
    if offload and known not in OFFLOADING:
        raise UserError(
            f"{known} decodes every weight once, and there is nothing to bring to a card later.",
            where="offload",
            remedy=f"Leave it out, or choose {' or '.join(OFFLOADING)}.",
        )
    return ModeSetting(mode=known, cache_bytes=cache_bytes, offload=offload)


def decode_seconds(method: str, weights: int) -> float:
    """Returns the ESTIMATED seconds in which one core decodes `weights` weights of a method."""
    return weights / _PACE.get(method, _PACE_OTHER)


def chosen(layers: Iterable[DecodedLayer], cache_bytes: int) -> frozenset[str]:
    """Returns the names of the layers whose decoded weights are kept in `cache_bytes`.

    Those that save most seconds a byte come first, of equals the largest, and each that still fits
    is taken; layers whose output is kept for a whole picture come last. The same layers and the
    same budget give the same choice.
    """
    order = sorted(
        layers,
        key=lambda each: (
            each.reads_text,
            -each.seconds / max(1, each.num_bytes),
            -each.num_bytes,
            each.name,
        ),
    )
    kept: set[str] = set()
    left = cache_bytes
    for layer in order:
        if layer.num_bytes <= left:
            kept.add(layer.name)
            left -= layer.num_bytes
    return frozenset(kept)


def set_mode_(
    model: nn.Module, mode: Mode, cache_bytes: int | None = None, *, offload: bool = False
) -> None:
    """Lets a model with packed layers keep its decoded weights as `mode` says, from now on.

    "resident": each layer is decoded once, at its first use; "streaming": at each use; "hybrid":
    the layers that `chosen` picks are kept, the others stream; "integer": as resident, and refused
    unless layers with a rounded input multiply integers here. A layer with a rounded input is kept
    in 8 bits where it multiplies these, in float32 where it is simulated.

    Args:
        cache_bytes: of the decoded weights of "hybrid".
        offload: in "streaming" and "hybrid" packed weights stay in the processor's memory while the
            model computes on a card, and come there one layer ahead (`vqdq.layers.prefetch`); not
            those of layers with a rounded input. On the processor nothing changes.

    Raises:
        UserError: no packed layer, a setting that `checked` refuses, or "integer" where no layer
            multiplies integers; the model stays as it was.
    """
    setting = checked(mode, cache_bytes, offload)
    layers = packed_layers(model)
    if not layers and mode != "resident":
        raise UserError(
            "has no packed layers, so there is nothing to decode.",
            where=type(model).__name__,
            remedy="Compress the model, or leave the mode out.",
        )
    if mode == "integer":
        _require_integers(layers)
    model.__dict__[_SETTING] = setting
    _apply_(layers, setting)


def choose_again_(model: nn.Module) -> None:
    """Spends the budget of "hybrid" anew after a cast changed what decoded weights take."""
    setting = setting_of(model)
    if setting.mode == "hybrid":
        _apply_(packed_layers(model), setting)


def setting_of(model: nn.Module) -> ModeSetting:
    """Returns the mode of a model; "resident" unless `set_mode_` said otherwise."""
    found = model.__dict__.get(_SETTING)
    return found if isinstance(found, ModeSetting) else RESIDENT


def packed_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Returns the packed layers by name, those below adapters included."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)
    }


def held_bytes(model: nn.Module) -> int:
    """Returns the bytes of decoded weights that are held now."""
    return sum(layer.held_bytes for layer in packed_layers(model).values())


def kept_bytes(model: nn.Module) -> int:
    """Returns the bytes that decoded weights will take once every layer has run."""
    return sum(
        decoded_layer(name, layer).num_bytes
        for name, layer in packed_layers(model).items()
        if layer.residency == "resident"
    )


def source_of(model: nn.Module) -> Prefetch | None:
    """Returns what brings a model's packed weights to a card; None where they lie there."""
    layers = packed_layers(model).values()
    return next((layer.source for layer in layers if layer.source is not None), None)


def decoded_layer(
    name: str, layer: QuantizedLayer, dtype: torch.dtype | None = None
) -> DecodedLayer:
    """Returns what keeping a packed layer takes and saves, in its own dtype or another."""
    packed, given, wide = layer.packed, layer.input, dtype or layer.shown_dtype
    shape = packed.shape
    if given is None or not given.enabled:
        size = shape.count * wide.itemsize
    elif execution.reason(layer, given):
        size = simulated_bytes(shape.count)
    else:
        axis, _ = next(given.known_grids(layer))
        size = eight_bit_bytes(shape, axis, given.quantizer.code)
    return DecodedLayer(
        name=name,
        num_bytes=size,
        seconds=decode_seconds(packed.codec, shape.count),
        reads_text=layer.text_cache is not None,
        packed_bytes=packed.storage.total_bytes,
        waits=given is None,
        matrix_bytes=matrix_bytes(shape.count, wide, rounded=given is not None),
    )


def matrix_bytes(weights: int, dtype: torch.dtype, *, rounded: bool) -> int:
    """Returns the bytes of the matrix that is decoded first; 0 where it is the weight itself."""
    return 0 if dtype == torch.float32 and not rounded else 4 * weights


def eight_bit_bytes(shape: WeightShape, axis: Axis, code: Code) -> int:
    """Returns the bytes of a weight as products of 8-bit codes take it."""
    if code == "fp8":
        return card.float_bytes(shape.out_features, shape.in_features)
    return integer.weight_bytes(shape.out_features, shape.in_features, shape.taps, axis)


def simulated_bytes(weights: int) -> int:
    """Returns the bytes of a weight as simulated products take it, float32."""
    return 4 * weights


def _apply_(layers: dict[str, QuantizedLayer], setting: ModeSetting) -> None:
    kept = _kept(
        setting, layers, lambda: (decoded_layer(name, layer) for name, layer in layers.items())
    )
    for name, layer in layers.items():
        layer.residency = "resident" if name in kept else "streaming"
        if name not in kept:
            layer.forget_weight()
    _offload_(layers.values(), setting.offload)


def _offload_(layers: Iterable[QuantizedLayer], offload: bool) -> None:
    """Lets one source keep the packed weights of all layers, or lets each lie where it is used."""
    every = list(layers)
    known = (layer.source for layer in every if layer.source is not None)
    source = next(known, None) or Prefetch() if offload else None
    for layer in every:
        wanted = source if layer.input is None else None
        if layer.source is not wanted:
            layer.offload_(wanted)
    if source is not None:
        streamed = (each for each in every if each.residency == "streaming" and each.input is None)
        source.largest = max((each.packed.shape.count for each in streamed), default=0)


def _require_integers(layers: dict[str, QuantizedLayer]) -> None:
    reasons = [
        execution.reason(layer, given) or not_integers(given.quantizer.code)
        for layer in layers.values()
        if (given := layer.input) is not None
    ]
    if not reasons:
        raise UserError(
            "its recipe rounds no layer's input, so nothing can be multiplied in integers.",
            where="mode",
            remedy="Choose another mode, or a recipe with activations such as w8a8.",
        )
    if all(reasons):
        raise UserError(
            f"no layer multiplies integers here: {reasons[0]}.",
            where="mode",
            remedy="Choose another mode, such as resident, for the same picture.",
        )


def not_integers(code: Code) -> str:
    """Returns why codes are not multiplied as integers although a kernel takes them; "" or not."""
    return "the recipe rounds inputs to 8-bit floats" if code == "fp8" else ""
