"""A layer's output in 8-bit arithmetic on a card: codes in one pass, one product of all parts.

The codes and the sums are those of `execution`, of integers or of 8-bit floats; a card's kernel
scales parts of a sum where they arise, so groups of channels, pixels and taps need no products of
their own. What is not finite
becomes NaN in the output instead of an error: to ask would stop the processor at every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from vqdq import kernels
from vqdq.activations.base import Axis, Code, Grid
from vqdq.codecs.base import EightBit
from vqdq.kernels import backend, fp8, int8_parts
from vqdq.kernels.int8 import Lines
from vqdq.layers.integer import Result, Step, Window, grids_of, own_grid

if TYPE_CHECKING:
    from vqdq.layers.quantized import QuantizedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class CardLevels:
    """Levels of a layer on the card; scales: of the outputs, float32 [out]."""

    levels: int8_parts.Levels
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the levels and of what comes with them."""
        return self.levels.num_bytes + self.scales.nbytes


def refusal(tensor: torch.Tensor, axis: Axis, window: Window | None, code: Code) -> str:
    """Returns why a layer is not computed in 8 bits on a card; "" when it is.

    Args:
        tensor: one of the layer's, where it is computed; window: None for a linear layer.
    """
    if axis == "channel":
        return "scales lie on the summed axis, one for each channel"
    if window is not None and window.groups > 1:
        return "no kernel of grouped convolutions for cards"
    if window is not None and window.mode != "zeros":
        return f"no kernel of convolutions padded by {window.mode} for cards"
    if code == "fp8":
        return float_refusal(tensor)
    why = backend.refusal("row_codes", tensor)
    if why:
        return why
    linear = window is None or window.is_product
    why = backend.refusal(int8_parts.OPERATION, tensor)
    return "" if linear and axis != "group" else why


def float_refusal(tensor: torch.Tensor) -> str:
    """Returns why the card of a tensor multiplies no 8-bit floats; "" where it does."""
    why = backend.refusal(fp8.ROWS, tensor) or backend.refusal(fp8.OPERATION, tensor)
    return why.partition(":")[0]  # without what the operation does instead: layers go to float32


def float_bytes(outputs: int, inputs: int) -> int:
    """Returns the bytes of `CardLevels` of 8-bit floats: levels, scales and two edges."""
    return outputs * inputs + 4 * outputs + 8


def levels_of(stored: EightBit, taps: int, index: torch.Tensor | None) -> CardLevels:
    """Returns 8-bit levels as the card's kernel takes them; `index`: group of each channel."""
    if stored.levels.dtype == fp8.FORMAT:
        levels = fp8.prepared(stored.levels, taps)
    else:
        levels = int8_parts.prepared(stored.levels, taps, index)
    return CardLevels(levels=levels, scales=stored.scales)


def _reading(layer: QuantizedLayer) -> int8_parts.Reading | None:
    """Returns how a convolution reads its map; None for a linear layer."""
    if not isinstance(layer, nn.Conv2d):
        return None
    window = Window.of(layer)
    return int8_parts.Reading(
        kernel=window.kernel,
        stride=window.stride,
        dilation=window.dilation,
        border=window.border,
    )


def float_step(layer: QuantizedLayer, part: CardLevels) -> Step:
    """Returns what computes a layer in 8-bit floats on the card, with a scale for each row."""
    bias = None if layer.bias is None else layer.bias.detach()
    reading = _reading(layer)

    def run(lines: Lines) -> Result:
        codes, scale = fp8.fp8_rows(lines)
        dtype = lines.values.dtype
        return fp8.fp8_product(codes, part.levels, scale, part.scales, bias, dtype, reading), True

    return run


def step(layer: QuantizedLayer, part: CardLevels, axis: Axis, grid: Grid | None, bits: int) -> Step:
    """Returns what computes a layer in integers on the card; `grid` None takes each row's or
    sample's range.
    """
    bias = None if layer.bias is None else layer.bias.detach()
    by_group = grid is not None and grid.index is not None
    reading = _reading(layer)

    def run(lines: Lines) -> Result:
        dtype = lines.values.dtype
        if grid is not None and by_group:
            codes, finite = int8_parts.channel_codes(lines, *grid.wide(), bits)
            codes = codes.index_select(codes.ndim - 1, part.levels.source.clamp_min(0))
            scale, zero = _flagged(grid.scale, finite), grid.zero
        elif grid is not None:
            scale, zero = grids_of(grid)
            codes, finite = kernels.row_codes(lines, scale, zero, bits)
            scale = _flagged(scale, finite)
        elif axis == "row":
            codes, scale, zero, _ = kernels.own_codes(lines, bits)
        else:
            scale, zero, _ = own_grid(lines, bits)
            codes, _ = kernels.row_codes(lines, scale, zero, bits)
        out = int8_parts.int8_product(
            codes, part.levels, scale, zero, part.scales, bias, dtype, reading, by_group=by_group
        )
        return out, True

    return run


def _flagged(scale: torch.Tensor, finite: bool | torch.Tensor) -> torch.Tensor:
    """Returns the scale, NaN where something was not finite."""
    known = torch.as_tensor(finite, device=scale.device)
    return torch.where(known, scale, torch.nan)
