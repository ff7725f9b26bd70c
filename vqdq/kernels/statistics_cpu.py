"""Statistics of tensors by compiled loops: one pass, nothing copied; see `statistics`.

One thread: after a product the threads of torch wait for the next one without giving up their
cores, and the passes are shorter than waking another thread.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from numba import njit, types

from vqdq.kernels.statistics import (
    BINS,
    FIRST,
    FLOOR_OCTAVES,
    ROOT,
    SCORE_BINS,
    SHIFT,
    SIDE,
    SIGN,
    Block,
    Counts,
    Floats,
)

Array: TypeAlias = npt.NDArray[Any]
_KEYS = SIGN + 1  # of one sign
_STRIDED = types.Array(types.float32, 3, "A", readonly=True)  # one version for every layout
_CODES = types.void(_STRIDED, _STRIDED, _STRIDED, types.int64, types.int64[:, ::1])
_LARGEST, _LEAST = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
_INFINITE, _LESS = np.int32(0x7F800000), np.int32(-0x00800000)  # bits of inf and of −inf


def block_statistics(x: torch.Tensor, halves: int, stride: int, *, channels_first: bool) -> Block:
    """See `vqdq.kernels.statistics.block_statistics`."""
    batch, rows, columns = x.shape
    values = x.contiguous().numpy().reshape(halves, batch // halves, rows, columns)
    limits = np.empty((halves, 2 * (rows + columns)), np.int32)
    sums, counts = np.zeros((halves, 4)), np.zeros((halves, BINS), np.int64)
    if not _block(values.view(np.int32), values, stride, channels_first, limits, sums, counts):
        good = torch.isfinite(x)
        mended = torch.where(good, x, 0.0)
        found = block_statistics(mended, halves, stride, channels_first=channels_first)
        return found._replace(nonfinite=(~good).reshape(halves, -1).sum(1).numpy())
    return Block(limits.view(np.float32), sums, counts, None)


def add_counts(values: torch.Tensor, counts: npt.NDArray[np.int32]) -> None:
    """See `vqdq.kernels.statistics.add_counts`."""
    if values.T.is_contiguous():
        _count_columns(values.T.view(torch.int32).numpy(), counts)
    else:
        _count_rows(values.contiguous().view(torch.int32).numpy(), counts)


def add_sketch(
    y: torch.Tensor, signs: torch.Tensor, sample: int, stride: int, total: Floats, energy: Floats
) -> None:
    """See `vqdq.kernels.statistics.add_sketch`."""
    values = y.float().contiguous()
    rows = values.numpy().reshape(len(total), -1, y.shape[1])
    if not _sketch(rows, signs.numpy(), sample, stride, total, energy):
        mended = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
        _sketch(mended, signs.numpy(), sample, stride, total, energy)


def add_codes(
    rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, highest: int, counts: Counts
) -> None:
    """See `vqdq.kernels.statistics.add_codes`."""
    inverse = np.broadcast_to(scale.reciprocal().numpy(), rows.shape)
    middle = np.broadcast_to(zero.numpy(), rows.shape)
    halves = len(counts) if len(rows) % len(counts) == 0 else 1
    found = np.zeros((halves, highest + 3), np.int64)
    _count_codes(rows.numpy(), inverse, middle, highest, found)
    counts += found


def bin_quantiles(
    counts: npt.NDArray[Any], low: Floats, high: Floats, edges: Floats, levels: Floats
) -> Floats:
    """See `vqdq.kernels.statistics.bin_quantiles`."""
    found = np.empty((len(levels), len(counts)))
    _quantiles(np.ascontiguousarray(counts), low, high, edges, levels, found)
    return found


def score_counts(
    scores: torch.Tensor, groups: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """See `vqdq.kernels.statistics.score_counts`."""
    found = np.zeros((count, SCORE_BINS), np.int64)
    rows = scores.contiguous().view(torch.int32).view(-1, scores.shape[-1]).numpy()
    _count_scores(rows, groups, found)
    return found


@njit(nogil=True, cache=True)
def _key(bits: Any) -> Any:
    """Returns an integer in the order of the floats, from the bits of one, and back."""
    return bits ^ ((bits >> np.int32(31)) & _LARGEST)


@njit(nogil=True, cache=True)
def _row_extremes(line: Array) -> Any:
    low, high = _LARGEST, _LEAST
    for index in range(line.shape[0]):
        key = _key(line[index])
        low, high = min(low, key), max(high, key)
    return low, high


@njit(nogil=True, cache=True)
def _lower(line: Array, low: Array) -> None:
    for index in range(low.shape[0]):
        low[index] = min(low[index], _key(line[index]))


@njit(nogil=True, cache=True)
def _raise(line: Array, high: Array) -> None:
    for index in range(high.shape[0]):
        high[index] = max(high[index], _key(line[index]))


@njit(nogil=True, cache=True)
def _extremes(bits: Array, channels_first: bool, limits: Array) -> bool:
    """Writes the extremes by row and by column, and returns whether all values are finite.

    As integers, after the other bits of negative values are turned round, floats have their own
    order, and what is no number is outside of all that are: no test of each value is needed.
    """
    halves, samples, rows, columns = bits.shape
    finite = True
    for half in range(halves):
        line = limits[half]
        first, second = (0, 2 * rows) if channels_first else (2 * columns, 0)
        row_low, row_high = line[first : first + rows], line[first + rows : first + 2 * rows]
        column_low = line[second : second + columns]
        column_high = line[second + columns : second + 2 * columns]
        row_low[:], row_high[:] = _LARGEST, _LEAST
        column_low[:], column_high[:] = _LARGEST, _LEAST
        for sample in range(samples):
            for row in range(rows):
                values = bits[half, sample, row]
                low, high = _row_extremes(values)
                _lower(values, column_low)
                _raise(values, column_high)
                row_low[row] = min(row_low[row], low)
                row_high[row] = max(row_high[row], high)
        for row in range(rows):
            finite &= row_high[row] < _key(_INFINITE) and row_low[row] > _key(_LESS)
        for index in range(line.shape[0]):
            line[index] = _key(line[index])
    return finite


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _power_sums(line: Array) -> tuple[float, float, float, float]:
    first = second = third = fourth = 0.0
    for index in range(line.shape[0]):
        x = np.float64(line[index])
        square = x * x
        first += x
        second += square
        third += square * x
        fourth += square * square
    return first, second, third, fourth


@njit(nogil=True, cache=True)
def _powers(values: Array, stride: int, sums: Array) -> None:
    """Writes the sums; values are gathered a thousand at a time, for sums of rows are vectors."""
    room = np.empty(1024, np.float32)
    for half in range(values.shape[0]):
        line = values[half]
        if stride == 1:
            found = _power_sums(line)
            for power in range(4):
                sums[half, power] = found[power]
            continue
        count = (line.shape[0] + stride - 1) // stride
        for start in range(0, count, len(room)):
            size = min(len(room), count - start)
            for index in range(size):
                room[index] = line[(start + index) * stride]
            found = _power_sums(room[:size])
            for power in range(4):
                sums[half, power] += found[power]


@njit(nogil=True, cache=True)
def _cell(bits: int) -> int:
    """Returns the bin of a value by its bits."""
    size = min(max(((bits >> SHIFT) & SIGN) - (FIRST - 1), 0), SIDE)
    return SIDE + (size if bits >= 0 else -size)


@njit(nogil=True, cache=True)
def _count_all(bits: Array, stride: int, counts: Array) -> None:
    """Counts by the leading bits first: a third quicker than finding the bin of each value."""
    room = np.empty(2 * _KEYS, np.uint32)
    for half in range(bits.shape[0]):
        line = bits[half]
        room[:] = 0
        for index in range(0, line.shape[0], stride):
            room[(line[index] >> SHIFT) + _KEYS] += 1
        for key in range(2 * _KEYS):
            if room[key]:
                counts[half, _cell((key - _KEYS) << SHIFT)] += room[key]


@njit(nogil=True, cache=True)
def _block(
    bits: Array,
    values: Array,
    stride: int,
    channels_first: bool,
    limits: Array,
    sums: Array,
    counts: Array,
) -> bool:
    if not _extremes(bits, channels_first, limits):
        return False
    _powers(values.reshape(values.shape[0], -1), stride, sums)
    _count_all(bits.reshape(bits.shape[0], -1), stride, counts)
    return True


@njit(nogil=True, cache=True)
def _count_rows(bits: Array, counts: Array) -> None:
    for row in range(bits.shape[0]):
        line, into = bits[row], counts[row]
        for index in range(line.shape[0]):
            into[_cell(line[index])] += 1


@njit(nogil=True, cache=True)
def _count_columns(bits: Array, counts: Array) -> None:
    for row in range(bits.shape[0]):
        line = bits[row]
        for column in range(line.shape[0]):
            counts[column, _cell(line[column])] += 1


@njit(nogil=True, cache=True)
def _signed(line: Array, signs: Array, into: Array, stride: int) -> None:
    if stride == 1:  # apart, for it becomes vectors
        for index in range(into.shape[0]):
            into[index] += np.float64(line[index] * signs[index])
    else:
        for index in range(into.shape[0]):
            into[index] += np.float64(line[index * stride] * signs[index])


@njit(nogil=True, cache=True)
def _sketch(
    values: Array, signs: Array, sample: int, stride: int, total: Array, energy: Array
) -> bool:
    """Adds up the samples and returns True, or does nothing where a value is no number."""
    halves, samples, _ = values.shape
    buckets, length = total.shape[1], signs.shape[0]
    sums = np.zeros((halves * samples, 4))
    _powers(values.reshape(halves * samples, -1), stride, sums)
    if not np.isfinite(sums).all():
        return False
    for half in range(halves):
        for index in range(samples):
            line, into = values[half, index], total[half]
            energy[half] += sums[half * samples + index, 1]
            at, bucket, place = (-7919 * (sample + index)) % length, 0, 0
            while place < length:
                run = min(buckets - bucket, length - at, length - place)
                part = into[bucket : bucket + run]
                _signed(line[place * stride :], signs[at : at + run], part, stride)
                place, at, bucket = place + run, at + run, bucket + run
                at = 0 if at == length else at
                bucket = 0 if bucket == buckets else bucket
    return True


@njit([_CODES], nogil=True, cache=True)
def _count_codes(rows: Array, inverse: Array, zero: Array, highest: int, counts: Array) -> None:
    batch, positions, channels = rows.shape
    for sample in range(batch):
        into = counts[sample * counts.shape[0] // batch]
        for position in range(positions):
            for channel in range(channels):
                place = (sample, position, channel)
                code = np.rint(rows[place] * inverse[place]) + zero[place]
                if np.isnan(code):
                    code = np.float32(0)
                into[int(min(max(code, np.float32(-1)), np.float32(highest + 1))) + 1] += 1


@njit(nogil=True, cache=True)
def _quantiles(
    counts: Array, low: Array, high: Array, edges: Array, levels: Array, found: Array
) -> None:
    last = counts.shape[1] - 1
    for row in range(counts.shape[0]):
        line, least, largest = counts[row], low[row], high[row]
        total = 0
        for cell in range(last + 1):
            total += line[cell]
        for index in range(levels.shape[0]):
            target = max(levels[index] * total, 1e-9)
            cell, below = 0, 0  # below: values in the bins before this one
            while cell < last and below + line[cell] < target:
                below += line[cell]
                cell += 1
            part = min(max((target - below) / max(line[cell], 1), 0.0), 1.0)
            left, right = least, largest
            if cell > 0:
                left = min(max(edges[cell], least), largest)
            if cell < last:
                right = min(max(edges[cell + 1], least), largest)
            found[index, row] = left + part * (right - left)


@njit(nogil=True, cache=True)
def _count_scores(bits: Array, groups: Array, found: Array) -> None:
    for row in range(bits.shape[0]):
        line = bits[row]
        for column in range(line.shape[0]):
            half = 1 if (line[column] & 0x7FFFFF) >= ROOT else 0
            cell = 2 * ((line[column] >> 23) - 127 + FLOOR_OCTAVES) + half + 1
            found[groups[column], min(max(cell, 0), SCORE_BINS - 1)] += 1
