"""Running statistics of a tensor stream: exact extremes and moments, percentiles from log bins.

Counts, extremes and sums do not depend on the order of the batches. Memory depends on the number of
channels and positions, never on how many values went by. Accumulation happens in numpy (float64,
int64) on the host, so a stream may begin under `torch.inference_mode` and go on outside of it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

OUTLIER = 6.0
"""A value is called an outlier from this magnitude on (LLM.int8, arXiv 2208.07339, section 4)."""

_BINS_PER_OCTAVE = 4
_OCTAVES = 12  # bins cover 2^-12 ... 2^12; smaller is one zero bin, larger falls in the last bin
SIDE = 2 * _OCTAVES * _BINS_PER_OCTAVE
BINS = 2 * SIDE + 1


def bin_edges() -> Floats:
    """Returns the edges of the signed log-spaced bins, four an octave, [BINS + 1]."""
    magnitudes = 2.0 ** (np.arange(SIDE + 1) / _BINS_PER_OCTAVE - _OCTAVES)
    return np.concatenate([-magnitudes[::-1], magnitudes])


def magnitude_bins(x: Tensor) -> Tensor:
    """Returns each value's bin of magnitude: 0 below 2^-12, else 1 ... SIDE; same shape, int64."""
    level = (x.abs().log2() + _OCTAVES) * _BINS_PER_OCTAVE
    return level.floor().clamp(-1, SIDE - 1).add(1).long()


def quantiles(counts: Counts, low: Floats, high: Floats, levels: tuple[float, ...]) -> Floats:
    """Returns quantile estimates per row of binned counts, [levels, rows].

    Inside a bin the values are taken as evenly spread, between the row's exact extremes, so an
    estimate is off by less than one bin (19 % of its magnitude), usually by 1 to 2 %.

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
    """Scalars of a whole layer input: count, largest magnitude, moments, magnitudes by octave."""

    def __init__(self) -> None:
        self.count = 0
        self.nonfinite = 0
        self.outliers = 0
        self.absmax = 0.0
        self.power: Floats = np.zeros(4)  # sums of x, x², x³, x⁴
        self.magnitudes: Counts = np.zeros(SIDE + 1, dtype=np.int64)

    def update(self, x: Tensor) -> Tensor:
        """Adds the values of `x`, any shape; returns them as finite float32.

        This runs for every layer and step, so it is few operations: dot products for the moments
        (float32 inside one call, float64 between calls) and histc instead of bincount.
        """
        values = x.float()
        size = values.abs()
        peak = float(size.max())
        if not math.isfinite(peak):
            good = torch.isfinite(values)
            self.nonfinite += int(good.numel() - good.sum())
            values = torch.where(good, values, 0.0)
            size = values.abs()
            peak = float(size.max())
        flat = values.reshape(-1)
        square = flat * flat
        sums = torch.stack([flat.sum(), flat @ flat, square @ flat, square @ square])
        level = (size.log2_() + _OCTAVES).mul_(_BINS_PER_OCTAVE).clamp_(-0.5, SIDE - 0.5)
        counts = torch.histc(level, bins=SIDE + 1, min=-1.0, max=float(SIDE))
        self.count += x.numel()
        if peak >= OUTLIER:
            self.outliers += int((square >= OUTLIER**2).sum())
        self.absmax = max(self.absmax, peak)
        self.power = self.power + sums.cpu().numpy().astype(np.float64)
        self.magnitudes = self.magnitudes + counts.cpu().numpy().astype(np.int64)
        return values

    @property
    def rms(self) -> float:
        """Root mean square of the values."""
        return float(np.sqrt(self.power[1] / max(self.count, 1)))

    @property
    def kurtosis(self) -> float:
        """Fourth standardised moment: 3 for a Gaussian, 0 for a constant."""
        mean, second, third, fourth = self.power / max(self.count, 1)
        variance = second - mean**2
        if variance <= 1e-12 * max(second, 1e-30):
            return 0.0
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        return float(central / variance**2)

    @property
    def median(self) -> float:
        """Median magnitude, estimated from the bins (within one bin, 19 %)."""
        signed = np.concatenate([np.zeros(SIDE, dtype=np.int64), self.magnitudes])[None]
        low, high = np.zeros(1), np.full(1, self.absmax)
        return float(quantiles(signed, low, high, (0.5,))[0, 0])


class Detail:
    """Statistics by channel and by position of [samples, positions, channels] inputs."""

    def __init__(self, *, channels: int, positions: int) -> None:
        self.minimum: Floats = np.full(channels, np.inf)
        self.maximum: Floats = np.full(channels, -np.inf)
        self.total: Floats = np.zeros(channels)
        self.outliers: Counts = np.zeros(channels, dtype=np.int64)
        self.histogram: Counts = np.zeros((channels, BINS), dtype=np.int64)
        self.position_absmax: Floats = np.zeros(positions)

    def update(self, x: Tensor) -> None:
        """Adds the finite float32 values of `x`, [samples, positions, channels]."""
        channels = x.shape[-1]
        flat = x.reshape(-1, channels)  # [samples * positions, channels]
        low, high = flat.amin(dim=0), flat.amax(dim=0)
        self.minimum = np.minimum(self.minimum, low.cpu().numpy())
        self.maximum = np.maximum(self.maximum, high.cpu().numpy())
        self.total = self.total + flat.sum(dim=0, dtype=torch.float64).cpu().numpy()
        size = x.abs()
        self.outliers = self.outliers + (size >= OUTLIER).sum(dim=(0, 1)).cpu().numpy()
        peaks = size.amax(dim=(0, 2)).cpu().numpy()
        self.position_absmax = np.maximum(self.position_absmax, peaks)
        bins = magnitude_bins(flat)
        bins = torch.where(flat < 0, -bins, bins) + SIDE  # [samples * positions, channels]
        row = torch.arange(channels, device=x.device) * BINS
        counts = torch.bincount((bins + row).reshape(-1), minlength=channels * BINS)
        self.histogram = self.histogram + counts.cpu().numpy().reshape(channels, BINS)

    @property
    def count(self) -> int:
        """Values a channel has seen."""
        return int(self.histogram[0].sum())

    def percentiles(self) -> Floats:
        """Returns the estimated 1st, 50th and 99th percentile of each channel, [3, channels]."""
        return quantiles(self.histogram, self.minimum, self.maximum, (0.01, 0.5, 0.99))


class Sketch:
    """A signed sum of a tensor in a few hundred buckets, from which distances between runs follow.

    With independent random signs, E‖s(a) − s(b)‖² = ‖a − b‖² and the relative standard error is √(2
    / WIDTH) (count sketch, Charikar, Chen and Farach-Colton 2002), so two runs are compared without
    keeping either run's activations. WIDTH is prime: consecutive positions of one channel then fall
    in different buckets.
    """

    WIDTH = 251  # relative error √(2/251) = 8.9 %, 0.37 dB
    _signs: dict[int, Tensor]

    def __init__(self) -> None:
        self._signs = {}

    def of(self, y: Tensor, *, first: int) -> tuple[Floats, float]:
        """Returns the sketch of `y`, [WIDTH], and its energy ‖y‖².

        Args:
            y: [samples, ...]; `first`: how many samples of this stream went before, for each sample
            has
                signs of its own and runs are paired sample by sample.
        """
        total, energy = np.zeros(self.WIDTH), 0.0
        for index, sample in enumerate(y.detach()):
            flat = sample.reshape(-1).float()
            power = float(flat @ flat)
            if not math.isfinite(power):
                flat = torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0)
                power = float(flat @ flat)
            mixed = flat * self._of(flat.shape[0], first + index).to(flat.device)
            whole = mixed.shape[0] // self.WIDTH * self.WIDTH
            total += mixed[:whole].reshape(-1, self.WIDTH).sum(dim=0).cpu().numpy()
            total[: mixed.shape[0] - whole] += mixed[whole:].cpu().numpy()
            energy += power
        return total, energy

    def _of(self, length: int, sample: int) -> Tensor:
        if length not in self._signs:
            generator = torch.Generator().manual_seed(0)
            bits = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            self._signs[length] = bits * 2 - 1
        signs = self._signs[length]
        return signs.roll(7919 * sample) if sample else signs
