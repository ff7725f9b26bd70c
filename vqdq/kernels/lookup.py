"""Decoding a trellis, compiled: sixteen columns a step, their windows cut and looked up as vectors.

There is no recurrence: every weight is one lookup. A gather from an int32 table runs at 3.6 to 4.0
G weights/s a core (the same loop left to LLVM: 1.4), on a machine that other work shared.
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
ROWS = 256  # of a segment
_BIT, _INT, _LONG = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_INTS, _LONGS = ir.VectorType(_INT, LANES), ir.VectorType(_LONG, LANES)
_BYTES, _MASK = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(_BIT, LANES)
_POINTERS = ir.VectorType(_INT.as_pointer(), LANES)


@intrinsic
def _gather(
    _typing: Any,
    out: Any,
    first: Any,
    second: Any,
    third: Any,
    column: Any,
    table: Any,
    shift: Any,
    mask: Any,
) -> Any:
    """Sets out[column:column+16] to table[(three bytes of each column >> shift) & mask]."""
    signature = types.void(out, first, second, third, column, table, shift, mask)

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        def data(index: int) -> Any:
            return context.make_array(call.args[index])(context, b, args[index]).data

        def here(index: int) -> Any:
            return b.bitcast(b.gep(data(index), [args[4]]), _BYTES.as_pointer())

        def load(index: int, left: int) -> Any:
            loaded = b.load(here(index))
            loaded.align = 1
            return b.shl(b.zext(loaded, _INTS), ir.Constant(_INTS, [left] * LANES))

        def broadcast(scalar: Any, kind: Any) -> Any:
            empty = ir.Constant(kind, ir.Undefined)
            single = b.insert_element(empty, scalar, ir.Constant(_INT, 0))
            return b.shuffle_vector(single, empty, ir.Constant(_INTS, [0] * LANES))

        window = b.or_(b.or_(load(1, 0), load(2, 8)), load(3, 16))
        state = b.and_(b.lshr(window, broadcast(args[6], _INTS)), broadcast(args[7], _INTS))
        offset = b.shl(b.zext(state, _LONGS), ir.Constant(_LONGS, [2] * LANES))
        start = broadcast(b.ptrtoint(data(5), _LONG), _LONGS)
        gather = cgutils.get_or_insert_function(
            b.module,
            ir.FunctionType(_INTS, [_POINTERS, _INT, _MASK, _INTS]),
            f"llvm.masked.gather.v{LANES}i32.v{LANES}p0",
        )
        found = b.call(
            gather,
            [
                b.inttoptr(b.add(start, offset), _POINTERS),
                ir.Constant(_INT, 4),  # alignment of the table
                ir.Constant(_MASK, [1] * LANES),
                ir.Constant(_INTS, ir.Undefined),
            ],
        )
        b.store(b.trunc(found, _BYTES), here(0)).align = 1
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
def decode_rows(
    codes: Array,
    tails: Array,
    inner: Array,
    table: Array,
    bits: int,
    out: Array,
    first: int,
    last: int,
) -> None:
    """Writes rows first..last-1 of out int8 [rows, columns]; table int32 [states].

    Rows whose window starts before byte `inner` of their segment read `codes`; the tail of the
    segment begins there for the others.
    """
    mask = np.uint32(table.shape[0] - 1)
    whole = out.shape[1] // LANES * LANES
    for row in range(first, last):
        place = row * bits
        segment = min(row // ROWS, inner.shape[0] - 1)
        byte, shift = place >> 3, np.uint32(place & 7)
        source, start = codes, byte
        if byte >= inner[segment]:
            source, start = tails[segment], byte - inner[segment]
        a, b, c = source[start], source[start + 1], source[start + 2]
        line = out[row]
        for column in range(0, whole, LANES):
            _look_up(line, a, b, c, column, table, shift, mask)
        for column in range(whole, out.shape[1]):
            window = (
                np.uint32(a[column])
                | (np.uint32(b[column]) << np.uint32(8))
                | (np.uint32(c[column]) << np.uint32(16))
            )
            line[column] = np.int8(table[(window >> shift) & mask])
