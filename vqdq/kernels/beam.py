"""The beam search of additive codes, compiled: rows of 256 candidates at a time, in integers.

|q + c|² − 2x·(q + c) grows by |c|² − 2x·c + 2q·c when the codeword c joins the partial sum q. The
first two terms are computed once per vector, q·c is a sum of rows of precomputed Gram tables: no
dot product inside the search.
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

CODEWORDS = 256
LANES = 16  # candidates compared with the worst survivor at once
_NO_LIMIT = np.int32(2**31 - 1)


@intrinsic
def _compare(_typing: Any, costs: Any, start: Any, limit: Any) -> Any:
    """Returns the bits of the lanes of costs[start:start+16] below the limit, int64."""
    signature = types.int64(costs, start, limit)

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), LANES)
        data = context.make_array(call.args[0])(context, b, args[0]).data
        loaded = b.load(b.bitcast(b.gep(data, [args[1]]), vector.as_pointer()))
        loaded.align = 4
        empty = ir.Constant(vector, ir.Undefined)
        single = b.insert_element(empty, args[2], ir.Constant(ir.IntType(32), 0))
        limits = b.shuffle_vector(single, empty, ir.Constant(vector, [0] * LANES))
        bits = b.bitcast(b.icmp_signed("<", loaded, limits), ir.IntType(LANES))
        return b.zext(bits, ir.IntType(64))

    return signature, generate


@intrinsic
def _trailing_zeros(_typing: Any, _bits: Any) -> Any:
    """Returns the place of the lowest set bit of a positive int64."""

    def generate(_context: Any, b: Any, _call: Any, args: Any) -> Any:
        return b.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


_below: Any = _compare  # the decorator hides the first parameter from callers
_lowest: Any = _trailing_zeros


@njit(nogil=True, cache=True)
def gram_tables(books: Array, gram: Array) -> None:
    """Fills gram int32 [M, M, 256, 256] with 2·(codeword a of m)·(codeword b of n) for m < n."""
    for first in range(books.shape[0]):
        for second in range(first + 1, books.shape[0]):
            for a in range(CODEWORDS):
                for b in range(CODEWORDS):
                    total = np.int32(0)
                    for d in range(books.shape[2]):
                        total += np.int32(books[first, a, d]) * np.int32(books[second, b, d])
                    gram[first, second, a, b] = np.int32(2) * total


@njit(nogil=True, cache=True)
def encode_vectors(
    vectors: Array, books: Array, gram: Array, beam: int, codes: Array, first: int, last: int
) -> None:
    """Writes codes uint8 [n, M] of vectors first..last-1; see `reference.additive_encode`."""
    count, dim = books.shape[0], books.shape[2]
    columns = np.empty((count, dim, CODEWORDS), np.float32)  # dot products below 2**24: exact
    power = np.empty((count, CODEWORDS), np.int32)
    for m in range(count):
        for a in range(CODEWORDS):
            total = np.int32(0)
            for d in range(dim):
                value = np.int32(books[m, a, d])
                total += value * value
                columns[m, d, a] = np.float32(-2 * value)
            power[m, a] = total
    dots = np.empty(CODEWORDS, np.float32)
    base = np.empty((count, CODEWORDS), np.int32)
    grown = np.empty(CODEWORDS, np.int32)
    costs = np.empty(beam, np.int32)
    names = np.empty(beam, np.int64)
    old_costs = np.empty(beam, np.int32)
    history = np.empty((beam, count), np.int64)
    old_history = np.empty((beam, count), np.int64)
    for index in range(first, last):
        for m in range(count):
            dots[:] = np.float32(0)
            for d in range(dim):
                x, line = np.float32(vectors[index, d]), columns[m, d]
                for a in range(CODEWORDS):
                    dots[a] += x * line[a]
            for a in range(CODEWORDS):
                base[m, a] = power[m, a] + np.int32(dots[a])
        parents = 1
        old_costs[0] = np.int32(0)
        for m in range(count):
            width = 1 if m == count - 1 else min(beam, parents * CODEWORDS)
            kept = 0
            for parent in range(parents):
                offset, row = old_costs[parent], base[m]
                for a in range(CODEWORDS):
                    grown[a] = row[a] + offset
                for earlier in range(m):
                    table = gram[earlier, m, old_history[parent, earlier]]
                    for a in range(CODEWORDS):
                        grown[a] += table[a]
                for start in range(0, CODEWORDS, LANES):
                    below = _below(grown, start, costs[kept - 1] if kept == width else _NO_LIMIT)
                    while below:
                        a = start + _lowest(below)
                        below &= below - 1
                        cost = grown[a]
                        if kept == width and cost >= costs[kept - 1]:
                            continue
                        place = kept if kept < width else kept - 1
                        kept = place + 1
                        while place > 0 and costs[place - 1] > cost:
                            costs[place], names[place] = costs[place - 1], names[place - 1]
                            place -= 1
                        costs[place], names[place] = cost, parent * CODEWORDS + a
            for slot in range(kept):
                parent = names[slot] // CODEWORDS
                for earlier in range(m):
                    history[slot, earlier] = old_history[parent, earlier]
                history[slot, m] = names[slot] % CODEWORDS
            for slot in range(kept):
                old_costs[slot] = costs[slot]
                for earlier in range(m + 1):
                    old_history[slot, earlier] = history[slot, earlier]
            parents = kept
        for m in range(count):
            codes[index, m] = np.uint8(old_history[0, m])


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
