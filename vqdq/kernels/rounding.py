"""Bit packing and the search for the best even grid, compiled."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]


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
