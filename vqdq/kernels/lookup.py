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


def emit_lookup(
    context: Any,
    b: Any,
    codes: Any,
    start: Any,
    columns: Any,
    table: Any,
    left: Any,
    right: Any,
) -> Any:
    """Emits the lookup of sixteen columns and returns it in the low bytes of 16 int32.

    The bytes of a column are at start, start + columns and start + 2*columns of the data. A window
    is shifted left until it ends at bit 31, then right until it is a signed state. Places in the
    data instead of rows: every row that numba takes from an array is counted twice. `codes` and
    `table` are pairs of a type and a value.
    """

    def at(array: tuple[Any, Any], place: Any, kind: Any) -> Any:
        data = context.make_array(array[0])(context, b, array[1]).data
        return b.bitcast(b.gep(data, [place]), kind.as_pointer())

    def load(number: int) -> Any:
        step = b.mul(columns, ir.Constant(_LONG, number))
        loaded = b.load(at(codes, b.add(start, step), _BYTES))
        loaded.align = 1
        return b.shl(b.zext(loaded, _INTS), ir.Constant(_INTS, [8 * number] * LANES))

    def broadcast(scalar: Any) -> Any:
        empty = ir.Constant(_INTS, ir.Undefined)
        single = b.insert_element(empty, scalar, ir.Constant(_INT, 0))
        return b.shuffle_vector(single, empty, ir.Constant(_INTS, [0] * LANES))

    window = b.or_(b.or_(load(0), load(1)), load(2))
    state = b.ashr(b.shl(window, broadcast(left)), broadcast(right))
    down = b.zext(b.sub(ir.Constant(_INT, 31), right), _LONG)
    middle = at(table, b.shl(ir.Constant(_LONG, 1), down), _BYTE)
    places = b.gep(middle, [b.sext(state, _LONGS)], source_etype=_BYTE)
    places.type = _POINTERS  # llvmlite does not know indices that are vectors
    gather = cgutils.get_or_insert_function(
        b.module,
        ir.FunctionType(_INTS, [_POINTERS, _INT, _MASK, _INTS]),
        f"llvm.masked.gather.v{LANES}i32.v{LANES}p0",
    )
    every, nothing = ir.Constant(_MASK, [1] * LANES), ir.Constant(_INTS, ir.Undefined)
    return b.call(gather, [places, ir.Constant(_INT, 1), every, nothing])


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
    """Sets out[place:place+16] to the levels of sixteen columns; see `emit_lookup`."""
    signature = types.void(out, place, codes, start, columns, table, left, right)

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        sources = (call.args[2], args[2]), args[3], args[4], (call.args[5], args[5])
        found = emit_lookup(context, b, *sources, args[6], args[7])
        data = context.make_array(call.args[0])(context, b, args[0]).data
        place = b.bitcast(b.gep(data, [args[1]]), _BYTES.as_pointer())
        b.store(b.trunc(found, _BYTES), place).align = 1
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
def window_of(row: int, bits: int, inner: Array) -> tuple[int, int, int]:
    """Returns segment, byte and bit where the window of a row starts.

    A byte that is not negative is one of the codes; -1 - n is number n of the segment's tail.
    """
    bit = row * bits
    segment = min(row >> 8, inner.shape[0] - 1)
    byte = bit >> 3
    if byte >= inner[segment]:
        byte = inner[segment] - byte - 1
    return segment, byte, bit & 7


@njit(nogil=True, cache=True)
def level(
    codes: Array, tails: Array, table: Array, segment: int, byte: int, shift: int, column: int
) -> int:
    """Returns one level, for the columns that are no whole vector; see `window_of`."""
    window = 0
    for index in range(3):
        if byte >= 0:
            piece = np.int64(codes[byte + index, column])
        else:
            piece = np.int64(tails[segment, index - byte - 1, column])
        window |= piece << 8 * index
    states = table.shape[0] - 3
    return int(table[((window >> shift) + states // 2) & (states - 1)])


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
    """Writes rows first..last-1 of out int8 [rows, columns].

    codes uint8 [bytes, columns]; tails and inner from `circular_tails`; table from `turned`.
    """
    columns = out.shape[1]
    whole = columns // LANES * LANES
    right = np.int32(32 - state_bits)
    for row in range(first, last):
        segment, byte, shift = window_of(row, bits, inner)
        left = np.int32(32 - shift - state_bits)
        place = row * columns
        if byte >= 0:
            start = byte * columns
            for column in range(0, whole, LANES):
                _look_up(out, place + column, codes, start + column, columns, table, left, right)
        else:
            start = (segment * TAIL - byte - 1) * columns
            for column in range(0, whole, LANES):
                _look_up(out, place + column, tails, start + column, columns, table, left, right)
        for column in range(whole, columns):
            out[row, column] = level(codes, tails, table, segment, byte, shift, column)
