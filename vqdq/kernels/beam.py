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
from numba.extending import intrinsic

Array: TypeAlias = npt.NDArray[Any]

LANES = 16  # candidates compared with the worst survivor at once
LARGEST = 768  # of targets and codewords: six standard deviations
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
    """Fills gram int32 [M, M, K, K] with 2·(codeword a of m)·(codeword b of n) for m < n.

    Products are below 2**20 and their sums below 2**24: exact in float32, which vectorises.
    """
    count, words, dim = books.shape
    lines = np.empty((dim, words), np.float32)
    total = np.empty(words, np.float32)
    for second in range(1, count):
        for b in range(words):
            for d in range(dim):
                lines[d, b] = np.float32(2 * np.int32(books[second, b, d]))
        for first in range(second):
            for a in range(words):
                total[:] = np.float32(0)
                for d in range(dim):
                    factor, line = np.float32(books[first, a, d]), lines[d]
                    for b in range(words):
                        total[b] += factor * line[b]
                row = gram[first, second, a]
                for b in range(words):
                    row[b] = np.int32(total[b])


@njit(nogil=True, cache=True)
def encode_vectors(
    vectors: Array, books: Array, gram: Array, beam: int, codes: Array, first: int, last: int
) -> None:
    """Writes codes uint8 [n, M] of vectors first..last-1; see `reference.additive_encode`."""
    count, words, dim = books.shape
    columns = np.empty((count, dim, words), np.float32)  # dot products below 2**24: exact
    power = np.empty((count, words), np.int32)
    for m in range(count):
        for a in range(words):
            total = np.int32(0)
            for d in range(dim):
                value = np.int32(books[m, a, d])
                total += value * value
                columns[m, d, a] = np.float32(-2 * value)
            power[m, a] = total
    dots = np.empty(words, np.float32)
    base = np.empty((count, words), np.int32)
    grown = np.empty(words, np.int32)
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
                for a in range(words):
                    dots[a] += x * line[a]
            for a in range(words):
                base[m, a] = power[m, a] + np.int32(dots[a])
        parents = 1
        old_costs[0] = np.int32(0)
        for m in range(count):
            width = 1 if m == count - 1 else min(beam, parents * words)
            kept = 0
            for parent in range(parents):
                offset, row = old_costs[parent], base[m]
                for a in range(words):
                    grown[a] = row[a] + offset
                for earlier in range(m):
                    table = gram[earlier, m, old_history[parent, earlier]]
                    for a in range(words):
                        grown[a] += table[a]
                for start in range(0, words, LANES):
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
                        costs[place], names[place] = cost, parent << 8 | a
            for slot in range(kept):
                parent = names[slot] >> 8
                for earlier in range(m):
                    history[slot, earlier] = old_history[parent, earlier]
                history[slot, m] = names[slot] & 255
            for slot in range(kept):
                old_costs[slot] = costs[slot]
                for earlier in range(m + 1):
                    old_history[slot, earlier] = history[slot, earlier]
            parents = kept
        for m in range(count):
            codes[index, m] = np.uint8(old_history[0, m])


@njit(nogil=True, cache=True)
def feedback_groups(
    targets: Array,
    errors: Array,
    weight: Array,
    unit: Array,
    metric: Array,
    plain: Array,
    seen: Array,
    gram: Array,
    beam: int,
    codes: Array,
    start: int,
    first: int,
    last: int,
) -> None:
    """Encodes the groups of one block of columns for rows first..last-1, each in its metric.

    Args:
        targets: float32 [rows, columns], the weight plus what is fed back from columns < start.
        errors: float32 [rows, columns]; weight − decoded is written for the block's columns.
        weight: float32 [rows, columns] in grid units; `unit`: see `kernels.additive_feedback`.
        metric: float32 [g, dim, dim] of the block's g groups; `plain`: int16 [M, K, dim].
        seen: int16 [g, M, K, dim], codebooks under each metric; `gram`: int32 [g, M, M, K, K].
        codes: uint8 [rows, columns/dim, M]; `start`: first column of the block.
    """
    count, dim = plain.shape[0], plain.shape[2]
    end = start + len(metric) * dim
    wanted = np.empty((last - first, dim), np.int16)
    picked = np.empty((last - first, count), np.uint8)
    for group in range(len(metric)):
        place = start + group * dim
        for row in range(first, last):
            for b in range(dim):
                total = np.float32(0)
                for a in range(dim):
                    total += targets[row, place + a] * metric[group, a, b]
                total = min(max(np.rint(total), np.float32(-LARGEST)), np.float32(LARGEST))
                wanted[row - first, b] = np.int16(total)
        # a literal 0 is a type of its own to numba, which would compile the search once more for it
        start_row: Any = np.int64(0)
        encode_vectors(wanted, seen[group], gram[group], beam, picked, start_row, last - first)
        for row in range(first, last):
            for m in range(count):
                codes[row, place // dim, m] = picked[row - first, m]
            for d in range(dim):
                decoded = np.int32(0)
                for m in range(count):
                    decoded += np.int32(plain[m, picked[row - first, m], d])
                errors[row, place + d] = weight[row, place + d] - np.float32(decoded)
        feed_back(targets, errors, unit, place, place + dim, place + dim, end, first, last)


@njit(nogil=True, cache=True)
def feed_back(
    targets: Array,
    errors: Array,
    unit: Array,
    begin: int,
    end: int,
    left: int,
    right: int,
    first: int,
    last: int,
) -> None:
    """Adds Σ errors[:, k]·unit[k, j], k = begin..end-1 in order, to columns left..right-1.

    Every sum is taken in the order of k by IEEE operations, so cutting rows, columns or k into
    pieces changes no bit. end − begin is a multiple of 4.
    """
    for row in range(first, last):
        for k in range(begin, end, 4):
            line = targets[row, left:right]
            e0, e1 = errors[row, k], errors[row, k + 1]
            e2, e3 = errors[row, k + 2], errors[row, k + 3]
            u0, u1 = unit[k, left:right], unit[k + 1, left:right]
            u2, u3 = unit[k + 2, left:right], unit[k + 3, left:right]
            for j in range(right - left):
                line[j] = (((line[j] + e0 * u0[j]) + e1 * u1[j]) + e2 * u2[j]) + e3 * u3[j]
