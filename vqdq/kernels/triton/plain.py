"""Bits taken apart and blocks of a Hadamard transform, on the card."""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from vqdq.kernels import reference
from vqdq.packing import packed_bytes


@triton.jit
def _unpack_kernel(stream, out, count, size, BITS: tl.constexpr, TILE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    held = place < count
    bit = place * BITS
    byte = bit >> 3
    low = tl.load(stream + byte, mask=held, other=0).to(tl.int32)
    high = tl.load(stream + byte + 1, mask=held & (byte + 1 < size), other=0).to(tl.int32)
    value = ((low | (high << 8)) >> (bit & 7).to(tl.int32)) & ((1 << BITS) - 1)
    tl.store(out + place, value.to(tl.uint8), mask=held)


@triton.jit
def butterflies(x, ROWS: tl.constexpr, TILE: tl.constexpr, LOG_BLOCK: tl.constexpr):
    """Returns the Hadamard transform of runs of 2**LOG_BLOCK columns of [ROWS, TILE]: strides 1, 2,
    4, …, as `kernels.hadamard` defines them, not normalised."""
    for step in tl.static_range(LOG_BLOCK):
        pairs = tl.reshape(x, (ROWS, TILE >> (step + 1), 2, 1 << step))
        first, second = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
        mixed = tl.join(first + second, first - second)
        x = tl.reshape(tl.permute(mixed, (0, 1, 3, 2)), (ROWS, TILE))
    return x


@triton.jit
def _hadamard_kernel(
    x, out, rows, columns, scale, LOG_BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    held = (row < rows)[:, None] & (column < columns)[None, :]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    values = tl.load(x + at, mask=held, other=0.0)
    mixed = butterflies(values, ROWS, TILE, LOG_BLOCK)
    tl.store(out + at, mixed * scale, mask=held)


@triton.jit
def _feed_kernel(
    targets, errors, unit, out, rows, columns, count, unit_stride,
    TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    held = (column < columns)[:, None] & (row < rows)[None, :]
    at = column.to(tl.int64)[:, None] * rows + row[None, :]
    total = tl.load(targets + at, mask=held, other=0.0)
    place, source = unit + column, errors + row
    for _ in range(count):
        share = tl.load(place, mask=column < columns, other=0.0)
        lost = tl.load(source, mask=row < rows, other=0.0)
        total = total + share[:, None] * lost[None, :]
        place += unit_stride
        source += rows
    tl.store(out + at, total, mask=held)


def feed_forward(targets: torch.Tensor, errors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """See `vqdq.kernels.feed_forward`."""
    given, lost = targets.float().contiguous(), errors.float().contiguous()
    shares = unit.float() if unit.stride(1) == 1 else unit.float().contiguous()
    out, (columns, rows) = torch.empty_like(given), given.shape
    if given.numel():
        grid = (triton.cdiv(columns, 16), triton.cdiv(rows, 64))
        _feed_kernel[grid](
            given, lost, shares, out, rows, columns, len(lost), shares.stride(0), TILE=16, WIDE=64,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def unpack_bits(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """See `vqdq.kernels.unpack_bits`."""
    flat = stream.contiguous().reshape(-1)
    if not 1 <= bits <= 8 or len(flat) < packed_bytes(count, bits):
        return reference.unpack_bits(flat.cpu(), bits, count)  # words the faults
    out = torch.empty(count, dtype=torch.uint8, device=stream.device)
    if count:
        grid = (triton.cdiv(count, 1024),)
        _unpack_kernel[grid](flat, out, count, len(flat), BITS=bits, TILE=1024, num_warps=4)
    return out


def hadamard(x: torch.Tensor, block: int, *, normalised: bool = True) -> torch.Tensor:
    """See `vqdq.kernels.hadamard`; not `normalised` leaves the sums as they are."""
    values = x.detach().float().contiguous()
    out = torch.empty_like(values)
    rows, columns = values.shape
    tile, tall = max(block, 64), 8
    scale = float(torch.tensor(block**-0.5, dtype=torch.float32)) if normalised else 1.0
    grid = (triton.cdiv(columns, tile), triton.cdiv(rows, tall))
    if values.numel():
        _hadamard_kernel[grid](
            values, out, rows, columns, scale, LOG_BLOCK=block.bit_length() - 1,
            ROWS=tall, TILE=tile, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
