"""Rows times the levels of a trellis, decoded a tile at a time in registers.

Programs share the columns as well as the outputs, or a narrow layer would keep few of them busy;
what they sum apart is added in the order of the columns by a second small kernel: the same bits in
every run.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from vqdq.kernels.triton.tiles import trellis_levels

TALL, TILE = 32, 128  # outputs and columns of a tile; not tuned
PROGRAMS = 256  # wanted at least: about two for each multiprocessor of a large card


@triton.jit
def _levels_product_kernel(
    x,
    codes,
    table,
    parts,
    rows,
    columns,
    outputs,
    span,
    BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    TALL: tl.constexpr,
    TILE: tl.constexpr,
):
    first = tl.program_id(0) * TALL
    row = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, TALL), tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, columns), TILE):
        column = start + tl.arange(0, TILE)
        levels = trellis_levels(
            codes, table, first, column, outputs, columns, BITS, STATE_BITS, TALL
        )
        held = (row < rows)[:, None] & (column < columns)[None, :]
        values = tl.load(x + row[:, None] * columns + column[None, :], mask=held, other=0.0)
        across = tl.trans(levels.to(tl.float32))  # exact in tf32; the rows are two such numbers
        total = tl.dot(values, across, total, input_precision="tf32x3")
    column = first + tl.arange(0, TALL)
    at = parts + (tl.program_id(1) * rows + row).to(tl.int64)[:, None] * outputs + column[None, :]
    tl.store(at, total, mask=(row < rows)[:, None] & (column < outputs)[None, :])


@triton.jit
def _finish_kernel(
    parts, scales, bias, out, rows, outputs, splits, BIASED: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(1)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    held = column < outputs
    total = tl.zeros((TILE,), tl.float32)
    for part in range(splits):
        at = parts + (part * rows + row).to(tl.int64) * outputs + column
        total += tl.load(at, mask=held, other=0.0)
    total *= tl.load(scales + column, mask=held, other=0.0)
    if BIASED:
        total += tl.load(bias + column, mask=held, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * outputs + column, total.to(out.dtype.element_ty), mask=held)


def level_product(
    rows: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns rows levelsᵀ · scales + bias, [n, out] in `dtype`.

    Args:
        rows: float32 [n, columns], n at most 32.
        codes, table, bits, scales: see `vqdq.kernels.trellis_weight`.
    """
    (count, columns), outputs = rows.shape, len(scales)
    high, tiles = triton.cdiv(outputs, TALL), triton.cdiv(columns, TILE)
    each = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // high)))  # tiles of a program
    splits = triton.cdiv(tiles, each)
    parts = torch.empty(splits, count, outputs, device=rows.device)
    out = torch.empty(count, outputs, dtype=dtype, device=rows.device)
    _levels_product_kernel[(high, splits)](
        rows.contiguous(), codes.contiguous(), table, parts, count, columns, outputs, each * TILE,
        BITS=bits, STATE_BITS=len(table).bit_length() - 1, ROWS=16 if count <= 16 else 32,
        TALL=TALL, TILE=TILE, num_warps=4, num_stages=2,
    )  # fmt: skip
    _finish_kernel[(triton.cdiv(outputs, 256), count)](
        parts, scales.float().contiguous(), out if bias is None else bias.contiguous(), out,
        count, outputs, splits, BIASED=bias is not None, TILE=256, num_warps=4,
    )  # fmt: skip
    return out
