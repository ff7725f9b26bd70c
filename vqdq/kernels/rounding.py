"""Bit packing, the search for the best even grid and rounding with feedback, compiled."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]
_LANES = 256  # rows worked on together: 8 columns of them fit the first cache
_SHARE = 32  # columns fed forward before the targets leave the first cache


@njit(nogil=True, cache=True)
def pack(values: Array, bits: int, out: Array) -> None:
    held, have, place = np.uint32(0), 0, 0
    for value in values:
        held |= np.uint32(value) << np.uint32(have)
        have += bits
        while have >= 8:
            out[place] = np.uint8(held & np.uint32(255))
            held >>= np.uint32(8)
            have -= 8
            place += 1
    if have:
        out[place] = np.uint8(held)


@njit(nogil=True, cache=True)
def unpack(stream: Array, bits: int, out: Array) -> None:
    held, have, place = np.uint32(0), 0, 0
    mask = np.uint32((1 << bits) - 1)
    for index in range(out.shape[0]):
        if have < bits:
            held |= np.uint32(stream[place]) << np.uint32(have)
            have += 8
            place += 1
        out[index] = np.uint8(held & mask)
        held >>= np.uint32(bits)
        have -= bits


@njit(nogil=True, cache=True)
def grid_errors(
    groups: Array,
    steps: Array,
    inverse: Array,
    zeros: Array,
    highest: int,
    total: Array,
    first: int,
    last: int,
) -> None:
    """Adds the squared error of each grid to total [groups, n]; the grids share a vector."""
    top = np.float64(highest)
    for group in range(first, last):
        step, scale, zero, found = steps[group], inverse[group], zeros[group], total[group]
        for index in range(groups.shape[1]):
            weight = np.float64(groups[group, index])
            for grid in range(found.shape[0]):
                code = math.floor(weight * scale[grid] + zero[grid] + 0.5)
                code = min(max(code, 0.0), top)
                off = (code - zero[grid]) * step[grid] - weight
                found[grid] += off * off


@njit(nogil=True, cache=True, error_model="numpy")
def table_errors(
    groups: Array,
    steps: Array,
    table: Array,
    bounds: Array,
    total: Array,
    first: int,
    last: int,
) -> None:
    """Adds the squared error of each scaled table to total [groups, n]; the n share a vector."""
    count = steps.shape[1]
    place, value = np.empty(count, np.float32), np.empty(count, np.float32)
    for group in range(first, last):
        step, found = steps[group], total[group]
        for index in range(groups.shape[1]):
            weight = groups[group, index]
            for grid in range(count):
                size = step[grid] if step[grid] > 0 else np.float32(1)
                place[grid] = weight / size
                value[grid] = table[0]
            for level in range(bounds.shape[0]):
                bound, above = bounds[level], table[level + 1]
                for grid in range(count):
                    value[grid] = above if place[grid] > bound else value[grid]
            for grid in range(count):
                off = np.float64(value[grid] * step[grid]) - np.float64(weight)
                found[grid] += off * off


@njit(nogil=True, cache=True, error_model="numpy")
def feed_forward(targets: Array, errors: Array, unit: Array, first: int, last: int) -> None:
    """Adds errors[i] * unit[i, j] to targets[j] in the order of i, for rows first..last-1.

    Never fused and never reordered, so the bits are those of the elementwise definition; eight
    columns a pass make it 12 times faster than one (19 G products/s measured on one core).
    """
    for low in range(first, last, _LANES):
        high = min(low + _LANES, last)
        for start in range(0, errors.shape[0], _SHARE):
            stop = min(start + _SHARE, errors.shape[0])
            for j in range(targets.shape[0]):
                t = targets[j, low:high]
                i = start
                while i + 8 <= stop:
                    u0, u1, u2, u3 = unit[i, j], unit[i + 1, j], unit[i + 2, j], unit[i + 3, j]
                    u4, u5, u6, u7 = unit[i + 4, j], unit[i + 5, j], unit[i + 6, j], unit[i + 7, j]
                    e0, e1 = errors[i, low:high], errors[i + 1, low:high]
                    e2, e3 = errors[i + 2, low:high], errors[i + 3, low:high]
                    e4, e5 = errors[i + 4, low:high], errors[i + 5, low:high]
                    e6, e7 = errors[i + 6, low:high], errors[i + 7, low:high]
                    for r in range(high - low):
                        four = t[r] + e0[r] * u0 + e1[r] * u1 + e2[r] * u2 + e3[r] * u3
                        t[r] = four + e4[r] * u4 + e5[r] * u5 + e6[r] * u6 + e7[r] * u7
                    i += 8
                while i < stop:
                    u0, e0 = unit[i, j], errors[i, low:high]
                    for r in range(high - low):
                        t[r] = t[r] + e0[r] * u0
                    i += 1


@njit(nogil=True, cache=True, error_model="numpy")
def round_columns(
    targets: Array,
    weight: Array,
    unit: Array,
    steps: Array,
    zeros: Array,
    group: Array,
    table: Array,
    bounds: Array,
    codes: Array,
    errors: Array,
    first: int,
    last: int,
) -> None:
    """Rounds the columns of a block one after the other; each feeds those to its right."""
    columns = targets.shape[0]
    code, value = np.empty(64, np.int32), np.empty(64, np.float32)
    place = np.empty(64, np.float32)
    for low in range(first, last, 64):
        count = min(64, last - low)
        for j in range(columns):
            t, w = targets[j, low : low + count], weight[j, low : low + count]
            step = steps[group[j], low : low + count]
            zero = zeros[group[j], low : low + count]
            for r in range(count):
                size = step[r] if step[r] > 0 else np.float32(1)
                place[r] = t[r] / size + zero[r]
                code[r] = 0
                value[r] = table[0]
            for level in range(bounds.shape[0]):
                bound, above = bounds[level], table[level + 1]
                for r in range(count):
                    code[r] += np.int32(place[r] > bound)
                    value[r] = above if place[r] > bound else value[r]
            error = errors[j, low : low + count]
            for r in range(count):
                codes[j, low + r] = np.uint8(code[r])
                error[r] = w[r] - (value[r] - zero[r]) * step[r]
            for later in range(j + 1, columns):
                share, t = unit[j, later], targets[later, low : low + count]
                if share != 0:
                    for r in range(count):
                        t[r] = t[r] + error[r] * share
