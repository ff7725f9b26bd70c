"""Running statistics of a tensor stream: exact extremes and moments, percentiles from bins.

Counts, extremes and sums do not depend on the order of the batches. Memory depends on the number of
channels and positions, never on how many values went by. The passes over the values are compiled
(`vqdq.kernels.statistics`); accumulation happens in numpy (float64, int64) on the host, so a stream
may begin under `torch.inference_mode` and go on outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from vqdq.kernels import statistics
from vqdq.kernels.statistics import BINS, OCTAVES, PER_OCTAVE, SIDE, Block

Floats = npt.NDArray[np.float64]
Limits = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

OUTLIER = 6.0
"""A value is called an outlier from this magnitude on (LLM.int8, arXiv 2208.07339, section 4)."""

SURFACE = (64, 256)
"""Positions and channels up to which a surface is exact; neighbours share a cell beyond."""

COUNTED = 1 << 17
"""Values of one call and half up to which all are counted, outside of `Detail`."""


@cache
def bin_edges() -> Floats:
    """Returns the edges of the signed bins, eight equal ones an octave, [BINS + 1]; not to be
    written to.

    They are the leading bits of a float32, so that finding a value's bin is a shift (4 times faster
    than its logarithm). `OUTLIER` is an edge: outliers are counted exactly.
    """
    octaves = 2.0 ** np.arange(-OCTAVES, OCTAVES)
    steps = 1 + np.arange(PER_OCTAVE) / PER_OCTAVE
    magnitudes = np.append((octaves[:, None] * steps).ravel(), 2.0**OCTAVES)
    edges = np.concatenate([-magnitudes[::-1], magnitudes])
    edges.setflags(write=False)
    return edges


def stride_of(count: int, most: int) -> int:
    """Returns which of `count` values stand for all, every n-th of them, at most `most`.

    Channels and pictures have even sizes and n is odd, so every channel and every position comes in
    as often as any other: a channel of outliers has its share, and so has a pixel.
    """
    return -(-count // most) | 1 if count > most else 1


class Measured(NamedTuple):
    """One input in numbers, for each half.

    Attributes:
        values: float32 [batch, positions, channels], or as they came with `conv`, [batch, channels,
            positions]; what is no number is 0.
        conv: which; `block`: the numbers.
        size: values of a half; `counted`: of these, those behind the sums and counts.
    """

    values: Tensor
    conv: bool
    block: Block
    size: int
    counted: int

    @property
    def rows(self) -> Tensor:
        """The values, [halves, samples, positions, channels]."""
        rows = self.values.transpose(1, 2) if self.conv else self.values
        return rows.unflatten(0, (len(self.block.sums), -1))

    @property
    def channels(self) -> int:
        """How many."""
        return self.values.shape[1 if self.conv else 2]


def measure(x: Tensor, halves: int, *, conv: bool) -> Measured:
    """Returns the numbers of one input.

    Args:
        x: [halves · samples, positions, channels], or [..., channels, positions] with `conv`.
    """
    values = x.float()
    size = values.numel() // halves
    stride = stride_of(size, COUNTED)
    block = statistics.block_statistics(values, halves, stride, channels_first=conv)
    if block.nonfinite is not None:
        values = torch.where(torch.isfinite(values), values, 0.0)
    return Measured(values, conv, block, size, -(-size // stride))


def magnitude_counts(counts: Counts) -> Counts:
    """Returns the counts of magnitudes of signed counts [rows, BINS], [rows, SIDE + 1]."""
    folded = counts[:, SIDE:].copy()
    folded[:, 1:] += counts[:, :SIDE][:, ::-1]
    return folded


def magnitude_quantiles(counts: Counts, largest: Floats, levels: tuple[float, ...]) -> Floats:
    """Returns quantiles of the magnitude of signed counts [rows, BINS], [levels, rows]."""
    folded, zero = magnitude_counts(counts), np.zeros(len(counts))
    return statistics.bin_quantiles(folded, zero, largest, bin_edges()[SIDE:], np.array(levels))


def outlier_counts(counts: npt.NDArray[np.integer]) -> Counts:
    """Returns how many of the values counted in [rows, BINS] have |x| >= 6; exact."""
    first = int(np.searchsorted(bin_edges()[SIDE + 1 :], OUTLIER))
    return counts[:, SIDE + 1 + first :].sum(axis=1) + counts[:, : SIDE - first].sum(axis=1)


def quantiles(
    counts: npt.NDArray[np.integer], low: Floats, high: Floats, levels: tuple[float, ...]
) -> Floats:
    """Returns quantile estimates per row of binned counts, [levels, rows].

    Inside a bin the values are taken as evenly spread, between the row's exact extremes, so an
    estimate is off by less than one bin (12.5 % of its magnitude), usually by less than 1 %.

    Args:
        counts: [rows, BINS]; `low`, `high`: exact extremes of each row, [rows]; `levels` in 0 ...
        1.
    """
    return statistics.bin_quantiles(counts, low, high, bin_edges(), np.array(levels))


class Summary:
    """A layer's whole input at one step, for each half of the guidance: [halves, ...] throughout.

    Attributes:
        count: values seen; `counted`: those behind `power` and `histogram`.
        nonfinite: how many were NaN or infinite (taken as 0); None for none.
        power: sums of x, x², x³, x⁴, [halves, 4]; `histogram`: in `bin_edges`, [halves, BINS].
        channels: how many.
        limits: smallest and largest by channel and by position, [halves, 2 channels + 2 positions];
            None after `release`.
    """

    __slots__ = (
        "_released", "channels", "count", "counted", "histogram", "limits", "nonfinite", "power",
    )  # fmt: skip

    def __init__(self, first: Measured) -> None:
        block = first.block
        self.count = first.size
        self.counted = first.counted
        self.nonfinite = block.nonfinite
        self.power = block.sums
        self.histogram = block.counts
        self.channels = first.channels
        self.limits: Limits | None = block.limits
        self._released: Floats = np.zeros((4, 0))  # as `span`, when the limits are gone

    def add(self, found: Measured) -> None:
        """Adds another input."""
        block = found.block
        self.count += found.size
        self.counted += found.counted
        if block.nonfinite is not None:
            self.nonfinite = block.nonfinite + (0 if self.nonfinite is None else self.nonfinite)
        self.power = self.power + block.sums
        self.histogram = self.histogram + block.counts
        if self.limits is None:
            self._released = np.maximum(self.span, span(block.limits, self.channels))
        else:
            self.limits = wider(self.limits, block.limits, self.channels)

    def release(self) -> None:
        """Gives up the extremes by channel and position; D is the largest of what was released."""
        if self.limits is not None:
            self._released = span(self.limits, self.channels)
            self.limits = None

    @property
    def span(self) -> Floats:
        """As the function, [4, halves]."""
        return self._released if self.limits is None else span(self.limits, self.channels)


def cut(limits: Limits, channels: int) -> list[Limits]:
    """Returns smallest and largest by channel, [..., channels] each, and by position."""
    positions = limits.shape[-1] // 2 - channels
    return np.split(limits, [channels, 2 * channels, 2 * channels + positions], axis=-1)


def wider(known: Limits, fresh: Limits, channels: int) -> Limits:
    """Returns limits that hold both."""
    pairs = zip(cut(known, channels), cut(fresh, channels), strict=True)
    parts = [(np.maximum if at % 2 else np.minimum)(*pair) for at, pair in enumerate(pairs)]
    return np.concatenate(parts, axis=-1)


def span(limits: Limits, channels: int) -> Floats:
    """Returns −smallest, largest, DGQ's D over channels and over positions, [4, ...]."""
    low, high, first, last = (part.astype(np.float64) for part in cut(limits, channels))
    return np.stack(
        [-low.min(axis=-1), high.max(axis=-1), spread_of(low, high), spread_of(first, last)]
    )


def spread_of(low: Floats, high: Floats) -> Floats:
    """Returns D = (max_i aᵢᵐᵃˣ − min_i aᵢᵐᵃˣ) + (max_i aᵢᵐⁱⁿ − min_i aᵢᵐⁱⁿ) over the last axis.

    DGQ (arXiv 2501.04304, section 4.1) groups channels or pixels, whichever have the larger D.

    Args:
        low, high: extremes of the channels or of the positions, [..., n].
    """
    return np.ptp(high, axis=-1) + np.ptp(low, axis=-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """Many summaries at once, [n, halves] each but for `histogram`, [n, halves, BINS]."""

    histogram: Counts
    nonfinite: Counts
    minimum: Floats
    maximum: Floats
    absmax: Floats
    channel_spread: Floats
    position_spread: Floats
    mean: Floats
    rms: Floats
    kurtosis: Floats
    outliers: Floats

    @classmethod
    def of(cls, summaries: Sequence[Summary]) -> Overview:
        """Returns the numbers of summaries, at least one: one by one they would take a second."""
        histogram = np.stack([each.histogram for each in summaries])
        counted = np.array([max(each.counted, 1) for each in summaries])[:, None]
        moments = np.stack([each.power for each in summaries]) / counted[:, :, None]
        mean, second = moments[..., 0], moments[..., 1]
        low, high, channels, positions = _spans(summaries)
        found = outlier_counts(histogram.reshape(-1, BINS)).reshape(mean.shape)
        return cls(
            histogram=histogram,
            nonfinite=np.stack([_known(each.nonfinite, mean.shape[1]) for each in summaries]),
            minimum=-low,
            maximum=high,
            absmax=np.maximum(np.maximum(low, high), 0.0),
            channel_spread=channels,
            position_spread=positions,
            mean=mean,
            rms=np.sqrt(second),
            kurtosis=kurtosis(moments),
            outliers=found / counted,
        )


def _known(counts: Counts | None, halves: int) -> Counts:
    return np.zeros(halves, np.int64) if counts is None else counts


def _spans(summaries: Sequence[Summary]) -> Floats:
    """`span` of all, [4, n, halves]; those of one size together."""
    found = np.empty((4, len(summaries), len(summaries[0].power)))
    alike: dict[tuple[int, int], list[tuple[int, Limits]]] = {}
    for index, each in enumerate(summaries):
        if each.limits is None:
            found[:, index] = each.span
        else:
            size = (each.channels, each.limits.shape[1])
            alike.setdefault(size, []).append((index, each.limits))
    for (channels, _), group in alike.items():
        indices = [index for index, _ in group]
        found[:, indices] = span(np.stack([limits for _, limits in group]), channels)
    return found


def kurtosis(moments: Floats) -> Floats:
    """Returns the fourth standardised moment, from raw ones [..., 4]: 3 for a Gaussian, 0 for a
    constant.
    """
    mean, second, third, fourth = np.moveaxis(moments, -1, 0)
    variance = second - mean**2
    flat = variance <= 1e-12 * np.maximum(second, 1e-30)
    central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    return np.where(flat, 0.0, central / np.where(flat, 1.0, variance) ** 2)


class Detail:
    """Statistics by channel and by position of one layer's inputs, [halves, ...] throughout.

    Attributes:
        channels: how many; `total`: sum of each, [halves, channels].
        limits: as in `Summary`; `histogram`: of each channel, int32 [halves, channels, BINS].
        surface: largest magnitude of so many neighbours, [halves, rows, columns].
    """

    def __init__(self, first: Measured) -> None:
        halves, _, positions, self.channels = first.rows.shape
        self.total: Floats = np.zeros((halves, self.channels))
        self.limits = first.block.limits
        self.histogram = np.zeros((halves, self.channels, BINS), dtype=np.int32)
        self._cells = (-(-positions // SURFACE[0]), -(-self.channels // SURFACE[1]))
        shape = (halves, -(-positions // self._cells[0]), -(-self.channels // self._cells[1]))
        self.surface: Limits = np.zeros(shape, np.float32)
        self.add(first)

    def add(self, found: Measured) -> None:
        """Adds an input."""
        x = found.rows
        self.limits = wider(self.limits, found.block.limits, self.channels)
        self.total = self.total + x.sum(dim=(1, 2)).cpu().numpy()
        peaks = x.abs().amax(dim=1)  # [halves, positions, channels]
        if self._cells != (1, 1):
            peaks = functional.max_pool2d(peaks[:, None], self._cells, ceil_mode=True)[:, 0]
        self.surface = np.maximum(self.surface, peaks.cpu().numpy())
        for half, samples in enumerate(x):
            for sample in samples:  # [positions, channels]
                statistics.add_counts(sample.T, self.histogram[half])
