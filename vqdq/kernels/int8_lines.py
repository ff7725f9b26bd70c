"""From float activations to 8-bit codes, compiled: each row is visited once, nothing is kept.

A row of channels is divided by its smoothing factors, rotated, measured and rounded while it is in
the first cache. Maps whose channels lie in planes (NCHW) are turned a few pixels at a time, so the
codes of a convolution come out with their channels last, and inside the border that pads them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from vqdq.kernels import butterflies

Array: TypeAlias = npt.NDArray[Any]
Places: TypeAlias = tuple[int, int, int, int, int]
Steps: TypeAlias = tuple[int, int]
TILE = 16  # rows that are fetched together: one cache line of each plane
LARGEST = np.finfo(np.float32).max
_HALF = np.int32(16)  # bits that a bfloat16 lacks
_SIGN, _BELOW_SIGN = np.int32(31), np.int32(0x7FFFFFFF)
_KEY_LEAST, _KEY_MOST = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
_transform: Any = butterflies.transform


@njit(nogil=True, cache=True)
def _fetched(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    scratch: Array,
    first: int,
    count: int,
) -> Array:
    """Returns rows first..first+count-1 as they are quantized, [count, channels].

    source or half holds them, the other is empty: float32, or the bits of bfloat16.
    """
    halved = half.shape[0] > 0
    if not halved and not planes and block == 0 and divisor.shape[0] == 0:
        return source[first : first + count]
    lines, channels = scratch[:count], scratch.shape[1]
    bits = lines.view(np.int32)
    sample, place = first // positions, first % positions
    if halved and planes:
        for channel in range(channels):
            short = half[sample * channels + channel, place : place + count]
            for index in range(count):
                bits[index, channel] = np.int32(short[index]) << _HALF
    elif halved:
        for index in range(count):
            short = half[first + index]
            for channel in range(channels):
                bits[index, channel] = np.int32(short[channel]) << _HALF
    elif planes:
        for channel in range(channels):
            plane = source[sample * channels + channel, place : place + count]
            for index in range(count):
                lines[index, channel] = plane[index]
    else:
        lines[:] = source[first : first + count]
    for index in range(count):
        line = lines[index]
        if divisor.shape[0]:
            for channel in range(channels):
                line[channel] /= divisor[channel]
        if block:
            for channel in range(channels):
                line[channel] *= signs[channel]
    if block:
        _transform(lines, block, block**-0.5, 0, count)
    return lines


@njit(nogil=True, cache=True)
def _extremes(line: Array, low: Array, high: Array) -> bool:
    """Writes the least and the largest value of a line; returns False where one is no number.

    Bits of floats in the order of the integers: vectors of them take 1/7 of the time of floats,
    whose order has NaN in it, and NaN and infinity come out as the ends of the order.
    """
    bits = line.view(np.int32)
    least, most = _KEY_MOST, _KEY_LEAST
    for index in range(bits.shape[0]):
        key = np.int32(bits[index] ^ ((bits[index] >> _SIGN) & _BELOW_SIGN))
        least = key if key < least else least
        most = key if key > most else most
    low.view(np.int32)[0] = np.int32(least ^ ((least >> _SIGN) & _BELOW_SIGN))
    high.view(np.int32)[0] = np.int32(most ^ ((most >> _SIGN) & _BELOW_SIGN))
    return abs(low[0]) <= LARGEST and abs(high[0]) <= LARGEST


@njit(nogil=True, cache=True)
def _finite(line: Array) -> bool:
    bad = False
    for index in range(line.shape[0]):
        bad |= not (abs(line[index]) <= LARGEST)
    return not bad


@njit(nogil=True, cache=True)
def _code(line: Array, inverse: Any, zero: Any, highest: Any, out: Array) -> None:
    """Writes clamp(rint(x · inverse) + zero, 0, highest)."""
    for index in range(line.shape[0]):
        value = np.rint(line[index] * inverse) + zero
        value = value if value > np.float32(0) else np.float32(0)
        out[index] = np.uint8(value if value < highest else highest)


@njit(nogil=True, cache=True)
def _tile(number: int, positions: int) -> tuple[int, int, int]:
    """Returns sample, first position and count of a tile: no tile crosses a sample."""
    each = (positions + TILE - 1) // TILE
    place = number % each * TILE
    return number // each, place, min(TILE, positions - place)


@njit(nogil=True, cache=True)
def _framed(frame: Places, sample: int, place: int) -> int:
    """Returns the row of a framed map that holds a position.

    frame: width of the map, height and width of the framed one, rows above and columns left of it.
    """
    width, tall, wide, top, left = frame[0], frame[1], frame[2], frame[3], frame[4]
    return (sample * tall + place // width + top) * wide + place % width + left


@njit(nogil=True, cache=True)
def extremes(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    low: Array,
    high: Array,
    state: Array,
    first: int,
    last: int,
) -> None:
    """Writes the extremes of the rows of tiles first..last-1; state[0] = 1 where one is no number.

    source: rows [rows, channels], or planes [batch*channels, positions]; float32, contiguous; or
    empty, and half has the bits of bfloat16, int16.
    """
    scratch = np.empty((TILE, signs.shape[0]), np.float32)
    for number in range(first, last):
        sample, place, count = _tile(number, positions)
        start = sample * positions + place
        lines = _fetched(
            source, half, planes, positions, divisor, signs, block, scratch, start, count
        )
        for index in range(count):
            row = start + index
            if not _extremes(lines[index], low[row : row + 1], high[row : row + 1]):
                state[0] = 1


@njit(nogil=True, cache=True)
def row_codes(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    inverse: Array,
    zero: Array,
    steps: Steps,
    highest: Any,
    frame: Places,
    codes: Array,
    state: Array,
    first: int,
    last: int,
) -> None:
    """Writes the codes of tiles first..last-1 with given grids.

    steps: position p of sample b has the grid b*steps[0] + p*steps[1]. codes: uint8 [rows of the
    framed map, channels]. The rest as in `extremes`.
    """
    scratch = np.empty((TILE, signs.shape[0]), np.float32)
    for number in range(first, last):
        sample, place, count = _tile(number, positions)
        start = sample * positions + place
        lines = _fetched(
            source, half, planes, positions, divisor, signs, block, scratch, start, count
        )
        for index in range(count):
            if not _finite(lines[index]):
                state[0] = 1
            grid = sample * steps[0] + (place + index) * steps[1]
            out = codes[_framed(frame, sample, place + index)]
            _code(lines[index], inverse[grid], zero[grid], highest, out)


@njit(nogil=True, cache=True)
def own_codes(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    smallest: Any,
    highest: Any,
    codes: Array,
    scale: Array,
    zero: Array,
    state: Array,
    first: int,
    last: int,
) -> None:
    """Writes codes, scale and zero of each row over its own range, 0 in it; see `row_codes`."""
    scratch, ends = np.empty((TILE, signs.shape[0]), np.float32), np.empty(2, np.float32)
    for number in range(first, last):
        sample, place, count = _tile(number, positions)
        start = sample * positions + place
        lines = _fetched(
            source, half, planes, positions, divisor, signs, block, scratch, start, count
        )
        for index in range(count):
            if not _extremes(lines[index], ends[:1], ends[1:]):
                state[0] = 1
            low, high = min(ends[0], np.float32(0)), max(ends[1], np.float32(0))
            step = max((high - low) / highest, smallest)
            middle = np.rint(-low / step)
            scale[start + index], zero[start + index] = step, middle
            _code(lines[index], np.float32(1) / step, middle, highest, codes[start + index])


@njit(nogil=True, cache=True)
def group_codes(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    inverse: Array,
    zero: Array,
    highest: Any,
    order: Array,
    edges: Array,
    frame: Places,
    size: int,
    codes: Array,
    state: Array,
    first: int,
    last: int,
) -> None:
    """Writes the codes of tiles first..last-1, channels gathered by group.

    inverse, zero: of each channel. Group g holds channels order[edges[g]:edges[g+1]] and fills the
    part of `codes` (flat) from size*edges[g] on, [size rows of the framed map, its channels].
    """
    channels = signs.shape[0]
    scratch, coded = np.empty((TILE, channels), np.float32), np.empty(channels, np.uint8)
    for number in range(first, last):
        sample, place, count = _tile(number, positions)
        start = sample * positions + place
        lines = _fetched(
            source, half, planes, positions, divisor, signs, block, scratch, start, count
        )
        for index in range(count):
            line = lines[index]
            if not _finite(line):
                state[0] = 1
            for channel in range(channels):
                value = np.rint(line[channel] * inverse[channel]) + zero[channel]
                value = value if value > np.float32(0) else np.float32(0)
                coded[channel] = np.uint8(value if value < highest else highest)
            row = _framed(frame, sample, place + index)
            for group in range(edges.shape[0] - 1):
                at, wide = edges[group], edges[group + 1] - edges[group]
                out = codes[size * at + row * wide : size * at + (row + 1) * wide]
                for member in range(wide):
                    out[member] = coded[order[at + member]]


@njit(nogil=True, cache=True)
def stacked_codes(
    source: Array,
    half: Array,
    planes: bool,
    positions: int,
    divisor: Array,
    signs: Array,
    block: int,
    inverse: Array,
    zero: Array,
    highest: Any,
    index: Array,
    frame: Places,
    size: int,
    codes: Array,
    state: Array,
    first: int,
    last: int,
) -> None:
    """Writes the codes of tiles first..last-1, each channel into the layer of its group.

    index: group of each channel. codes: uint8 [groups*size, channels]. The rest as `group_codes`.
    """
    channels = signs.shape[0]
    scratch = np.empty((TILE, channels), np.float32)
    for number in range(first, last):
        sample, place, count = _tile(number, positions)
        start = sample * positions + place
        lines = _fetched(
            source, half, planes, positions, divisor, signs, block, scratch, start, count
        )
        for place_in in range(count):
            line = lines[place_in]
            if not _finite(line):
                state[0] = 1
            row = _framed(frame, sample, place + place_in)
            for channel in range(channels):
                value = np.rint(line[channel] * inverse[channel]) + zero[channel]
                value = value if value > np.float32(0) else np.float32(0)
                code = np.uint8(value if value < highest else highest)
                codes[index[channel] * size + row, channel] = code
