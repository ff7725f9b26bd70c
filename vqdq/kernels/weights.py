"""From trellis codes to a float weight in one pass, compiled: look up, turn back, scale.

A block of levels is looked up and transformed in registers, in int16: its Hadamard sums are exact
(256 levels of at most 127), and a vector holds twice as many as of floats. One pass instead of four
(levels, scaling, transform, signs) is five times faster.
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
LANES = 16
_BIT, _SHORT, _INT, _LONG = (ir.IntType(width) for width in (1, 16, 32, 64))
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(ir.FloatType(), LANES)
_SHORTS = ir.VectorType(_SHORT, LANES)


def _shuffled(b: Any, first: Any, second: Any, places: list[int]) -> Any:
    return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, len(places)), places))


def _mixed(b: Any, values: Any, stride: int) -> Any:
    """Returns a + b where a lane has no `stride` in its number, and a - b where it has."""
    lanes = range(values.type.count)
    nothing = ir.Constant(values.type, ir.Undefined)
    swapped = _shuffled(b, values, nothing, [lane ^ stride for lane in lanes])
    upper = [int(bool(lane & stride)) for lane in lanes]
    chosen = ir.Constant(ir.VectorType(_BIT, len(upper)), upper)
    return b.select(chosen, b.sub(swapped, values), b.add(swapped, values))


def _transformed(b: Any, rows: list[Any], size: int) -> list[Any]:
    """Returns the Hadamard sums of blocks of `size` in vectors of int16 that follow one another."""
    lanes, stride = rows[0].type.count, 1
    while stride < min(size, lanes):
        rows = [_mixed(b, row, stride) for row in rows]
        stride *= 2
    stride = 1
    while stride < len(rows):
        for start in range(len(rows)):
            if start & stride == 0:
                low, high = rows[start], rows[start + stride]
                rows[start], rows[start + stride] = b.add(low, high), b.sub(low, high)
        stride *= 2
    return rows


@intrinsic
def _decode_block(
    _typing: Any,
    out: Any,
    place: Any,
    codes: Any,
    start: Any,
    columns: Any,
    table: Any,
    left: Any,
    right: Any,
    signs: Any,
    column: Any,
    factor: Any,
    block: Any,
) -> Any:
    """Writes factor * signs * the Hadamard sums of a block of levels to the data from `place` on.

    The block is 2 to the power of the length of the tuple `block`, and at least 16 columns are
    written. The lookup: see `lookup.emit_lookup`.
    """
    signature = types.void(
        out, place, codes, start, columns, table, left, right, signs, column, factor, block
    )
    size = 1 << block.count

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        def moved(index: int, offset: int) -> Any:
            return b.add(args[index], ir.Constant(_LONG, offset))

        def at(index: int, offset: int) -> Any:
            array = context.make_array(call.args[index])(context, b, args[index])
            return b.bitcast(b.gep(array.data, [moved(index + 1, offset)]), _FLOATS.as_pointer())

        rows: list[Any] = []
        for offset in range(0, max(size, LANES), LANES):
            sources = (call.args[2], args[2]), moved(3, offset), args[4], (call.args[5], args[5])
            found = lookup.emit_lookup(context, b, *sources, args[6], args[7])
            rows.append(b.sext(found, _SHORTS))
        if len(rows) > 1:  # as pairs in vectors of 32
            every = list(range(2 * LANES))
            rows = [
                _shuffled(b, low, high, every)
                for low, high in zip(rows[::2], rows[1::2], strict=True)
            ]
        empty = ir.Constant(_FLOATS, ir.Undefined)
        single = b.insert_element(empty, args[10], ir.Constant(_INT, 0))
        factors = b.shuffle_vector(single, empty, ir.Constant(_INTS, [0] * LANES))
        offset = 0
        for row in _transformed(b, rows, size):
            for part in range(0, row.type.count, LANES):
                lanes = list(range(part, part + LANES))
                half = _shuffled(b, row, ir.Constant(row.type, ir.Undefined), lanes)
                wide = b.sitofp(b.sext(half, _INTS), _FLOATS)
                sign = b.load(at(8, offset))
                sign.align = 4
                scaled = b.fmul(b.fmul(wide, factors), sign)
                b.store(scaled, at(0, offset)).align = 4
                offset += LANES
        return context.get_dummy_value()

    return signature, generate


_block: Any = _decode_block  # the decorator hides the first parameter from callers


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

    factors float32 [rows]: a table step over the root of the block; signs float32 [columns], ±1;
    block: as many zeros as log2 of it. The others: see `lookup.decode_rows`.
    """
    columns = out.shape[1]
    step = max(1 << len(block), LANES)
    whole = columns // step * step
    right = np.int32(32 - state_bits)
    for row in range(first, last):
        segment, byte, shift = lookup.window_of(row, bits, inner)
        left = np.int32(32 - shift - state_bits)
        place, factor = row * columns, factors[row]
        if byte >= 0:
            start = byte * columns
            for low in range(0, whole, step):
                _block(
                    out, place + low, codes, start + low, columns, table, left, right, signs, low,
                    factor, block,
                )  # fmt: skip
        else:
            start = (segment * lookup.TAIL - byte - 1) * columns
            for low in range(0, whole, step):
                _block(
                    out, place + low, tails, start + low, columns, table, left, right, signs, low,
                    factor, block,
                )  # fmt: skip
        for column in range(whole, columns):  # only without a rotation
            level = lookup.level(codes, tails, table, segment, byte, shift, column)
            out[row, column] = np.float32(level) * factor * signs[column]
