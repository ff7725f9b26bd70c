"""Running statistics of a tensor stream: exact extremes and moments, percentiles from bins.

Counts, extremes and sums do not depend on the order of the batches. Memory depends on the number of
channels and positions, never on how many values went by. Accumulation happens in numpy (float64,
int64) on the host, so a stream may begin under `torch.inference_mode` and go on outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vqdq.capture.scratch import Scratch

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

OUTLIER = 6.0
"""A value is called an outlier from this magnitude on (LLM.int8, arXiv 2208.07339, section 4)."""

SURFACE = (64, 256)
"""Positions and channels up to which a surface is exact; neighbours share a cell beyond."""

_SHIFT = 20  # a float32 without its last 20 bits: sign, exponent and 3 bits of the mantissa
_PER_OCTAVE = 1 << (23 - _SHIFT)
_OCTAVES = 12  # bins cover 2^-12 ... 2^12; smaller is one zero bin, larger falls in the last bin
SIDE = 2 * _OCTAVES * _PER_OCTAVE
BINS = 2 * SIDE + 1
_FIRST = (127 - _OCTAVES) * _PER_OCTAVE  # key of 2^-12
_KEYS = 1 << (31 - _SHIFT)  # of one sign


def bin_edges() -> Floats:
    """Returns the edges of the signed bins, eight equal ones an octave, [BINS + 1].

    They are the leading bits of a float32, so that finding a value's bin is a shift (4 times faster
    than its logarithm). `OUTLIER` is an edge: outliers are counted exactly.
    """
    octaves = 2.0 ** np.arange(-_OCTAVES, _OCTAVES)
    steps = 1 + np.arange(_PER_OCTAVE) / _PER_OCTAVE
    magnitudes = np.append((octaves[:, None] * steps).ravel(), 2.0**_OCTAVES)
    return np.concatenate([-magnitudes[::-1], magnitudes])


def bin_counts(values: Tensor) -> Counts:
    """Returns how many values of each row fall in each bin, [rows, BINS].

    Args:
        values: finite float32 [rows, n].
    """
    keys = values.contiguous().view(torch.int32) >> _SHIFT
    cells = keys.bitwise_and(_KEYS - 1).sub_(_FIRST - 1).clamp_(0, SIDE)
    cells.mul_((keys >> 31).bitwise_or_(1))  # the sign, −1 or 1
    first = torch.arange(len(values), device=keys.device, dtype=torch.int32) * BINS + SIDE
    found = torch.bincount(cells.add_(first[:, None]).reshape(-1), minlength=len(values) * BINS)
    return found.cpu().numpy().reshape(len(values), BINS)


COUNTED = 1 << 14
"""Values of one call and half up to which all are counted, outside of `Detail`."""


def evenly(rows: Tensor, most: int) -> Tensor:
    """Returns [rows, n] with at most `most` values a row, evenly spaced by an odd number.

    Channels and pictures have even sizes, so every channel and every position comes in as often as
    any other: a channel of outliers has its share, and so has a pixel.
    """
    stride = -(-rows.shape[1] // most) | 1
    return rows[:, ::stride] if stride > 1 else rows


def magnitude_quantiles(counts: Counts, largest: Floats, levels: tuple[float, ...]) -> Floats:
    """Returns quantiles of the magnitude of signed counts [rows, BINS], [levels, rows]."""
    return quantiles(magnitude_counts(counts), np.zeros(len(counts)), largest, levels)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """One input in numbers, for each half.

    Attributes:
        values: finite float32, in the input's own layout.
        count: values of a half; `nonfinite`: [halves], how many were NaN or infinite.
        sums: of x, x², x³, x⁴ of those that were counted, [halves, 4].
        limits: smallest and largest by channel and by position, [halves, 2 channels + 2 positions].
        channels: how many; `keys`: counts by leading bits, [halves, 2 signs, SIDE].
        counted: values of a half behind `sums` and `keys`: all, or `evenly` many.
    """

    values: Tensor
    count: int
    nonfinite: Counts
    sums: Floats
    limits: Floats
    channels: int
    keys: Counts
    counted: int


def measure(x: Tensor, scratch: Scratch, *, conv: bool) -> Measured:
    """Returns the numbers of one input.

    This runs for every layer and step, so it is few operations: sums are float32 here, float64
    between calls.

    Args:
        x: [halves, samples, positions, channels]; with `conv` [halves, samples, channels,
            positions].
    """
    values = x.float()
    straight = [values.amin(3).amin(1), values.amax(3).amax(1)]  # of the third dimension
    crossed = [values.amin((1, 2)), values.amax((1, 2))]  # of the last
    extremes = [*straight, *crossed] if conv else [*crossed, *straight]  # channels first
    flat = values.flatten(1)
    chosen = evenly(flat, COUNTED).contiguous()
    both = torch.stack([chosen, chosen * chosen], dim=1)  # [halves, x and x², values]
    products = torch.bmm(both, both.transpose(1, 2)).flatten(1)[:, [0, 1, 3]]
    sums = [chosen.sum(1, keepdim=True), products]
    found = torch.cat([*sums, *extremes], dim=1).cpu().numpy().astype(np.float64)
    largest = float(np.abs(found[:, 4:]).max())
    if not np.isfinite(largest):
        good = torch.isfinite(values)
        mended = measure(torch.where(good, values, 0.0), scratch, conv=conv)
        return replace(mended, nonfinite=(~good).flatten(1).sum(1).cpu().numpy())
    return Measured(
        values=values,
        count=flat.shape[1],
        nonfinite=np.zeros(len(flat), dtype=np.int64),
        sums=found[:, :4],
        limits=found[:, 4:],
        channels=extremes[0].shape[1],
        keys=_key_counts(chosen, scratch, largest),
        counted=chosen.shape[1],
    )


def _key_counts(values: Tensor, scratch: Scratch, largest: float) -> Counts:
    """Counts of leading bits, [rows, 2, SIDE]: negative, positive; quicker than `bin_counts`."""
    rows = len(values)
    keys = scratch.ints(values)  # −_KEYS ... _KEYS − 1, negative values first
    torch.bitwise_right_shift(values.view(torch.int32), _SHIFT, out=keys)
    for row in range(rows):
        keys[row] += (2 * row + 1) * _KEYS
    found = torch.bincount(keys.view(-1), minlength=rows * 2 * _KEYS)
    counts = found.cpu().numpy().reshape(rows, 2, _KEYS)
    sides = counts[:, :, _FIRST : _FIRST + SIDE].copy()
    if largest >= 2.0**_OCTAVES:
        sides[:, :, -1] += counts[:, :, _FIRST + SIDE :].sum(axis=2)
    return sides


def magnitude_counts(counts: Counts) -> Counts:
    """Returns the counts of magnitudes of signed counts [rows, BINS], in the same bins."""
    folded = np.zeros_like(counts)
    folded[:, SIDE:] = counts[:, SIDE:]
    folded[:, SIDE + 1 :] += counts[:, :SIDE][:, ::-1]
    return folded


def outlier_counts(counts: Counts) -> Counts:
    """Returns how many of the values counted in [rows, BINS] have |x| >= 6; exact."""
    first = int(np.searchsorted(bin_edges()[SIDE + 1 :], OUTLIER))
    return counts[:, SIDE + 1 + first :].sum(axis=1) + counts[:, : SIDE - first].sum(axis=1)


def quantiles(counts: Counts, low: Floats, high: Floats, levels: tuple[float, ...]) -> Floats:
    """Returns quantile estimates per row of binned counts, [levels, rows].

    Inside a bin the values are taken as evenly spread, between the row's exact extremes, so an
    estimate is off by less than one bin (12.5 % of its magnitude), usually by less than 1 %.

    Args:
        counts: [rows, BINS]; `low`, `high`: exact extremes of each row, [rows]; `levels` in 0 ...
        1.
    """
    total = counts.sum(axis=1)  # [rows]
    cumulated = counts.cumsum(axis=1)
    edges = bin_edges()
    rows = np.arange(counts.shape[0])
    found = np.zeros((len(levels), counts.shape[0]))
    for index, level in enumerate(levels):
        target = np.maximum(level * total, 1e-9)
        cell = np.minimum((cumulated < target[:, None]).sum(axis=1), BINS - 1)
        inside = np.maximum(counts[rows, cell], 1)
        part = (target - (cumulated[rows, cell] - counts[rows, cell])) / inside
        left = np.clip(edges[cell], low, high)
        # The outermost bins also hold everything beyond them.
        left = np.where(cell == 0, low, left)
        right = np.where(cell == BINS - 1, high, np.clip(edges[cell + 1], low, high))
        found[index] = left + np.clip(part, 0.0, 1.0) * (right - left)
    return found


class Summary:
    """A layer's whole input in numbers, for each half of the guidance: [halves, ...] throughout.

    Attributes:
        count, nonfinite: values seen, and how many were NaN or infinite (taken as 0).
        power: sums of x, x², x³, x⁴ of the values that were counted, [halves, 4].
    """

    def __init__(self, halves: int) -> None:
        self.count = 0
        self.nonfinite: Counts = np.zeros(halves, dtype=np.int64)
        self.power: Floats = np.zeros((halves, 4))
        self._keys: Counts = np.zeros((halves, 2, SIDE), dtype=np.int64)
        self._counted = 0
        self._channels = 0
        self._limits: Floats = np.zeros((halves, 0))  # channels low, high, positions low, high
        self._gone = False
        # Of what was released: minimum, maximum, and the two D, [4, halves].
        self._released: Floats = np.full((4, halves), -np.inf)

    def add(self, found: Measured) -> None:
        """Adds an input."""
        self.count += found.count
        self.nonfinite = self.nonfinite + found.nonfinite
        self.power = self.power + found.sums
        self._keys = self._keys + found.keys
        self._counted += found.counted
        self._channels = found.channels
        self._widen(found.limits.copy())

    def _widen(self, fresh: Floats) -> None:
        old = self._limits
        if not old.shape[1]:
            self._limits = fresh
            return
        for index, (known, new) in enumerate(zip(self._cut(old), self._cut(fresh), strict=True)):
            (np.maximum if index % 2 else np.minimum)(known, new, out=new)
        self._limits = fresh

    def _cut(self, limits: Floats) -> list[Floats]:
        channels = self._channels
        positions = limits.shape[1] // 2 - channels
        cuts = [channels, 2 * channels, 2 * channels + positions]
        return np.split(limits, cuts, axis=1)

    def release(self) -> None:
        """Gives up the extremes by channel and position; D is the largest of what was released."""
        self._released = self._largest()
        self._limits = self._limits[:, :0]
        self._gone = True

    def _largest(self) -> Floats:
        if not self._limits.shape[1]:
            return self._released
        low, high, first, last = self._cut(self._limits)
        found = [-low.min(axis=1), high.max(axis=1), spread_of(low, high), spread_of(first, last)]
        return np.maximum(self._released, np.stack(found))

    @property
    def extremes(self) -> list[Floats]:
        """Smallest and largest value by channel, [halves, channels] each, and by position, [halves,
        positions] each; [] after `release`."""
        return self._cut(self._limits) if self._limits.shape[1] and not self._gone else []

    @property
    def spread(self) -> Floats:
        """DGQ's D over channels and over positions, [2, halves]."""
        return self._largest()[2:]

    @property
    def minimum(self) -> Floats:
        """Smallest value."""
        return -self._largest()[0]

    @property
    def maximum(self) -> Floats:
        """Largest value."""
        return self._largest()[1]

    @property
    def histogram(self) -> Counts:
        """Counts in the bins of `bin_edges`, of all values or of `evenly` many, [halves, BINS]."""
        small = self._counted - self._keys.sum(axis=(1, 2))
        parts = [self._keys[:, 0, ::-1], small[:, None], self._keys[:, 1]]
        return np.concatenate(parts, axis=1)

    @property
    def absmax(self) -> Floats:
        """Largest magnitude."""
        return np.maximum(np.maximum(-self.minimum, self.maximum), 0.0)

    @property
    def mean(self) -> Floats:
        """Mean of the values."""
        return self.power[:, 0] / max(self._counted, 1)

    @property
    def rms(self) -> Floats:
        """Root mean square of the values."""
        return np.sqrt(self.power[:, 1] / max(self._counted, 1))

    @property
    def kurtosis(self) -> Floats:
        """Fourth standardised moment: 3 for a Gaussian, 0 for a constant."""
        mean, second, third, fourth = self.power.T / max(self._counted, 1)
        variance = second - mean**2
        flat = variance <= 1e-12 * np.maximum(second, 1e-30)
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        return np.where(flat, 0.0, central / np.where(flat, 1.0, variance) ** 2)

    @property
    def outliers(self) -> Floats:
        """Share of the values with |x| >= 6, of those that were counted."""
        return outlier_counts(self.histogram) / max(self._counted, 1)


def spread_of(low: Floats, high: Floats) -> Floats:
    """Returns D = (max_i aᵢᵐᵃˣ − min_i aᵢᵐᵃˣ) + (max_i aᵢᵐⁱⁿ − min_i aᵢᵐⁱⁿ) for each row.

    DGQ (arXiv 2501.04304, section 4.1) groups channels or pixels, whichever have the larger D.

    Args:
        low, high: extremes of the channels or of the positions, [rows, n].
    """
    return np.ptp(high, axis=1) + np.ptp(low, axis=1)


class Detail:
    """Statistics by channel and by position of [samples, positions, channels] inputs."""

    def __init__(self, *, channels: int, positions: int) -> None:
        self.minimum: Floats = np.full(channels, np.inf)
        self.maximum: Floats = np.full(channels, -np.inf)
        self.total: Floats = np.zeros(channels)
        self.histogram: Counts = np.zeros((channels, BINS), dtype=np.int64)
        self.position_absmax: Floats = np.zeros(positions)
        self._cells = (-(-positions // SURFACE[0]), -(-channels // SURFACE[1]))
        shape = (-(-positions // self._cells[0]), -(-channels // self._cells[1]))
        self.surface: Floats = np.zeros(shape)  # largest magnitude of so many neighbours

    def update(self, x: Tensor) -> None:
        """Adds the finite float32 values of `x`, [samples, positions, channels]."""
        channels = x.shape[-1]
        flat = x.reshape(-1, channels)  # [samples * positions, channels]
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        self.minimum = np.minimum(self.minimum, low.cpu().numpy())
        self.maximum = np.maximum(self.maximum, high.cpu().numpy())
        self.total = self.total + flat.sum(dim=0).cpu().numpy()
        peaks = x.abs().amax(dim=0)  # [positions, channels]
        self.position_absmax = np.maximum(self.position_absmax, peaks.amax(dim=1).cpu().numpy())
        pooled = functional.max_pool2d(peaks[None, None], self._cells, ceil_mode=True)[0, 0]
        self.surface = np.maximum(self.surface, pooled.cpu().numpy())
        self.histogram = self.histogram + bin_counts(flat.T)

    @property
    def count(self) -> int:
        """Values a channel has seen."""
        return int(self.histogram[0].sum())

    @property
    def outliers(self) -> Counts:
        """How many values of each channel have |x| >= 6, [channels]."""
        return outlier_counts(self.histogram)

    def percentiles(self) -> Floats:
        """Returns the estimated 1st, 50th and 99th percentile of each channel, [3, channels]."""
        return quantiles(self.histogram, self.minimum, self.maximum, (0.01, 0.5, 0.99))
