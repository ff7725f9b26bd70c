"""The Viterbi search of the trellis, compiled: sixteen states of one column side by side.

Sixteen neighbouring overlaps of the next row are settled at once. With the table dealt out once to
[target block][choice][lane], each of the 2**bits ways that lead there is one load, one multiply-add
of 16-bit pairs and one minimum; the costs of the row before are split by choice in registers and
serve all targets that follow them. LLVM does not find this shape by itself. It is portable (LLVM
cuts the vectors to what the machine has), and every number is an integer, so the bits are the same
everywhere.

One core of a 2-core AVX-512 server, shared with other work: 12.6, 5.2, 0.9 and 0.2 M weights/s at
L = 10, 12, 14 and 16 (k = 3, everything of the codec included; 4.1 at L = 12 with error feedback).
A C encoder measured elsewhere reached 9.5 and 2.5 at L = 10 and 12, so there is none here: LLVM
compiles these vector instructions to what C would be, in 2 to 3 seconds a shape, once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from vqdq.kernels import rounding
from vqdq.kernels.trellis_reference import SHORT_PASSES, SHORT_ROWS

Array: TypeAlias = npt.NDArray[Any]
Form: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

LANES = 16
FINENESS = 8  # targets are given in 1/8 of a table step
_INT, _LONG = ir.IntType(32), ir.IntType(64)
_INTS, _BYTES = ir.VectorType(_INT, LANES), ir.VectorType(ir.IntType(8), LANES)
_SHORTS, _PRODUCTS = ir.VectorType(ir.IntType(16), 2 * LANES), ir.VectorType(_INT, 2 * LANES)
_BLOCK = 128  # columns between two rounds of feeding forward
_FAR = 1 << 29  # the cost of a start that is not allowed; no path gathers as much


def form(bits: int, states: int) -> Form:
    """Returns the shape of the search as tuple lengths: numba compiles one kernel for each.

    The first is as long as the choice has bits, the second as log2 of the runs in one vector.
    """
    runs = min(states >> 2 * bits, LANES)
    return (0,) * bits, (0,) * (runs.bit_length() - 1)


def dealt(table: Array, bits: int) -> Array:
    """Returns int8 [states] as the pairs (2**(bits+1)·v, v²), int32 [target block, choice, lane].

    Multiplied by the pair (-x, 8·2**bits) of a target x in 1/8 steps and added up, that is
    8·2**bits·((v - x/8)² - (x/8)²).
    """
    values = table.astype(np.int32)
    pairs = (values * values << 16) | ((values << (bits + 1)) & 0xFFFF)
    return np.ascontiguousarray(pairs.reshape(-1, LANES, 1 << bits).transpose(0, 2, 1)).reshape(-1)


def _lanes(values: Any) -> ir.Constant:
    return ir.Constant(_INTS, list(values))


def _split(b: Any, vectors: list[Any], bits: int, made: dict[Any, Any]) -> list[Any]:
    """Returns 2**bits vectors; number c holds the elements at c, c + 2**bits, c + 2·2**bits, …"""
    if bits == 0:
        return vectors
    halves: list[list[Any]] = []
    for odd in (0, 1):
        half: list[Any] = []
        for first, second in zip(vectors[::2], vectors[1::2], strict=True):
            key = (id(first), id(second), odd)
            if key not in made:  # few runs repeat in the lanes, and so do their shuffles
                made[key] = b.shuffle_vector(first, second, _lanes(range(odd, 2 * LANES, 2)))
            half.append(made[key])
        halves.append(_split(b, half, bits - 1, made))
    return [vector for pair in zip(*halves, strict=True) for vector in pair]


@intrinsic
def _settle(
    _typing: Any,
    cost: Any,
    chosen: Any,
    old: Any,
    table: Any,
    pair: Any,
    group: Any,
    groups: Any,
    choices: Any,
    width: Any,
) -> Any:
    """Settles every overlap of the next row that follows the old costs of one group of runs.

    Writes the new costs (int32) and what was chosen (uint8, the bits that leave the window). Costs
    are multiples of 2**bits plus a tag, the low bits of their overlap, so one minimum finds both;
    they are kept relative to the first overlap of the row before.
    """
    signature = types.void(cost, chosen, old, table, pair, group, groups, choices, width)
    bits = choices.count
    count, mask = 1 << bits, (1 << bits) - 1
    loaded = count * (1 << width.count) // LANES  # vectors of old costs in a group

    def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
        cost, chosen, old, table = (
            context.make_array(kind)(context, b, value)
            for kind, value in zip(call.args[:4], args[:4], strict=True)
        )
        pair, group, groups = args[4:7]
        empty = ir.Constant(_INTS, ir.Undefined)

        def times(index: Any, size: int) -> Any:
            return b.mul(index, ir.Constant(_LONG, size))

        def place(array: Any, index: Any, kind: Any) -> Any:
            return b.bitcast(b.gep(array.data, [index]), kind.as_pointer())

        def load(array: Any, start: Any, number: int) -> Any:
            index = b.add(start, ir.Constant(_LONG, LANES * number))
            found = b.load(place(array, index, _INTS))
            found.align = 4
            return found

        def broadcast(scalar: Any) -> Any:
            first = b.insert_element(empty, scalar, ir.Constant(_INT, 0))
            return b.shuffle_vector(first, empty, _lanes([0] * LANES))

        def smaller(first: Any, second: Any) -> Any:
            return b.select(b.icmp_signed("<", first, second), first, second)

        base = broadcast(b.load(b.gep(old.data, [ir.Constant(_LONG, 0)])))
        start = times(group, count * LANES)
        row = [b.sub(load(old, start, number), base) for number in range(loaded)]
        before = _split(b, [row[number % loaded] for number in range(count)], bits, {})
        factors = b.sext(b.bitcast(broadcast(pair), _SHORTS), _PRODUCTS)
        nothing = ir.Constant(_PRODUCTS, ir.Undefined)
        overlaps = cgutils.unpack_tuple(b, cost.shape, 1)[0]
        with cgutils.for_range(b, b.udiv(overlaps, times(groups, LANES)), intp=_LONG) as loop:
            block = b.add(group, b.mul(loop.index, groups))
            target, states = times(block, LANES), times(block, LANES * count)
            best: list[Any] = []
            for choice in range(count):
                entry = b.bitcast(load(table, states, choice), _SHORTS)
                product = b.mul(b.sext(entry, _PRODUCTS), factors)
                even = b.shuffle_vector(product, nothing, _lanes(range(0, 2 * LANES, 2)))
                odd = b.shuffle_vector(product, nothing, _lanes(range(1, 2 * LANES, 2)))
                best.append(b.add(b.add(even, odd), before[choice]))
                left = choice + 1
                while left % 2 == 0:  # a tree of minima, folded as soon as it can be
                    best.append(smaller(best.pop(), best.pop()))
                    left //= 2
            picked = b.and_(best[0], _lanes([mask] * LANES))
            b.store(b.trunc(picked, _BYTES), place(chosen, target, _BYTES)).align = 1
            tags: Any = _lanes(lane & mask for lane in range(LANES))
            if mask >= LANES:
                high = b.and_(b.trunc(target, _INT), ir.Constant(_INT, mask))
                tags = b.or_(tags, broadcast(high))
            tagged = b.or_(b.and_(best[0], _lanes([~mask] * LANES)), tags)
            b.store(tagged, place(cost, target, _INTS)).align = 4
        return context.get_dummy_value()

    return signature, generate


_settle_group: Any = _settle  # the decorator hides the first parameter from callers


@njit(nogil=True, cache=True)
def _forward(
    pairs: Array,
    table: Array,
    cost: Array,
    other: Array,
    decisions: Array,
    choices: tuple[int, ...],
    width: tuple[int, ...],
) -> tuple[Array, int]:
    """Runs all rows; returns the final costs, tags included, and what they are relative to."""
    groups = max(1, (cost.shape[0] >> len(choices)) // LANES)
    total = 0
    for row in range(pairs.shape[0]):
        total += int(cost[0])
        chosen, pair = decisions[row], pairs[row]
        for group in range(groups):
            _settle_group(other, chosen, cost, table, pair, group, groups, choices, width)
        cost, other = other, cost
    return cost, total


@njit(nogil=True, cache=True)
def _held(
    seam: int,
    pairs: Array,
    table: Array,
    cost: Array,
    other: Array,
    decisions: Array,
    choices: tuple[int, ...],
    width: tuple[int, ...],
) -> int:
    """Runs all rows from the overlap `seam` and returns what it costs to end there again."""
    tags = (1 << len(choices)) - 1
    for overlap in range(cost.shape[0]):
        cost[overlap] = _FAR + (overlap & tags)
    cost[seam] = seam & tags
    ends, total = _forward(pairs, table, cost, other, decisions, choices, width)
    return int(total + np.int64(ends[seam] & ~tags))


@njit(nogil=True, cache=True)
def _search(
    targets: Array,
    values: Array,
    table: Array,
    side: int,
    cost: Array,
    other: Array,
    decisions: Array,
    codes: Array,
    levels: Array,
    choices: tuple[int, ...],
    width: tuple[int, ...],
) -> None:
    """Writes the stream of one segment of one column and the levels that it stands for.

    targets int32 [rows] in 1/8 steps, clamped; values int8 [states] and what `dealt` made of them;
    side: rows of the seam window; cost, other: int32 [overlaps]; decisions uint8 [max(rows,
    2*side), overlaps]; codes uint8 [ceil(rows*bits/8)], zeroed; levels float32 [rows].
    """
    bits, rows, overlaps = len(choices), targets.shape[0], cost.shape[0]
    mask, choice_mask = overlaps - 1, (1 << bits) - 1
    pairs = np.empty(rows, np.int32)
    window = np.empty(2 * side, np.int32)
    for row in range(rows):
        pairs[row] = np.int32((FINENESS << bits) << 16 | (-targets[row] & 0xFFFF))
    for row in range(2 * side):
        window[row] = pairs[(row - side) % rows]
    for overlap in range(overlaps):
        cost[overlap] = overlap & choice_mask
    ends, _ = _forward(window, table, cost, other, decisions, choices, width)
    least = ends[0]
    for overlap in range(overlaps):
        least = min(least, ends[overlap] & ~choice_mask)
    seam = 0
    while ends[seam] & ~choice_mask != least:
        seam += 1
    for row in range(2 * side - 1, side - 1, -1):
        seam = ((seam << bits) | np.int64(decisions[row, seam])) & mask
    least_cost = _held(seam, pairs, table, cost, other, decisions, choices, width)
    if rows < SHORT_ROWS and overlaps * rows <= SHORT_PASSES:
        for overlap in range(overlaps):
            found = _held(overlap, pairs, table, cost, other, decisions, choices, width)
            if found < least_cost:
                least_cost, seam = found, overlap
        _held(seam, pairs, table, cost, other, decisions, choices, width)
    for row in range(rows - 1, -1, -1):
        place = row * bits
        picked = np.int64(decisions[row, seam])
        state = (seam << bits) | picked
        levels[row] = np.float32(values[state])
        seam = state & mask
        shifted = picked << (place & 7)
        codes[place >> 3] |= np.uint8(shifted & 255)
        if shifted > 255:
            codes[(place >> 3) + 1] |= np.uint8(shifted >> 8)


@njit(nogil=True, cache=True)
def encode_columns(
    targets: Array,
    values: Array,
    table: Array,
    edges: Array,
    side: int,
    limit: int,
    codes: Array,
    first: int,
    last: int,
    choices: tuple[int, ...],
    width: tuple[int, ...],
) -> None:
    """Writes the codes of columns first..last-1; see `reference.trellis_encode`.

    targets int16 [rows, columns]; values int8 [states] and what `dealt` made of them; edges of the
    segments int64; side: rows of the seam window; limit of the targets; codes uint8 [bytes,
    columns].
    """
    bits = len(choices)
    overlaps = values.shape[0] >> bits
    longest = edges[-1] - edges[-2]
    cost, other = np.empty(overlaps, np.int32), np.empty(overlaps, np.int32)
    decisions = np.empty((max(longest, 2 * side), overlaps), np.uint8)
    x, levels = np.empty(longest, np.int32), np.empty(longest, np.float32)
    stream = np.empty((longest * bits + 7) >> 3, np.uint8)
    for column in range(first, last):
        for segment in range(edges.shape[0] - 1):
            start, rows = edges[segment], edges[segment + 1] - edges[segment]
            for row in range(rows):
                x[row] = min(max(np.int32(targets[start + row, column]), -limit), limit)
            used = (rows * bits + 7) >> 3
            stream[:used] = 0
            _search(
                x[:rows], values, table, side, cost, other, decisions, stream, levels,
                choices, width,
            )  # fmt: skip
            for byte in range(used):
                codes[(start * bits >> 3) + byte, column] = stream[byte]


@njit(nogil=True, cache=True)
def encode_fed(
    targets: Array,
    weight: Array,
    errors: Array,
    sizes: Array,
    per_unit: Array,
    unit: Array,
    values: Array,
    table: Array,
    edges: Array,
    side: int,
    limit: int,
    codes: Array,
    first: int,
    last: int,
    choices: tuple[int, ...],
    width: tuple[int, ...],
) -> None:
    """Writes the codes of segments first..last-1, column after column with error feedback.

    Args:
        targets: float32 [columns, rows], the weight; overwritten by what is rounded.
        weight: float32 [columns, rows]; `errors`: float32 [columns, rows], written.
        sizes, per_unit: float32 [rows], a table step and 8 over it (0 for a step of 0).
        unit: float32 [columns, columns].

    The others: see `encode_columns`; the arithmetic is that of `reference.trellis_feedback`.
    """
    bits = len(choices)
    overlaps, columns = values.shape[0] >> bits, weight.shape[0]
    longest = edges[-1] - edges[-2]
    cost, other = np.empty(overlaps, np.int32), np.empty(overlaps, np.int32)
    decisions = np.empty((max(longest, 2 * side), overlaps), np.uint8)
    x, levels = np.empty(longest, np.int32), np.empty(longest, np.float32)
    stream = np.empty((longest * bits + 7) >> 3, np.uint8)
    top = np.float32(limit)
    for segment in range(first, last):
        start, stop = edges[segment], edges[segment + 1]
        rows = stop - start
        used = (rows * bits + 7) >> 3
        for begin in range(0, columns, _BLOCK):
            end = min(begin + _BLOCK, columns)
            rounding.feed_forward(
                targets[begin:end], errors[:begin], unit[:begin, begin:end], start, stop
            )
            for column in range(begin, end):
                wanted, error = targets[column, start:stop], errors[column, start:stop]
                for row in range(rows):
                    place = np.rint(wanted[row] * per_unit[start + row])
                    place = place if place == place else np.float32(0)  # 0 * inf
                    x[row] = np.int32(min(max(place, -top), top))
                stream[:used] = 0
                _search(
                    x[:rows], values, table, side, cost, other, decisions, stream, levels,
                    choices, width,
                )  # fmt: skip
                for byte in range(used):
                    codes[(start * bits >> 3) + byte, column] = stream[byte]
                source = weight[column, start:stop]
                for row in range(rows):
                    error[row] = source[row] - levels[row] * sizes[start + row]
                for later in range(column + 1, end):
                    share, moved = unit[column, later], targets[later, start:stop]
                    for row in range(rows):
                        moved[row] = moved[row] + error[row] * share
