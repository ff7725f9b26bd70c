"""From trellis codes to a float weight in one pass, compiled: look up, turn back, scale.

A row of levels stays in the first cache as int16, whose Hadamard sums are exact (256 levels of at
most 127) and twice as many to a vector as floats; a block is transformed in registers. One pass
instead of four (levels, scaling, transform, signs) is 3 to 4 times faster.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from vqdq.kernels import lookup

Array: TypeAlias = npt.NDArray[Any]
LANES = 32
_INT, _SHORT = ir.IntType(32), ir.IntType(16)
_SHORTS = ir.VectorType(_SHORT, LANES)
_HALF_INTS, _HALF_SHORTS = ir.VectorType(_INT, 16), ir.VectorType(_SHORT, 16)
_FLOATS = ir.VectorType(ir.FloatType(), 16)


def _mixed(b: Any, values: Any, stride: int) -> Any:
    """Returns a + b where a lane has no `stride` in its number, and a - b where it has."""
    places = [lane ^ stride for lane in range(LANES)]
    swapped = b.shuffle_vector(
        values, ir.Constant(_SHORTS, ir.Undefined), ir.Constant(ir.VectorType(_INT, LANES), places)
    )
    upper = [int(bool(lane & stride)) for lane in range(LANES)]
    chosen = ir.Constant(ir.VectorType(ir.IntType(1), LANES), upper)
    return b.select(chosen, b.sub(swapped, values), b.add(swapped, values))


@intrinsic
def _turn(
    _typing: Any,
    out: Any,
    levels: Any,
    signs: Any,
    column: Any,
    factor: Any,
    block: Any,
) -> Any:
    """Sets out[column:column+n] to factor * signs * the Hadamard sums of the levels from column on.

    The block is 2 to the power of the length of the tuple `block`; n is the block, at least 32.
    """
    signature = types.void(out, levels, signs, column, factor, block)
    size = 1 << block.count

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        column, factor = args[3:5]
        empty = ir.Constant(_FLOATS, ir.Undefined)
        first = b.insert_element(empty, factor, ir.Constant(_INT, 0))
        factors = b.shuffle_vector(first, empty, ir.Constant(_HALF_INTS, [0] * 16))

        def place(index: int, offset: int, kind: Any) -> Any:
            array = context.make_array(call.args[index])(context, b, args[index])
            start = b.add(column, ir.Constant(column.type, offset))
            return b.bitcast(b.gep(array.data, [start]), kind.as_pointer())

        def load(index: int, offset: int, kind: Any) -> Any:
            loaded = b.load(place(index, offset, kind))
            loaded.align = 2
            return loaded

        rows = [load(1, LANES * i, _SHORTS) for i in range(max(1, size // LANES))]
        stride = 1
        while stride < min(size, LANES):
            rows = [_mixed(b, row, stride) for row in rows]
            stride *= 2
        stride = 1
        while stride < len(rows):
            for start in range(len(rows)):
                if start & stride == 0:
                    low, high = rows[start], rows[start + stride]
                    rows[start], rows[start + stride] = b.add(low, high), b.sub(low, high)
            stride *= 2
        for number, row in enumerate(rows):
            for part in (0, 1):
                lanes = ir.Constant(_HALF_INTS, list(range(16 * part, 16 * part + 16)))
                half = b.shuffle_vector(row, ir.Constant(_SHORTS, ir.Undefined), lanes)
                wide = b.sitofp(b.sext(half, _HALF_INTS), _FLOATS)
                offset = LANES * number + 16 * part
                scaled = b.fmul(b.fmul(wide, factors), load(2, offset, _FLOATS))
                b.store(scaled, place(0, offset, _FLOATS)).align = 4
        return context.get_dummy_value()

    return signature, generate


_turn_block: Any = _turn  # the decorator hides the first parameter from callers


@njit(nogil=True, cache=True)
def decode_weight(
    codes: Array,
    tails: Array,
    inner: Array,
    table: Array,
    bits: int,
    state_bits: int,
    factors: Array,
    signs: Array,
    out: Array,
    first: int,
    last: int,
    block: tuple[int, ...],
) -> None:
    """Writes rows first..last-1 of out float32 [rows, columns].

    factors float32 [rows]: a table step over the root of the block; signs float32 [columns + 32],
    ±1; block: as many zeros as log2 of it. The others: see `lookup.decode_rows`.
    """
    columns = out.shape[1]
    step = max(1 << len(block), LANES)
    whole = columns // step * step
    levels = np.zeros(columns + LANES, np.int16)
    rest = np.empty(columns - whole + 2 * LANES, np.float32)
    for row in range(first, last):
        lookup.decode_row(codes, tails, inner, table, bits, state_bits, row, levels, 0)
        line, factor = out[row], factors[row]
        for column in range(0, whole, step):
            _turn_block(line, levels, signs, column, factor, block)
        if whole < columns:
            _turn_block(rest, levels[whole:], signs[whole:], 0, factor, block)
            line[whole:] = rest[: columns - whole]
