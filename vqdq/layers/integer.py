"""A layer's output in integer arithmetic: codes, products of bytes, and one pass over the sums.

Every step computes y = Σ_g s_g (q_g − z_g) Ŵ_gᵀ + b as `execution` defines it, but for float32
rounding. Products are of unsigned codes and int8 levels, summed in int32; a zero point is taken off
by the product where it can, else with the levels' column sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import nn

from vqdq import kernels
from vqdq.activations.base import Axis, Grid, ranged
from vqdq.codecs.base import EightBit
from vqdq.kernels import int8_products
from vqdq.kernels.int8 import NO_BORDER, Border, Lines
from vqdq.layers.matrix import from_matrix

Result: TypeAlias = tuple[torch.Tensor, bool]
Step: TypeAlias = Callable[[Lines], Result]
"""From lines to the output, channels last, in float32 or the lines' dtype, and whether all inputs
were finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """Levels of a product over all channels.

    Attributes:
        levels: packed.
        sums: Σ levels of each output, float32 [out]; scales: of the outputs, float32 [out].
    """

    levels: int8_products.LinearLevels | int8_products.ConvolutionLevels
    sums: torch.Tensor
    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of the levels and of what comes with them."""
        return self.levels.packed.numel() + self.sums.nbytes + self.scales.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Levels of a sum of products: over groups of channels, or over the taps of a convolution.

    Attributes:
        levels: packed, one for each part.
        sums: float32 [parts, out]; scales: float32 [out].
        order, edges: of the channels, see `int8.group_codes`; empty for taps.
    """

    levels: Sequence[int8_products.LinearLevels | int8_products.ConvolutionLevels]
    sums: torch.Tensor
    scales: torch.Tensor
    order: torch.Tensor
    edges: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of the levels and of what comes with them."""
        levels = sum(part.packed.numel() for part in self.levels)
        return levels + self.sums.nbytes + self.scales.nbytes + self.order.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """How a convolution reads its map."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    border: Border
    mode: str
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Window:
        """Returns that of a layer."""
        left, right, top, bottom = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
        return cls(
            kernel=(layer.kernel_size[0], layer.kernel_size[1]),
            stride=(layer.stride[0], layer.stride[1]),
            dilation=(layer.dilation[0], layer.dilation[1]),
            border=Border(top, bottom, left, right),
            mode=layer.padding_mode,
            groups=layer.groups,
        )

    @property
    def is_product(self) -> bool:
        """Whether each pixel is read by itself: a linear layer over pixels."""
        plain = self.kernel == (1, 1) and self.stride == (1, 1) and self.groups == 1
        return plain and self.border == NO_BORDER

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the output."""
        tall, wide = self.border.around(height, width)
        down = tall - (self.kernel[0] - 1) * self.dilation[0] - 1
        across = wide - (self.kernel[1] - 1) * self.dilation[1] - 1
        return down // self.stride[0] + 1, across // self.stride[1] + 1


def refusal(axis: Axis, zero: torch.Tensor | None, window: Window | None) -> str:
    """Returns why a layer is not computed in integers; "" when it is.

    Args:
        axis: of its grid; zero: of its grid, None when it holds 0.
        window: None for a linear layer.
    """
    backend, why = int8_products.support()
    if not backend:
        return why
    if axis == "channel":
        return "scales lie on the summed axis, one for each channel"
    if window is None or window.is_product:
        return ""
    if window.groups > 1 and axis not in ("tensor", "sample"):
        return f"a grouped convolution with a scale for each {axis}"
    if window.groups > 1 and backend != "onednn":
        return "a grouped convolution, and oneDNN cannot be used"
    bordered = window.border != NO_BORDER and window.mode == "zeros"
    if (window.groups > 1 or axis == "group") and bordered and not _inside(zero):
        return "0 is not among its codes, and the padding needs it"
    if axis == "group" and backend != "onednn":
        return "a convolution with scales for groups of channels, and oneDNN cannot be used"
    return ""


def uses_taps(axis: Axis, zero: torch.Tensor | None, window: Window) -> bool:
    """Whether a convolution is a product for each tap instead of one product."""
    bordered = window.border != NO_BORDER and window.mode == "zeros"
    if always_taps(axis):
        return window.groups == 1
    return axis != "group" and window.groups == 1 and bordered and not _inside(zero)


def always_taps(axis: Axis) -> bool:
    """Whether every convolution over several taps that is not grouped is a product for each."""
    return axis == "row" or int8_products.support()[0] != "onednn"


def weight_bytes(outputs: int, inputs: int, taps: int, axis: Axis) -> int:
    """Returns the bytes of the levels of a layer, their sums by product, and the scales.

    Exact for one scale a tensor, sample or row; groups of channels have sums each.
    """
    products = taps if taps > 1 and always_taps(axis) else 1
    return outputs * inputs + 4 * outputs * (products + 1)


def _inside(zero: torch.Tensor | None) -> bool:
    return zero is None or bool(((zero >= 0) & (zero <= 255)).all())


def whole(stored: EightBit, layer: nn.Module) -> Whole:
    """Returns the levels of a layer for one product."""
    sums = stored.levels.sum(1, dtype=torch.int32).float()
    if isinstance(layer, nn.Conv2d) and not Window.of(layer).is_product:
        levels = from_matrix(stored.levels, layer)
        window = Window.of(layer)
        packed = int8_products.pack_convolution(
            levels, window.stride, window.dilation, window.groups
        )
    else:
        packed = int8_products.pack_linear(stored.levels)
    return Whole(levels=packed, sums=sums, scales=stored.scales)


def tap_parts(stored: EightBit, taps: int) -> Parts:
    """Returns the levels of a convolution for a product a tap."""
    levels = stored.levels.reshape(len(stored.levels), taps, -1)
    return Parts(
        levels=[int8_products.pack_linear(levels[:, tap]) for tap in range(taps)],
        sums=levels.sum(2, dtype=torch.int32).float().T.contiguous(),
        scales=stored.scales,
        order=torch.empty(0, dtype=torch.int64),
    )


def group_parts(stored: EightBit, layer: nn.Module, index: torch.Tensor) -> Parts:
    """Returns the levels of a layer for a product a group of channels; empty groups are left out.

    Args:
        index: group of each channel, int64 [channels].
    """
    order = index.argsort(stable=True)
    counts = index.bincount()
    edges = (0, *counts[counts > 0].cumsum(0).tolist())
    weights = from_matrix(stored.levels, layer)  # [out, channels] or [out, channels, h, w]
    packed: list[int8_products.LinearLevels | int8_products.ConvolutionLevels] = []
    sums: list[torch.Tensor] = []
    for first, last in pairwise(edges):
        part = weights[:, order[first:last]]
        sums.append(part.flatten(1).sum(1, dtype=torch.int32).float())
        if isinstance(layer, nn.Conv2d) and not Window.of(layer).is_product:
            window = Window.of(layer)
            packed.append(int8_products.pack_convolution(part, window.stride, window.dilation, 1))
        else:
            packed.append(int8_products.pack_linear(part.flatten(1)))
    return Parts(
        levels=packed, sums=torch.stack(sums), scales=stored.scales, order=order, edges=edges
    )


def own_grid(lines: Lines, bits: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Returns scale and zero of each sample's own range, float32 [batch], and finite or not."""
    low, high, finite = kernels.line_extremes(lines)
    return *ranged(low.amin(1), high.amax(1), bits), finite


def product_step(
    part: Whole, bias: torch.Tensor | None, bits: int, axis: Axis, grid: Grid | None
) -> Step:
    """Returns the step of a layer with one product for all rows.

    Args:
        grid: None takes each row's (axis "row") or sample's ("sample") own range.
    """
    levels = part.levels
    assert isinstance(levels, int8_products.LinearLevels)
    if grid is not None and axis == "tensor":
        return _tensor_product(part, levels, bias, grid)
    added = torch.zeros_like(part.scales) if bias is None else bias

    def run(lines: Lines) -> Result:
        if grid is not None:
            scale, zero = grids_of(grid)
            codes, finite = kernels.row_codes(lines, scale, zero, bits)
        elif axis == "row":
            codes, scale, zero, finite = kernels.own_codes(lines, bits)
        else:
            scale, zero, finite = own_grid(lines, bits)
            codes, _ = kernels.row_codes(lines, scale, zero, bits)
        sums = int8_products.linear(codes.view(-1, codes.shape[-1]), levels)
        rows = sums.view(len(codes), -1, sums.shape[1])
        kernels.scaled_rows(rows, scale, zero, part.sums, part.scales, added)
        return sums.view(*codes.shape[:-1], -1), finite

    return run


def _tensor_product(
    part: Whole, levels: int8_products.LinearLevels, bias: torch.Tensor | None, grid: Grid
) -> Step:
    scale, zero, added = float(grid.scale), int(grid.zero), bias
    if not 0 <= zero <= 255:
        shift = part.sums * part.scales * (scale * zero)
        added, zero = -shift if bias is None else bias - shift, 0

    def run(lines: Lines) -> Result:
        codes, finite = kernels.row_codes(lines, grid.scale, grid.zero, grid.bits)
        flat = codes.view(-1, codes.shape[-1])
        out = int8_products.linear(
            flat,
            levels,
            scale=scale,
            zero=zero,
            column_scales=part.scales,
            bias=added,
            dtype=lines.values.dtype,
        )
        return out.view(*codes.shape[:-1], -1), finite

    return run


def grids_of(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scale and zero as `kernels.row_codes` takes them."""
    alike = grid.axis == "row" and grid.scale.ndim == 1
    return (grid.scale[None], grid.zero[None]) if alike else (grid.scale, grid.zero)
