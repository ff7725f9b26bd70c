"""Tiles of decoded weights: what the kernels that decode have in common."""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
# Triton's own language is not Python's: kernel arguments have no types.

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

SEGMENT_ROWS: tl.constexpr = tl.constexpr(256)  # as in `trellis_reference`


@triton.jit
def trellis_levels(
    codes,
    table,
    first,
    column,
    rows,
    columns,
    BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Returns the table's levels of rows first … first + ROWS - 1, int8 [ROWS, columns].

    ROWS divides 256 and `first` is a multiple of it, so all rows lie in one circular sequence. A
    window of at most 16 bits lies in three bytes. Outside of the weight the level is 0.
    """
    last = tl.maximum(rows // SEGMENT_ROWS, 1) - 1  # this one takes the remainder
    segment = tl.minimum(first // SEGMENT_ROWS, last)
    length = tl.where(segment == last, rows - last * SEGMENT_ROWS, SEGMENT_ROWS) * BITS
    size = (length + 7) // 8
    base = codes + (segment * (SEGMENT_ROWS // 8 * BITS)).to(tl.int64) * columns
    row = first + tl.arange(0, ROWS)
    place = (row - segment * SEGMENT_ROWS) * BITS
    held = (row < rows)[:, None] & (column < columns)[None, :]
    byte = place >> 3
    window = tl.zeros((ROWS, column.shape[0]), tl.int32)
    for step in tl.static_range(3):
        at = base + (byte + step).to(tl.int64)[:, None] * columns + column[None, :]
        found = tl.load(at, mask=held & (byte + step < size)[:, None], other=0)
        window |= found.to(tl.int32) << (8 * step)
    window = window >> (place & 7)[:, None]
    end = (first + ROWS - segment * SEGMENT_ROWS) * BITS
    if end + STATE_BITS > length:  # some window goes round to the start of the stream
        left = tl.minimum(tl.maximum(length - place, 0), 24)
        wraps = held & (left < STATE_BITS)[:, None]
        head = tl.zeros((ROWS, column.shape[0]), tl.int32)
        for step in tl.static_range(3):
            front = base + (step * columns + column)[None, :]
            found = tl.load(front, mask=wraps & (step + 0 * byte < size)[:, None], other=0)
            head |= found.to(tl.int32) << (8 * step)
        kept = window & ((1 << left) - 1)[:, None]
        window = tl.where(wraps, kept | (head << left[:, None]), window)
    state = window & ((1 << STATE_BITS) - 1)
    return tl.load(table + state, mask=held, other=0)


@triton.jit
def additive_sums(
    codes,
    books,
    row,
    column,
    rows,
    columns,
    COUNT: tl.constexpr,
    WORDS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Returns the sums of codewords of rows × columns, float32, added from the first codebook."""
    groups = columns // DIM
    held = (row < rows)[:, None] & (column < columns)[None, :]
    vector = row.to(tl.int64)[:, None] * groups + (column // DIM)[None, :]
    inside = (column % DIM)[None, :]
    total = tl.zeros((row.shape[0], column.shape[0]), tl.float32)
    for book in tl.static_range(COUNT):
        code = tl.load(codes + vector * COUNT + book, mask=held, other=0).to(tl.int32)
        total += tl.load(books + (book * WORDS + code) * DIM + inside, mask=held, other=0.0)
    return total


@cache
def turning(block: int, tile: int, device: torch.device) -> torch.Tensor:
    """Returns Sylvester's Hadamard matrices of size `block` on the diagonal, int8 [tile, tile]."""
    one = torch.ones(1, 1, dtype=torch.int8)
    while len(one) < block:
        one = torch.cat((torch.cat((one, one), 1), torch.cat((one, -one), 1)))
    return torch.block_diag(*[one] * (tile // block)).to(device)
