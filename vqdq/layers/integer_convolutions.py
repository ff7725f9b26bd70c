"""Convolutions in integer arithmetic: one product of all taps, or one for each tap or group.

A scale of a pixel stands inside of the sum over taps, so each tap is a product of its own over the
pixels that it reads, added up in float32: no patches are ever made. The zeros that pad a map are a
border of codes for 0, or taps left out, so they are exactly 0.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from vqdq import kernels
from vqdq.activations.base import Axis, Grid
from vqdq.kernels import int8_products
from vqdq.kernels.int8 import NO_BORDER, Lines
from vqdq.layers.integer import Parts, Result, Step, Whole, Window, grids_of, own_grid


def convolution_step(
    part: Whole, window: Window, bias: torch.Tensor | None, bits: int, grid: Grid | None
) -> Step:
    """Returns the step of a convolution with one product.

    Args:
        grid: of axis "tensor" or "sample"; None takes each sample's own range.
    """
    levels = part.levels
    assert isinstance(levels, int8_products.ConvolutionLevels)
    if grid is not None and grid.axis == "tensor":
        scale = float(grid.scale)
        shift = part.sums * part.scales * (scale * float(grid.zero))
        shifted = -shift if bias is None else bias - shift

        def run_tensor(lines: Lines) -> Result:
            codes, finite = framed_codes(lines, grid.scale, grid.zero, bits, window)
            out = int8_products.convolution(
                codes,
                levels,
                scale=scale,
                column_scales=part.scales,
                bias=shifted,
                dtype=lines.values.dtype,
            )
            return out, finite

        return run_tensor
    added = torch.zeros_like(part.scales) if bias is None else bias

    def run(lines: Lines) -> Result:
        if grid is None:
            scale, zero, finite = own_grid(lines, bits)
        else:
            scale, zero, finite = grid.scale, grid.zero, True
        codes, clean = framed_codes(lines, scale, zero, bits, window)
        sums = int8_products.convolution(codes, levels).contiguous()
        rows = sums.view(len(codes), -1, sums.shape[3])
        kernels.scaled_rows(rows, scale, zero, part.sums, part.scales, added)
        return sums, finite and clean

    return run


def framed_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int, window: Window
) -> Result:
    """Returns the codes of a map as a convolution without padding reads them."""
    if window.mode == "zeros" or window.border == NO_BORDER:
        return kernels.row_codes(lines, scale, zero, bits, window.border)
    codes, finite = kernels.row_codes(lines, scale, zero, bits)
    return padded(codes, window), finite


def padded(maps: torch.Tensor, window: Window) -> torch.Tensor:
    """Returns [batch, height, width, …] with the border that a padding mode other than 0 makes."""
    down, across = (
        functional.pad(torch.arange(size).float()[None, None], ends, mode=window.mode)[0, 0].long()
        for size, ends in zip(maps.shape[1:3], (window.border[:2], window.border[2:]), strict=True)
    )
    return maps[:, down][:, :, across].contiguous()


def tap_step(
    part: Parts, window: Window, bias: torch.Tensor | None, bits: int, axis: Axis, grid: Grid | None
) -> Step:
    """Returns the step of a convolution with a product for each tap, at the pixels that it reads.

    Args:
        grid: None takes each pixel's (axis "row") or sample's ("sample") own range.
    """

    def run(lines: Lines) -> Result:
        batch, channels, height, width = lines.values.shape
        if grid is not None:
            scale, zero = grids_of(grid)
            codes, finite = kernels.row_codes(lines, scale, zero, bits)
        elif axis == "row":
            codes, scale, zero, finite = kernels.own_codes(lines, bits)
        else:
            scale, zero, finite = own_grid(lines, bits)
            codes, _ = kernels.row_codes(lines, scale, zero, bits)
        grids = _numbers(scale, batch, height, width)
        tall, wide = window.size(height, width)
        border = window.border
        if window.mode != "zeros":
            codes, grids, border = padded(codes, window), padded(grids, window), NO_BORDER
        out = torch.empty(batch * tall * wide, len(part.scales))
        out.copy_(torch.zeros(()) if bias is None else bias)
        places = torch.arange(len(out)).view(batch, tall, wide)
        flat = (scale.reshape(-1).contiguous(), zero.reshape(-1).contiguous())
        for tap, levels in enumerate(part.levels):
            assert isinstance(levels, int8_products.LinearLevels)
            near, far = divmod(tap, window.kernel[1])
            down = _reads(near, 0, border.top, codes.shape[1], tall, window)
            across = _reads(far, 1, border.left, codes.shape[2], wide, window)
            if down is None or across is None:
                continue
            read = (slice(None), down[0], across[0])
            written = places[:, down[1], across[1]].reshape(-1)
            rows = codes[read].reshape(-1, channels)
            sums = int8_products.linear(rows, levels)
            taken = grids[read].reshape(-1)
            kernels.add_rows(out, sums, *flat, taken, written, part.sums[tap], part.scales)
        return out.view(batch, tall, wide, -1), finite

    return run


def _numbers(scale: torch.Tensor, batch: int, height: int, width: int) -> torch.Tensor:
    """Returns which of the (flattened) grids each pixel has, int64 [batch, height, width]."""
    if scale.ndim == 2 and len(scale) == batch:
        return torch.arange(batch * height * width).view(batch, height, width)
    if scale.ndim == 2:
        return torch.arange(height * width).view(1, height, width).expand(batch, -1, -1)
    samples = torch.arange(batch) if scale.ndim == 1 else torch.zeros(batch, dtype=torch.int64)
    return samples[:, None, None].expand(-1, height, width)


def _reads(
    tap: int, side: int, padding: int, size: int, out: int, window: Window
) -> tuple[slice, slice] | None:
    """Returns which inputs a tap reads along one side, and for which outputs; None for none."""
    stride, offset = window.stride[side], tap * window.dilation[side] - padding
    first = max(0, -(offset // stride))  # the least output whose input is inside
    last = min(out - 1, (size - 1 - offset) // stride)
    if last < first:
        return None
    start = first * stride + offset
    return slice(start, start + (last - first) * stride + 1, stride), slice(first, last + 1)
