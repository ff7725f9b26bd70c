"""Decoding a trellis, compiled: sixteen columns a step, their windows cut and looked up as vectors.

There is no recurrence: every weight is one lookup. What bounds it is the gather, so its index is a
signed 32-bit number (the window is shifted up, then down, into a table that starts at state
2**(L-1)): one gather of 16 where LLVM makes two of 8 from any other index, 6.2 against 4.4 G
weights/s a core. The table stays int8 (4 KB at L = 12, 64 KB at L = 16), read four bytes at a time.
All of it was measured on a machine that other work shared.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Array: TypeAlias = npt.NDArray[Any]
LANES = 16
TAIL = 8  # bytes kept of the circular end of a segment
_BYTE, _INT, _LONG = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES, _INTS = ir.VectorType(_BYTE, LANES), ir.VectorType(_INT, LANES)
_LONGS, _MASK = ir.VectorType(_LONG, LANES), ir.VectorType(ir.IntType(1), LANES)
_POINTERS = ir.VectorType(_INT.as_pointer(), LANES)


def turned(table: Array) -> Array:
    """Returns the table as the gather wants it: the upper half first, three bytes behind it."""
    half = table.shape[0] // 2
    return np.concatenate((table[half:], table[:half], table[:3]))


@intrinsic
def _gather(
    _typing: Any,
    out: Any,
    place: Any,
    codes: Any,
    start: Any,
    columns: Any,
    table: Any,
    left: Any,
    right: Any,
) -> Any:
    """Sets out[place:place+16] to the table's entries at windows of three bytes of codes.

    The bytes of a column are at start, start + columns and start + 2*columns of the data. A window
    is shifted left until it ends at bit 31, then right until it is a signed state. Places in the
    data instead of rows: every row that numba takes from an array is counted twice.
    """
    signature = types.void(out, place, codes, start, columns, table, left, right)
    whole = ir.VectorType(ir.IntType(out.dtype.bitwidth), LANES)

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        def at(index: int, place: Any, kind: Any) -> Any:
            array = context.make_array(call.args[index])(context, b, args[index])
            return b.bitcast(b.gep(array.data, [place]), kind.as_pointer())

        def load(number: int) -> Any:
            step = b.mul(args[4], ir.Constant(_LONG, number))
            loaded = b.load(at(2, b.add(args[3], step), _BYTES))
            loaded.align = 1
            return b.shl(b.zext(loaded, _INTS), ir.Constant(_INTS, [8 * number] * LANES))

        def broadcast(scalar: Any) -> Any:
            empty = ir.Constant(_INTS, ir.Undefined)
            single = b.insert_element(empty, scalar, ir.Constant(_INT, 0))
            return b.shuffle_vector(single, empty, ir.Constant(_INTS, [0] * LANES))

        window = b.or_(b.or_(load(0), load(1)), load(2))
        state = b.ashr(b.shl(window, broadcast(args[6])), broadcast(args[7]))
        down = b.zext(b.sub(ir.Constant(_INT, 31), args[7]), _LONG)
        middle = at(5, b.shl(ir.Constant(_LONG, 1), down), _BYTE)
        places = b.gep(middle, [b.sext(state, _LONGS)], source_etype=_BYTE)
        places.type = _POINTERS  # llvmlite does not know indices that are vectors
        gather = cgutils.get_or_insert_function(
            b.module,
            ir.FunctionType(_INTS, [_POINTERS, _INT, _MASK, _INTS]),
            f"llvm.masked.gather.v{LANES}i32.v{LANES}p0",
        )
        every, nothing = ir.Constant(_MASK, [1] * LANES), ir.Constant(_INTS, ir.Undefined)
        found = b.call(gather, [places, ir.Constant(_INT, 1), every, nothing])
        level = b.sext(b.trunc(found, _BYTES), whole) if whole != _BYTES else b.trunc(found, _BYTES)
        b.store(level, at(0, args[1], whole)).align = 1
        return context.get_dummy_value()

    return signature, generate


_look_up: Any = _gather  # the decorator hides the first parameter from callers


@njit(nogil=True, cache=True)
def circular_tails(codes: Array, edges: Array, bits: int, tails: Array, inner: Array) -> None:
    """Fills the end of every segment's stream, continued circularly, and its first byte.

    codes uint8 [bytes, columns]; edges of the segments; tails uint8 [segments, 8, columns], zeroed;
    inner int64 [segments].
    """
    for segment in range(edges.shape[0] - 1):
        base = edges[segment] * bits >> 3
        length = (edges[segment + 1] - edges[segment]) * bits
        first = max(0, (length >> 3) - 2)
        inner[segment] = base + first
        for byte in range(tails.shape[1]):
            tail = tails[segment, byte]
            if length & 7 == 0:
                tail[:] = codes[base + (first + byte) % (length >> 3)]
                continue
            for bit in range(8):
                place = ((first + byte) * 8 + bit) % length
                line, shift = codes[base + (place >> 3)], np.uint8(place & 7)
                for column in range(codes.shape[1]):
                    tail[column] |= np.uint8(((line[column] >> shift) & np.uint8(1)) << bit)


@njit(nogil=True, cache=True)
def decode_row(
    codes: Array,
    tails: Array,
    inner: Array,
    table: Array,
    bits: int,
    state_bits: int,
    row: int,
    out: Array,
    place: int,
) -> None:
    """Writes the levels of one row to the data of out, int8 or int16, from `place` on.

    Rows whose window starts before byte `inner` of their segment read `codes`; the tail of the
    segment begins there for the others. The table is that of `turned`.
    """
    columns = codes.shape[1]
    bit = row * bits
    segment = min(row >> 8, inner.shape[0] - 1)
    byte, shift = bit >> 3, bit & 7
    left, right = np.int32(32 - shift - state_bits), np.int32(32 - state_bits)
    whole = columns // LANES * LANES
    if byte < inner[segment]:
        start = byte * columns
        for column in range(0, whole, LANES):
            _look_up(out, place + column, codes, start + column, columns, table, left, right)
    else:
        start = (segment * TAIL + byte - inner[segment]) * columns
        for column in range(0, whole, LANES):
            _look_up(out, place + column, tails, start + column, columns, table, left, right)
    if whole == columns:
        return
    flat, half = out.reshape(-1), 1 << (state_bits - 1)
    for column in range(whole, columns):
        window = 0
        for index in range(3):
            if byte < inner[segment]:
                piece = np.int64(codes[byte + index, column])
            else:
                piece = np.int64(tails[segment, byte - inner[segment] + index, column])
            window |= piece << 8 * index
        flat[place + column] = table[((window >> shift) + half) & (2 * half - 1)]


@njit(nogil=True, cache=True)
def decode_rows(
    codes: Array,
    tails: Array,
    inner: Array,
    table: Array,
    bits: int,
    state_bits: int,
    out: Array,
    first: int,
    last: int,
) -> None:
    """Writes rows first..last-1 of out int8 [rows, columns]; see `decode_row`."""
    for row in range(first, last):
        decode_row(codes, tails, inner, table, bits, state_bits, row, out, row * out.shape[1])
