"""Scales for groups of channels in integer arithmetic: y = Σ_g s_g (q_g − z_g) Ŵ_gᵀ.

The scale stands on the summed axis, so each group is a sum of its own. Large layers take a product
for each group, over its channels alone, on levels packed by group. For small ones what a call costs
would be most of it, so there all groups go through one product of the whole weight: the rows are
repeated for each group, with the codes of other groups 0, and their sums are added up with the
scales. That is `groups` times the products for one call; it pays up to about 30 million.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vqdq import kernels
from vqdq.activations.base import Grid
from vqdq.kernels import int8_products
from vqdq.kernels.int8 import NO_BORDER, Lines
from vqdq.layers.integer import Parts, Result, Step, Whole, Window
from vqdq.layers.integer_convolutions import padded

MOST_STACKED = 30_000_000
"""Products of a layer in one call: 20 µs a call against 1.4 products a ns a core (AMX)."""


def group_step(
    split: Callable[[], Parts],
    together: Callable[[], Whole],
    window: Window | None,
    outputs: int,
    bias: torch.Tensor | None,
    grid: Grid,
) -> Step:
    """Returns the step of a layer with scales for groups of channels.

    Args:
        split, together: the levels by group, and whole; asked for when an input needs them.
        window: of a convolution, None for a product; outputs: of the layer.
    """
    kept: list[Step] = []

    def alone() -> Step:
        if window is None:
            return _product_step(split(), bias, grid)
        return _convolution_step(split(), window, bias, grid)

    assert grid.index is not None
    several = int(grid.index.min()) < int(grid.index.max())

    def run(lines: Lines) -> Result:
        batch, positions, channels = lines.sizes
        taps = 1
        if window is not None:
            taps = window.kernel[0] * window.kernel[1]
            positions //= window.stride[0] * window.stride[1]
        products = batch * positions * channels * taps * outputs
        if not several or products > MOST_STACKED:
            # Not kept: with groupings that change, each step would hold levels of its own.
            return alone()(lines)
        if not kept:
            kept.append(_stacked(together(), window, bias, grid))
        return kept[0](lines)

    return run


def _stacked(part: Whole, window: Window | None, bias: torch.Tensor | None, grid: Grid) -> Step:
    assert grid.index is not None
    index, (scale, zero) = grid.index, grid.wide()
    groups, channels = len(grid.scale), len(index)
    members = torch.zeros(groups, channels, dtype=torch.uint8)
    members[index, torch.arange(channels)] = 1
    if window is not None:
        tall, wide = (
            (size - 1) * step + 1 for size, step in zip(window.kernel, window.dilation, strict=True)
        )
        shaped = members[:, None, None].expand(-1, tall, wide, -1).contiguous()
        sums = _multiplied(shaped, part).reshape(groups, -1)
    else:
        sums = _multiplied(members, part)
    shift = (sums * (grid.scale * grid.zero)[:, None]).sum(0) * part.scales
    added = -shift if bias is None else bias - shift
    bordered = NO_BORDER
    if window is not None and window.mode == "zeros":
        bordered = window.border

    def run(lines: Lines) -> Result:
        codes, finite = kernels.stacked_codes(
            lines, scale, zero, grid.bits, index, groups, bordered
        )
        flat = codes.flatten(0, 1)
        if window is not None and window.border != bordered:
            flat = padded(flat, window)
        sums = _multiplied(flat, part)
        each = sums.reshape(groups, -1, sums.shape[-1])
        out = kernels.summed_groups(each, grid.scale, part.scales, added)
        return out.view(codes.shape[1], *sums.shape[1:]), finite

    return run


def _multiplied(codes: torch.Tensor, part: Whole) -> torch.Tensor:
    """Returns Σ codes · levels, channels last."""
    if isinstance(part.levels, int8_products.ConvolutionLevels):
        return int8_products.convolution(codes, part.levels).contiguous()
    sums = int8_products.linear(codes.view(-1, codes.shape[-1]), part.levels)
    return sums.view(*codes.shape[:-1], -1)


def _product_step(part: Parts, bias: torch.Tensor | None, grid: Grid) -> Step:
    """Returns the step of a layer with a product for each group of channels."""
    scale, zero = grid.wide()
    firsts = part.order[list(part.edges[:-1])]
    scales, zeros = scale[firsts].tolist(), [int(value) for value in zero[firsts]]
    added = torch.zeros_like(part.scales) if bias is None else bias.clone()
    for number, (step, middle) in enumerate(zip(scales, zeros, strict=True)):
        if not 0 <= middle <= 255:
            added -= part.sums[number] * part.scales * (step * middle)
            zeros[number] = 0

    def run(lines: Lines) -> Result:
        codes, finite = kernels.group_codes(lines, scale, zero, grid.bits, part.order, part.edges)
        out = None
        for coded, levels, step, middle in zip(codes, part.levels, scales, zeros, strict=True):
            assert isinstance(levels, int8_products.LinearLevels)
            out = int8_products.linear(
                coded.view(-1, coded.shape[-1]),
                levels,
                scale=step,
                zero=middle,
                column_scales=part.scales,
                bias=added,
                onto=out,
            )
        assert out is not None
        return out.view(*codes[0].shape[:-1], -1), finite

    return run


def _convolution_step(part: Parts, window: Window, bias: torch.Tensor | None, grid: Grid) -> Step:
    """Returns the step of a convolution with a product for each group of channels."""
    scale, zero = grid.wide()
    firsts = part.order[list(part.edges[:-1])]
    scales = scale[firsts].tolist()
    shift = (part.sums * (scale[firsts] * zero[firsts])[:, None]).sum(0) * part.scales
    added = -shift if bias is None else bias - shift
    bordered = window.border if window.mode == "zeros" else NO_BORDER

    def run(lines: Lines) -> Result:
        codes, finite = kernels.group_codes(
            lines, scale, zero, grid.bits, part.order, part.edges, bordered
        )
        out = None
        for coded, levels, step in zip(codes, part.levels, scales, strict=True):
            assert isinstance(levels, int8_products.ConvolutionLevels)
            framed = coded if bordered == window.border else padded(coded, window)
            out = int8_products.convolution(
                framed, levels, scale=step, column_scales=part.scales, bias=added, onto=out
            )
        assert out is not None
        return out, finite

    return run
