"""Products of 8-bit codes: what a layer with a quantized input computes, and in which arithmetic.

y = Σ_g s_g (X_g − z_g) Ŵ_gᵀ over the groups g of channels that share a scale; a scale of the row
stands outside of the sum, one of the channel cannot. Codes and weight are 8-bit integers, or both
are 8-bit floats. The float path below is the definition.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional

from vqdq import codecs, kernels
from vqdq.activations.base import Axis, Code, Grid, dequantize, quantize
from vqdq.codecs import rotation
from vqdq.codecs.base import EightBit
from vqdq.kernels import backend, fp8
from vqdq.layers import card, integer, integer_convolutions, integer_groups
from vqdq.layers.matrix import from_matrix

if TYPE_CHECKING:
    from vqdq.layers.inputs import LayerInput
    from vqdq.layers.quantized import QuantizedLayer

KEPT_FORMS = 2
Form = TypeVar("Form", integer.Whole, integer.Parts, card.CardLevels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a layer is computed on this machine.

    Attributes:
        kind: "integer": int8 products summed in int32; "fp8": products of 8-bit floats, summed in
            float32; "simulated": the same codes in float; "16-bit": the input is not quantized.
        reason: why it is neither of the first two; "" when it is.
        exact: the 8-bit weight is the stored one, not its rounding to 8 bits a row.
    """

    kind: Literal["integer", "fp8", "simulated", "16-bit"]
    reason: str = ""
    exact: bool = True


class Weight8:
    """A weight with 8 bits a row, in the forms that products take.

    What is kept is bytes that a kernel has packed, in at most `KEPT_FORMS` forms (one, unless
    groups of channels change with the noise level), or float32 while a layer is simulated, never
    both. So with the packed weight it takes less than the float32 weight. Levels are not kept: they
    are decoded again when another form is made.

    Attributes:
        block: of the rotation in whose basis the columns are; 0 for none.
        code: what a level is, int8 ("integer") or e4m3 ("fp8").
        signs: of that rotation, ±1 for each input channel, float32 [channels]; empty for none.
        exact: the levels are the stored weight, not its rounding to 8 bits a row.
    """

    def __init__(self, layer: QuantizedLayer, block: int, code: Code = "integer") -> None:
        self.block = block
        self.code: Code = code
        self._fresh: EightBit | None = _eight_bit(layer, block, code)
        self.exact = self._fresh.exact
        channels = layer.packed.shape.channels
        self.signs = torch.empty(0)
        if block and self._fresh.signs is not None:
            self.signs = rotation.signs(self._fresh.signs, channels)
        elif block:
            self.signs = fixed_signs(channels).to(_device(layer))
        self._forms: OrderedDict[Hashable, integer.Whole | integer.Parts | card.CardLevels] = (
            OrderedDict()
        )
        self._dense: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the forms that are kept."""
        dense = 0 if self._dense is None else self._dense.nbytes
        dense += 0 if self._fresh is None else self._fresh.levels.nbytes
        return dense + sum(form.num_bytes for form in self._forms.values())

    def stored(self, layer: QuantizedLayer) -> EightBit:
        """Returns levels and scales; decoded anew from the second time on."""
        fresh, self._fresh = self._fresh, None
        return _eight_bit(layer, self.block, self.code) if fresh is None else fresh

    def form(self, layer: QuantizedLayer, key: Hashable, make: Callable[[EightBit], Form]) -> Form:
        """Returns what `make` gives for the weight; kept under `key` until newer ones need room."""
        found = cast("Form | None", self._forms.get(key))
        if found is None:
            while len(self._forms) >= KEPT_FORMS:
                self._forms.popitem(last=False)
            self._dense = None
            self._forms[key] = found = make(self.stored(layer))
        self._forms.move_to_end(key)
        return found

    def dense(self, layer: QuantizedLayer) -> torch.Tensor:
        """Returns the weight as float32 in the layer's own layout, in the basis of the levels."""
        if self._dense is not None and self._dense.device == _device(layer):
            return self._dense
        with torch.inference_mode(False), torch.no_grad():
            stored = self.stored(layer)
            matrix = stored.levels.float() * stored.scales[:, None]
            dense = from_matrix(matrix, layer).to(_device(layer))
        if layer.residency == "resident":
            self._dense = dense
            self._forms.clear()
        return dense


def _eight_bit(layer: QuantizedLayer, block: int, code: Code) -> EightBit:
    """Returns the weight of a layer whose input is rotated in blocks of `block` (0: not)."""
    packed = layer.packed
    taps, channels = packed.shape.taps, packed.shape.channels
    codec = codecs.create(packed.codec, packed.params)
    own = codec.eight_bit(packed) if code == "integer" else None
    if own is not None and own.block == block and (block == 0 or taps == 1):
        return own
    matrix = codec.decode(packed).to(_device(layer))
    if block:
        signs = fixed_signs(channels).to(matrix.device).repeat(taps)
        matrix = kernels.hadamard(matrix * signs, block)
    if code == "fp8":
        levels, scales = fp8.rounded(matrix.float())
        return EightBit(levels=levels, scales=scales, exact=False, block=block)
    return rounded(matrix, block)


def rounded(matrix: torch.Tensor, block: int = 0) -> EightBit:
    """Returns a weight [out, in] rounded to −127 … 127 steps of its rows' largest values."""
    scales = (matrix.abs().amax(1) / 127).clamp_min(1e-12)
    levels = (matrix / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    return EightBit(levels=levels, scales=scales, exact=False, block=block)


def fixed_signs(channels: int) -> torch.Tensor:
    """Returns the ±1 of a rotation that nothing stores: the bits of SHA-256, float32 [channels]."""
    stream = b"".join(
        hashlib.sha256(f"vqdq input signs {part}".encode()).digest()
        for part in range(-(-channels // 256))
    )
    bits = kernels.unpack_bits(torch.frombuffer(bytearray(stream), dtype=torch.uint8), 1, channels)
    return 1.0 - 2.0 * bits.float()


def rotated(rows: torch.Tensor, weight: Weight8) -> torch.Tensor:
    """Returns rows [batch, positions, channels] in the basis of the weight."""
    flat = (rows * weight.signs.to(rows.device)).reshape(-1, rows.shape[-1]).contiguous()
    return kernels.hadamard(flat, weight.block).reshape(rows.shape)


def step(
    layer: QuantizedLayer, weight: Weight8, axis: Axis, grid: Grid | None, bits: int
) -> integer.Step | None:
    """Returns what computes a layer in 8 bits, None where it must be simulated.

    Args:
        grid: None takes the own range of each row or sample, whichever `axis` says.
    """
    window = _window(layer)
    zero = None if grid is None else grid.zero
    if refusal(layer, axis, grid, weight.code):
        return None
    if backend.on_card(next(iter(layer.packed.tensors.values()))):
        index = None if grid is None else grid.index
        key = ("card", None if index is None else index.cpu().numpy().tobytes())
        taps = layer.packed.shape.taps
        held = weight.form(layer, key, lambda stored: card.levels_of(stored, taps, index))
        if weight.code == "fp8":
            return card.float_step(layer, held)
        return card.step(layer, held, axis, grid, bits)
    bias = None if layer.bias is None else layer.bias.detach().float()
    window = None if window is not None and window.is_product else window

    def whole() -> integer.Whole:
        return weight.form(layer, "whole", lambda stored: integer.whole(stored, layer))

    if window is not None and integer.uses_taps(axis, zero, window):
        taps = layer.packed.shape.taps
        part = weight.form(layer, "taps", lambda stored: integer.tap_parts(stored, taps))
        return integer_convolutions.tap_step(part, window, bias, bits, axis, grid)
    if grid is not None and (index := grid.index) is not None:
        key = ("groups", index.numpy().tobytes())

        def split() -> integer.Parts:
            return weight.form(layer, key, lambda kept: integer.group_parts(kept, layer, index))

        outputs = layer.packed.shape.out_features
        return integer_groups.group_step(split, whole, window, outputs, bias, grid)
    if window is not None:
        return integer_convolutions.convolution_step(whole(), window, bias, bits, grid)
    return integer.product_step(whole(), bias, bits, axis, grid)


def _device(layer: QuantizedLayer) -> torch.device:
    return next(iter(layer.packed.tensors.values())).device


def _window(layer: nn.Module) -> integer.Window | None:
    return integer.Window.of(layer) if isinstance(layer, nn.Conv2d) else None


def refusal(layer: QuantizedLayer, axis: Axis, grid: Grid | None, code: Code) -> str:
    """Returns why a layer with this grid (None: its own range) is simulated; "" where it is not."""
    tensor = next(iter(layer.packed.tensors.values()))
    if tensor.device.type != "cpu" or backend.on_card(tensor):
        return card.refusal(tensor, axis, _window(layer), code)
    return on_processor(code, axis, None if grid is None else grid.zero, _window(layer))


def on_processor(
    code: Code,
    axis: Axis,
    zero: torch.Tensor | None = None,
    window: integer.Window | None = None,
) -> str:
    """Returns why codes are not multiplied as they are on a processor; "" where they are."""
    if code == "fp8":
        return "8-bit floats are multiplied on NVIDIA cards from Ada on, not on a processor"
    return integer.refusal(axis, zero, window)


def how(layer: QuantizedLayer, given: LayerInput) -> Execution:
    """Returns how a layer is computed on this machine, at all noise levels it knows."""
    if not given.enabled:
        return Execution(kind="16-bit", reason="activations are switched off")
    exact, why = given.weight(layer).exact, reason(layer, given)
    return Execution(kind="simulated" if why else given.quantizer.code, reason=why, exact=exact)


def reason(layer: QuantizedLayer, given: LayerInput) -> str:
    """Returns why a layer is simulated at some noise level; "" where not. Decodes nothing."""
    if not given.enabled:
        return "activations are switched off"
    code = given.quantizer.code
    found = (refusal(layer, axis, grid, code) for axis, grid in given.known_grids(layer))
    return next((why for why in found if why), "")


def executions(model: nn.Module) -> dict[str, Execution]:
    """Returns how each layer of `model` with a quantized input is computed, by name."""
    found: dict[str, Execution] = {}
    for name, layer in model.named_modules():
        given = getattr(layer, "input", None)
        if given is not None and hasattr(given, "known_grids"):
            found[name] = how(cast("QuantizedLayer", layer), given)
    return found


def linear(
    weight: torch.Tensor, rows: torch.Tensor, grid: Grid, bias: torch.Tensor | None
) -> torch.Tensor:
    """Returns the output [batch, positions, out] of float32 rows [batch, positions, in]."""
    known = dequantize(quantize(rows, grid), grid)
    with torch.autocast(known.device.type, enabled=False):  # integers are not cast either
        return functional.linear(known, weight, None if bias is None else bias.float())


def convolution(weight: torch.Tensor, layer: Any, maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the convolution of float32 [batch, channels, height, width]."""
    rows = maps.flatten(2).transpose(1, 2)
    known = dequantize(quantize(rows, grid), grid).transpose(1, 2).reshape(maps.shape)
    bias = None if layer.bias is None else layer.bias.float()
    with torch.autocast(known.device.type, enabled=False):
        return nn.Conv2d._conv_forward(layer, known, weight, bias)  # pyright: ignore[reportPrivateUsage]
