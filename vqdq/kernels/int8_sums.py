"""From sums of products to outputs, compiled: scales, zero points and biases in one pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]
Steps: TypeAlias = tuple[int, int]


@njit(nogil=True, cache=True)
def scaled_rows(
    sums: Array,
    scale: Array,
    zero: Array,
    steps: Steps,
    positions: int,
    column_sums: Array,
    column_scales: Array,
    bias: Array,
    first: int,
    last: int,
) -> None:
    """Replaces rows first..last-1 of sums by scale·(sum − zero·column_sum)·column_scale + bias."""
    for row in range(first, last):
        grid = row // positions * steps[0] + row % positions * steps[1]
        step, middle, line = scale[grid], zero[grid], sums[row]
        for column in range(line.shape[0]):
            exact = line[column] - middle * column_sums[column]
            line[column] = step * exact * column_scales[column] + bias[column]


@njit(nogil=True, cache=True)
def add_rows(
    out: Array,
    sums: Array,
    scale: Array,
    zero: Array,
    grids: Array,
    places: Array,
    column_sums: Array,
    column_scales: Array,
    first: int,
    last: int,
) -> None:
    """Adds scale·(sum − zero·column_sum)·column_scale of rows first..last-1 to out[places[row]].

    grids: index of scale and zero for each row.
    """
    for row in range(first, last):
        step, middle, line = scale[grids[row]], zero[grids[row]], sums[row]
        target = out[places[row]]
        for column in range(line.shape[0]):
            exact = line[column] - middle * column_sums[column]
            target[column] += step * exact * column_scales[column]


@njit(nogil=True, cache=True)
def summed_groups(
    sums: Array,
    scales: Array,
    column_scales: Array,
    bias: Array,
    out: Array,
    first: int,
    last: int,
) -> None:
    """Writes rows first..last-1 of out: Σ_g scales[g]·sums[g], times column_scales, plus bias."""
    groups, columns = sums.shape[0], sums.shape[2]
    for row in range(first, last):
        target = out[row]
        for column in range(columns):
            target[column] = scales[0] * sums[0, row, column]
        for group in range(1, groups):
            scale, line = scales[group], sums[group, row]
            for column in range(columns):
                target[column] += scale * line[column]
        for column in range(columns):
            target[column] = target[column] * column_scales[column] + bias[column]
