"""Integers of 1 to 16 bits as a dense little-endian bit stream, exact and without padding inside.

Value i occupies bits [i*bits, (i+1)*bits) of the stream; bit b of the stream is bit b % 8 of byte b
// 8. Only the last byte is padded (with zeros), so n values take ceil(n*bits/8) bytes.
"""

from __future__ import annotations

import numpy as np
import torch

from vqdq.errors import UserError

MAX_BITS = 16
_CHUNK = 1 << 20  # values per pass: keeps the bit matrix under 16 MB


def packed_bytes(count: int, bits: int) -> int:
    """Returns how many bytes `count` values of `bits` bits take: ceil(count*bits/8)."""
    return (count * bits + 7) // 8


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the bit stream of `values` as uint8 [ceil(n*bits/8)].

    Args:
        values: integers of any shape, 0 <= value < 2**bits, taken in row-major order.
        bits: 1 to 16.

    Raises:
        UserError: bits outside 1..16, or a value that does not fit.
    """
    _check_bits(bits)
    flat = values.detach().cpu().reshape(-1).numpy()
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= 1 << bits):
        raise UserError(
            f"values from {int(flat.min())} to {int(flat.max())} do not fit in {bits} bits.",
            where="pack",
            remedy=f"Allowed: 0 to {(1 << bits) - 1}.",
        )
    out = np.zeros(packed_bytes(flat.size, bits), dtype=np.uint8)
    for start in range(
        0, flat.size, _CHUNK
    ):  # _CHUNK is a multiple of 8: chunks end on whole bytes
        chunk = flat[start : start + _CHUNK].astype("<u2")
        rows = np.unpackbits(chunk.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
        piece = np.packbits(rows[:, :bits].reshape(-1), bitorder="little")
        first = start * bits // 8
        out[first : first + piece.size] = piece
    return torch.from_numpy(out)


def unpack(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Returns the first `count` values of a bit stream as int32 [count]; the inverse of `pack`.

    Raises:
        UserError: bits outside 1..16, or a stream that is too short.
    """
    _check_bits(bits)
    flat = stream.detach().cpu().reshape(-1).numpy()
    if flat.size < packed_bytes(count, bits):
        raise UserError(
            f"{flat.size} bytes hold fewer than {count} values of {bits} bits.",
            where="unpack",
            remedy="The file is truncated: copy or compress it again.",
        )
    out = np.empty(count, dtype=np.int32)
    for start in range(0, count, _CHUNK):
        number = min(_CHUNK, count - start)
        first = start * bits // 8
        piece = flat[first : first + packed_bytes(number, bits)]
        rows = np.unpackbits(piece, bitorder="little")[: number * bits].reshape(number, bits)
        padded = np.zeros((number, MAX_BITS), dtype=np.uint8)
        padded[:, :bits] = rows
        out[start : start + number] = (
            np.packbits(padded, axis=1, bitorder="little").view("<u2").reshape(-1)
        )
    return torch.from_numpy(out)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise UserError(
            f"{bits} bits cannot be packed.", where="packing", remedy="Use 1 to 16 bits."
        )
