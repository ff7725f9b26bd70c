"""Products of 8-bit codes and levels with their scales: linear layers and convolutions.

One kernel for all that `int8_parts` and `fp8` define: an implicit product over taps and groups, in
int32 (e4m3: float32) within a part, in float32 between parts.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from vqdq.kernels.int8_parts import DEPTH, Levels, Reading
from vqdq.kernels.triton.codes import grid_steps


@triton.jit
def _product_kernel(
    codes,
    levels,
    column_sums,
    edges,
    scales,
    zeros,
    column_scales,
    bias,
    out,
    outputs,
    rows,
    channels,
    height,
    width,
    tall,
    wide,
    stride_down,
    stride_across,
    dilation_down,
    dilation_across,
    top,
    left,
    scale_batch,
    scale_pixel,
    kernel_width,
    TAPS: tl.constexpr,
    GROUPS: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BIASED: tl.constexpr,
    FLOATS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    DEEP: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < outputs
    held = row < rows
    batch = row // (tall * wide)
    place = row % (tall * wide)
    down = place // wide * stride_down - top
    across = place % wide * stride_across - left
    total = tl.zeros((ROWS, TILE), tl.float32)
    deep = tl.arange(0, DEEP)
    for part in range(TAPS * GROUPS):
        tap = part // GROUPS
        y = down + tap // kernel_width * dilation_down
        x = across + tap % kernel_width * dilation_across
        valid = held & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pixel = y * width + x
        source = (batch.to(tl.int64) * height * width + pixel) * channels
        first = tl.load(edges + part % GROUPS)
        last = tl.load(edges + part % GROUPS + 1)
        sums = tl.zeros((ROWS, TILE), tl.float32 if FLOATS else tl.int32)
        for start in range(first, last, DEEP):
            at = start + deep
            there = codes + source[:, None] + at[None, :]
            known = valid[:, None] & (at < last)[None, :]
            near = column.to(tl.int64)[None, :] * (TAPS * channels) + (tap * channels + at)[:, None]
            shown = (at < last)[:, None] & inside[None, :]
            if FLOATS:
                a = tl.load(there, mask=known, other=0.0)
                b = tl.load(levels + near, mask=shown, other=0.0)
                # Hopper's units keep 14 bits of a sum: what they add up ends with the tile
                sums = tl.dot(a, b, sums, max_num_imprecise_acc=DEEP)
            else:
                a = tl.load(there, mask=known, other=128)
                b = tl.load(levels + near, mask=shown, other=0)
                signed = (a ^ 128).to(tl.int8, bitcast=True)
                sums = tl.dot(signed, b, sums, out_dtype=tl.int32)
        if BY_GROUP:
            grid = tl.where(valid, part % GROUPS, 0)
        else:
            grid = batch * scale_batch + pixel * scale_pixel
        scale = tl.load(scales + grid, mask=valid, other=0.0)
        moved = sums.to(tl.float32)
        if not FLOATS:
            zero = tl.load(zeros + grid, mask=valid, other=0.0)
            whole = tl.load(column_sums + part * outputs + column, mask=inside, other=0.0)
            moved -= (zero - 128.0)[:, None] * whole[None, :]
        total += scale[:, None] * moved
    by = tl.load(column_scales + column, mask=inside, other=0.0)
    total = total * by[None, :]
    if BIASED:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=held[:, None] & inside[None, :])


def product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    reading: Reading,
    *,
    by_group: bool = False,
) -> torch.Tensor:
    """See `int8_parts.int8_product`, and `fp8.fp8_product` for e4m3, which has no zeros."""
    height, width, tall, wide = reading.sides(codes)
    outputs, rows, channels = len(column_scales), len(codes) * tall * wide, codes.shape[-1]
    out = torch.empty(reading.output(codes, outputs), dtype=dtype, device=codes.device)
    scale = scale.float().contiguous()
    zero = scale if zero is None else zero.float().contiguous()
    steps = (0, 0) if by_group else grid_steps(scale)
    tile, high = (128, 128) if rows >= 1024 and outputs >= 128 else (64, 16 if rows <= 16 else 64)
    grid = (triton.cdiv(rows, high), triton.cdiv(outputs, tile))
    if rows:
        _product_kernel[grid](
            codes.contiguous(), levels.levels, levels.sums, levels.edges, scale, zero,
            column_scales.float().contiguous(), codes if bias is None else bias.contiguous(), out,
            outputs, rows, channels, height, width, tall, wide, *reading.stride, *reading.dilation,
            reading.border.top, reading.border.left, *steps, reading.kernel[1],
            TAPS=reading.kernel[0] * reading.kernel[1], GROUPS=len(levels.edges) - 1,
            BY_GROUP=by_group, BIASED=bias is not None, FLOATS=levels.levels.is_floating_point(),
            ROWS=high, TILE=tile, DEEP=DEPTH, num_warps=8 if tile == 128 else 4, num_stages=3,
        )  # fmt: skip
    return out
