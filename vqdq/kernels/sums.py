"""Sums of codewords, compiled: decoding additive codes, and the gradient of their codebooks."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Array: TypeAlias = npt.NDArray[Any]

CODEWORDS = 256  # codebooks of fewer codewords are padded


def _make_sum(dim: int) -> Any:
    """Returns an intrinsic that writes one scaled sum of codewords of `dim` values."""
    vector = ir.VectorType(ir.FloatType(), dim)

    @intrinsic
    def write_sum(
        _typing: Any, out: Any, place: Any, books: Any, codes: Any, at: Any, count: Any, scale: Any
    ) -> Any:
        signature = types.void(out, place, books, codes, at, count, scale)

        def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
            long = ir.IntType(64)

            def data(index: int) -> Any:
                return context.make_array(call.args[index])(context, b, args[index]).data

            line, table, names = data(0), data(2), data(3)
            _, place, _, _, at, count, scale = args
            total = cgutils.alloca_once_value(b, ir.Constant(vector, [0.0] * dim))
            with cgutils.for_range(b, count, intp=long) as loop:
                name = b.zext(b.load(b.gep(names, [b.add(at, loop.index)])), long)
                row = b.add(b.mul(loop.index, ir.Constant(long, CODEWORDS)), name)
                start = b.gep(table, [b.mul(row, ir.Constant(long, dim))])
                word = b.load(b.bitcast(start, vector.as_pointer()))
                word.align = 4
                b.store(b.fadd(b.load(total), word), total)
            empty = ir.Constant(vector, ir.Undefined)
            single = b.insert_element(empty, scale, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), dim), [0] * dim)
            scaled = b.fmul(b.load(total), b.shuffle_vector(single, empty, zeros))
            b.store(scaled, b.bitcast(b.gep(line, [place]), vector.as_pointer())).align = 4
            return context.get_dummy_value()

        return signature, generate

    return write_sum


_sum4, _sum8, _sum16 = _make_sum(4), _make_sum(8), _make_sum(16)


@njit(nogil=True, cache=True)
def decode_rows(
    codes: Array, books: Array, scales: Array, groups: int, out: Array, first: int, last: int
) -> None:
    """Writes rows first..last-1 of out float32 [rows, groups*dim]: the scaled sums of codewords.

    codes uint8 [rows*groups, M]; books float32 [M, 256, dim] with dim 4, 8 or 16.
    """
    count, dim = books.shape[0], books.shape[2]
    for row in range(first, last):
        line, scale = out[row], scales[row]
        for group in range(groups):
            place, at = group * dim, (row * groups + group) * count
            if dim == 8:
                _sum8(line, place, books, codes, at, count, scale)
            elif dim == 4:
                _sum4(line, place, books, codes, at, count, scale)
            else:
                _sum16(line, place, books, codes, at, count, scale)


def _make_turn(lanes: int, strides: tuple[int, ...]) -> Any:
    """Returns an intrinsic that rotates `lanes` vectors of 16 sums and scales them.

    `strides` are those below 16 that the codebooks have not been through already.
    """
    floats, ints = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)

    @intrinsic
    def turn(_typing: Any, line: Any, start: Any, signs: Any, scale: Any) -> Any:
        signature = types.void(line, start, signs, scale)

        def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
            def place(index: int, lane: int) -> Any:
                data = context.make_array(call.args[index])(context, b, args[index]).data
                shift = ir.Constant(ir.IntType(64), 16 * lane)
                return b.bitcast(b.gep(data, [b.add(args[1], shift)]), floats.as_pointer())

            def load(index: int, lane: int) -> Any:
                loaded = b.load(place(index, lane))
                loaded.align = 4
                return loaded

            values = [load(0, lane) for lane in range(lanes)]
            for stride in strides:
                other = ir.Constant(ints, [lane ^ stride for lane in range(16)])
                sign = [-1.0 if lane & stride else 1.0 for lane in range(16)]
                for lane, value in enumerate(values):
                    swapped = b.shuffle_vector(value, ir.Constant(floats, ir.Undefined), other)
                    values[lane] = b.fadd(b.fmul(value, ir.Constant(floats, sign)), swapped)
            stride = 1
            while stride < lanes:
                for lane in range(lanes):
                    if not lane & stride:
                        low, high = values[lane], values[lane | stride]
                        values[lane], values[lane | stride] = b.fadd(low, high), b.fsub(low, high)
                stride *= 2
            empty = ir.Constant(floats, ir.Undefined)
            single = b.insert_element(empty, args[3], ir.Constant(ir.IntType(32), 0))
            factor = b.shuffle_vector(single, empty, ir.Constant(ints, [0] * 16))
            for lane, value in enumerate(values):
                done = b.fmul(b.fmul(value, factor), load(2, lane))
                b.store(done, place(0, lane)).align = 4
            return context.get_dummy_value()

        return signature, generate

    return turn


_turn4_16, _turn4_32, _turn4_64, _turn4_128, _turn4_256 = (
    _make_turn(lanes, (4, 8)) for lanes in (1, 2, 4, 8, 16)
)
_turn8_16, _turn8_32, _turn8_64, _turn8_128, _turn8_256 = (
    _make_turn(lanes, (8,)) for lanes in (1, 2, 4, 8, 16)
)
_turn16_16, _turn16_32, _turn16_64, _turn16_128, _turn16_256 = (
    _make_turn(lanes, ()) for lanes in (1, 2, 4, 8, 16)
)


@njit(nogil=True, cache=True)
def decode_turned_rows(
    codes: Array,
    books: Array,
    scales: Array,
    groups: int,
    block: int,
    signs: Array,
    out: Array,
    first: int,
    last: int,
) -> None:
    """As `decode_rows`, then un-rotates blocks of 16 to 256 columns and multiplies by signs.

    books are those of the code after a Hadamard transform of their own dim values, so only the
    longer strides are left; sums stay in the cache in between. signs float32 [columns].
    """
    count, dim = books.shape[0], books.shape[2]
    one = np.float32(1)
    for row in range(first, last):
        line, scale = out[row], scales[row]
        for group in range(groups):
            place, at = group * dim, (row * groups + group) * count
            if dim == 8:
                _sum8(line, place, books, codes, at, count, one)
            elif dim == 4:
                _sum4(line, place, books, codes, at, count, one)
            else:
                _sum16(line, place, books, codes, at, count, one)
        for start in range(0, groups * dim, block):
            if dim == 8:
                if block == 16:
                    _turn8_16(line, start, signs, scale)
                elif block == 32:
                    _turn8_32(line, start, signs, scale)
                elif block == 64:
                    _turn8_64(line, start, signs, scale)
                elif block == 128:
                    _turn8_128(line, start, signs, scale)
                else:
                    _turn8_256(line, start, signs, scale)
            elif dim == 4:
                if block == 16:
                    _turn4_16(line, start, signs, scale)
                elif block == 32:
                    _turn4_32(line, start, signs, scale)
                elif block == 64:
                    _turn4_64(line, start, signs, scale)
                elif block == 128:
                    _turn4_128(line, start, signs, scale)
                else:
                    _turn4_256(line, start, signs, scale)
            elif block == 16:
                _turn16_16(line, start, signs, scale)
            elif block == 32:
                _turn16_32(line, start, signs, scale)
            elif block == 64:
                _turn16_64(line, start, signs, scale)
            elif block == 128:
                _turn16_128(line, start, signs, scale)
            else:
                _turn16_256(line, start, signs, scale)


@njit(nogil=True, cache=True)
def add_gradient(
    codes: Array, gradient: Array, scales: Array, total: Array, first: int, last: int
) -> None:
    """Adds scaled gradients to the codewords of codebooks first..last-1 that each vector uses.

    codes uint8 [rows*groups, M]; gradient float32 [rows, groups*dim]; total float64 [M, K, dim].
    """
    dim = total.shape[2]
    groups = gradient.shape[1] // dim
    for index in range(first, last):
        for row in range(gradient.shape[0]):
            scale = scales[row]
            for group in range(groups):
                word = total[index, codes[row * groups + group, index]]
                for d in range(dim):
                    word[d] += np.float64(gradient[row, group * dim + d] * scale)
