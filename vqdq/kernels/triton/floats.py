"""Activations as 8-bit floats on the card, in one visit to each row: the codes of the reference.

Rounded by integer arithmetic on the bits of a float32: every card does that alike, with units for
8-bit floats or without.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from vqdq.kernels.fp8 import FORMAT, LARGEST
from vqdq.kernels.int8 import SMALLEST_SCALE, Lines
from vqdq.kernels.triton.codes import even, laid, odd_rows, root, row_of, shaped


@triton.jit
def _e4m3(x):
    """Returns the bits of |x| <= 448 as e4m3, uint8, to the nearest, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # 20 bits of the mantissa go; the exponents' biases are 127 and 7
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = even(tl.abs(x) * 512.0).to(tl.int32)  # steps of 2**-9 below 2**-6
    code = tl.where(size < (121 << 23), small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _rows_kernel(
    values,
    divisor,
    signs,
    scales,
    out,
    rows,
    channels,
    positions,
    batch_stride,
    position_stride,
    channel_stride,
    root,
    largest,
    smallest,
    DIVIDES: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    x = row_of(
        values, divisor, signs, row, rows, channels, positions, batch_stride, position_stride,
        channel_stride, root, DIVIDES, LOG_BLOCK, ROWS, WIDTH,
    )  # fmt: skip
    odd = odd_rows(x)
    high = tl.max(tl.where(odd[:, None], 0.0, tl.abs(x)), axis=1)
    scale = tl.div_rn(high, tl.full((ROWS,), 1.0, tl.float32) * largest)
    scale = tl.where(scale > smallest, scale, smallest)
    inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), scale)
    code = tl.where(odd[:, None], 0.0, x) * inverse[:, None]
    code = _e4m3(tl.minimum(tl.maximum(code, -largest), largest))
    tl.store(scales + row, tl.where(odd, float("nan"), scale), mask=row < rows)
    held = (row < rows)[:, None] & (column < channels)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * channels + column[None, :], code, mask=held)


def fp8_rows(lines: Lines) -> tuple[torch.Tensor, torch.Tensor]:
    """See `vqdq.kernels.fp8.fp8_rows`."""
    values, strides, height, width = laid(lines)
    batch, positions, channels = lines.sizes
    sizes = (batch, height, width) if lines.is_map else (batch, positions)
    out = torch.empty(*sizes, channels, dtype=torch.uint8, device=values.device)
    scale = torch.empty(batch, positions, device=values.device)
    rows, (grown, shape) = batch * positions, shaped(lines)
    if rows:
        _rows_kernel[(triton.cdiv(rows, grown),)](
            values, lines.divisor, lines.signs, scale, out, rows, channels, positions, *strides,
            root(lines), LARGEST, SMALLEST_SCALE, **shape,
        )  # fmt: skip
    return out.view(FORMAT), scale
