"""Weights decoded on the card: levels looked up, un-rotated by exact integer products, scaled.

A block of the Hadamard matrix is a product with ±1, which the matrix units do in integers: sums of
int8 levels are exact, whatever their order. So the weight is the reference's to the last bit.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from vqdq.kernels.triton.plain import hadamard
from vqdq.kernels.triton.support import PRODUCTS
from vqdq.kernels.triton.tiles import additive_sums, trellis_levels, turning

STRIP = 256  # rows that one program decodes, a tile at a time


@triton.jit
def _levels_kernel(
    codes,
    table,
    out,
    rows,
    columns,
    BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    first = tl.program_id(1) * ROWS
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    found = trellis_levels(codes, table, first, column, rows, columns, BITS, STATE_BITS, ROWS)
    row = first + tl.arange(0, ROWS)
    held = (row < rows)[:, None] & (column < columns)[None, :]
    at = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    if out.dtype.element_ty == tl.int8:
        tl.store(at, found, mask=held)
    else:
        tl.store(at, found.to(tl.float32).to(out.dtype.element_ty), mask=held)


@triton.jit
def _store(out, sums, factors, signs, row, column, rows, columns):
    """Writes sums · factors[row] · signs[column], multiplied in this order."""
    factor = tl.load(factors + row, mask=row < rows, other=0.0)
    sign = tl.load(signs + column, mask=column < columns, other=0.0)
    value = sums.to(tl.float32) * factor[:, None] * sign[None, :]
    held = (row < rows)[:, None] & (column < columns)[None, :]
    at = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=held)


@triton.jit
def _found(
    codes,
    table,
    first,
    column,
    rows,
    columns,
    BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    COUNT: tl.constexpr,
    WORDS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Returns a tile before it is un-rotated: levels of a trellis, int8, or (BITS 0) sums of
    codewords, float32.
    """
    if BITS > 0:
        found = trellis_levels(codes, table, first, column, rows, columns, BITS, STATE_BITS, ROWS)
    else:
        row = first + tl.arange(0, ROWS)
        found = additive_sums(codes, table, row, column, rows, columns, COUNT, WORDS, DIM)
    return found


@triton.jit
def _turned_sums(found, matrix):
    """Returns the Hadamard sums of a tile, exact in float32: whole numbers below 2**24.

    Sums of codewords are in units of 1/128, 14 bits in two bytes: each product is exact.
    """
    if found.dtype == tl.int8:
        sums = tl.dot(found, matrix, out_dtype=tl.int32).to(tl.float32)
    else:
        whole = (found * 128.0).to(tl.int32)
        high = tl.dot((whole >> 7).to(tl.int8), matrix, out_dtype=tl.int32)
        low = tl.dot((whole & 127).to(tl.int8), matrix, out_dtype=tl.int32)
        sums = (high * 128 + low).to(tl.float32) * 0.0078125
    return sums


@triton.jit
def _weight_kernel(
    codes,
    table,
    turn,
    factors,
    signs,
    out,
    rows,
    columns,
    BITS: tl.constexpr,
    STATE_BITS: tl.constexpr,
    COUNT: tl.constexpr,
    WORDS: tl.constexpr,
    DIM: tl.constexpr,
    TURNS: tl.constexpr,
    TWICE: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """A block of 256 is two tiles (TWICE): their sum and their difference are its halves."""
    width: tl.constexpr = 2 * TILE if TWICE else TILE
    column = tl.program_id(0) * width + tl.arange(0, TILE)
    line = tl.arange(0, TILE)
    matrix = tl.load(turn + line[:, None] * TILE + line[None, :])
    for step in range(STEPS):
        first = (tl.program_id(1) * STEPS + step) * ROWS
        if first < rows:
            row = first + tl.arange(0, ROWS)
            found = _found(
                codes, table, first, column, rows, columns,
                BITS, STATE_BITS, COUNT, WORDS, DIM, ROWS,
            )  # fmt: skip
            if TWICE:
                other = _found(
                    codes, table, first, column + TILE, rows, columns,
                    BITS, STATE_BITS, COUNT, WORDS, DIM, ROWS,
                )  # fmt: skip
                near, far = _turned_sums(found, matrix), _turned_sums(other, matrix)
                _store(out, near + far, factors, signs, row, column, rows, columns)
                _store(out, near - far, factors, signs, row, column + TILE, rows, columns)
            elif TURNS:
                sums = _turned_sums(found, matrix)
                _store(out, sums, factors, signs, row, column, rows, columns)
            else:
                _store(out, found, factors, signs, row, column, rows, columns)


class _Form(NamedTuple):
    """What a decoder is compiled for: a trellis, or (bits 0) codebooks."""

    bits: int = 0
    state_bits: int = 0
    count: int = 0
    words: int = 0
    dim: int = 0


def trellis_decode(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    rows: int,
    dtype: torch.dtype = torch.int8,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_decode`; in another dtype the levels are rounded to it."""
    columns = codes.shape[1]
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    grid = (triton.cdiv(columns, 128), triton.cdiv(rows, 16))
    state_bits = len(table).bit_length() - 1
    _levels_kernel[grid](
        codes.contiguous(), table, out, rows, columns,
        BITS=bits, STATE_BITS=state_bits, ROWS=16, TILE=128, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def trellis_weight(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    signs: torch.Tensor,
    block: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_weight`."""
    rows, columns = len(scales), codes.shape[1]
    if block > 1 and not _multiplies(codes):
        sums = trellis_decode(codes, table, bits, rows, torch.float32)
        return _turned(sums, _factors(scales, block), signs, block, dtype)
    form = _Form(bits=bits, state_bits=len(table).bit_length() - 1)
    return _weight(codes, table, _factors(scales, block), columns, block, signs, dtype, form)


def additive_decode(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode`."""
    ones = torch.ones(groups * codebooks.shape[2], device=codes.device)
    return _additive(codes, codebooks, scales.float(), groups, 1, ones, dtype)


def additive_decode_rotated(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    block: int,
    signs: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode_rotated`."""
    if not _multiplies(codes):
        ones = torch.ones(len(scales), device=codes.device)
        sums = additive_decode(codes, codebooks, ones, groups)
        return _turned(sums, _factors(scales, block), signs, block, dtype)
    return _additive(codes, codebooks, _factors(scales, block), groups, block, signs, dtype)


def _additive(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    factors: torch.Tensor,
    groups: int,
    block: int,
    signs: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    count, words, dim = codebooks.shape
    form = _Form(count=count, words=words, dim=dim)
    books = codebooks.float().contiguous()
    return _weight(codes, books, factors, groups * dim, block, signs, dtype, form)


def _weight(
    codes: torch.Tensor,
    table: torch.Tensor,
    factors: torch.Tensor,
    columns: int,
    block: int,
    signs: torch.Tensor,
    dtype: torch.dtype,
    form: _Form,
) -> torch.Tensor:
    """Returns a weight, decoded, un-rotated by products of tiles, scaled and rounded."""
    rows = len(factors)
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    tile = min(max(block, 64), 128)  # as many as a product of bytes needs; shared memory is small
    tall = 16 if rows <= 64 else 64
    grid = (triton.cdiv(columns, max(tile, block)), triton.cdiv(rows, STRIP))
    _weight_kernel[grid](
        codes.contiguous(), table, turning(min(block, tile), tile, codes.device),
        factors.contiguous(), signs.float().contiguous(), out, rows, columns,
        BITS=form.bits, STATE_BITS=form.state_bits, COUNT=form.count, WORDS=form.words,
        DIM=form.dim, TURNS=block > 1, TWICE=block > tile, ROWS=tall, TILE=tile,
        STEPS=STRIP // tall, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _factors(scales: torch.Tensor, block: int) -> torch.Tensor:
    """Returns scales · block**-0.5, rounded to float32 once."""
    return scales.float() * torch.tensor(block**-0.5, dtype=torch.float32, device=scales.device)


def _multiplies(tensor: torch.Tensor) -> bool:
    """Returns whether Triton multiplies tiles on the tensor's card (Turing: it does not)."""
    return not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device) >= PRODUCTS


def _turned(
    sums: torch.Tensor, factors: torch.Tensor, signs: torch.Tensor, block: int, dtype: torch.dtype
) -> torch.Tensor:
    """Returns exact sums un-rotated by butterflies, which are exact too: the same weight."""
    whole = hadamard(sums, block, normalised=False)
    return (whole.mul_(factors[:, None]).mul_(signs)).to(dtype)
