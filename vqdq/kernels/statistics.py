"""What a tensor holds, for a person who looks inside: extremes, powers, counts, signed sums.

These run beside every layer of a model that is watched, so each is one pass over the values. Counts
and extremes are exact, and the same from every implementation; sums are float64 and added in an
order of the implementation's own, so they agree to about 1e-12 of the sum of magnitudes. Results
are numpy arrays on the host, where a capture adds them up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vqdq.kernels.backend import chosen

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SHIFT = 20  # a float32 without its last 20 bits: sign, exponent and 3 bits of the mantissa
PER_OCTAVE = 1 << (23 - SHIFT)
OCTAVES = 12  # bins cover 2^-12 ... 2^12; smaller is one zero bin, larger falls in the last bin
SIDE = 2 * OCTAVES * PER_OCTAVE
BINS = 2 * SIDE + 1
FIRST = (127 - OCTAVES) * PER_OCTAVE  # leading bits of 2^-12
SIGN = (1 << (31 - SHIFT)) - 1  # leading bits but the sign

FLOOR_OCTAVES = 24
"""Scores from 2^-24 to 1 are told apart; softmax in fp32 needs about this much."""
SCORE_BINS = 2 * FLOOR_OCTAVES + 1
"""Two bins an octave and one, the first, for everything below."""
ROOT = 0x3504F4
"""The least mantissa of a float32 that is not below √2."""

OPERATIONS = (
    "block_statistics",
    "add_counts",
    "add_sketch",
    "add_codes",
    "bin_quantiles",
    "score_counts",
)


class Block(NamedTuple):
    """One tensor in numbers; values that are no numbers are counted and taken as 0.

    Attributes:
        limits: least and largest of each channel, then of each position, of all samples, float32
            [halves, 2 channels + 2 positions].
        sums: of x, x², x³, x⁴ of every `stride`-th value, [halves, 4].
        counts: of the same values by bin, [halves, BINS].
        nonfinite: how many values were NaN or infinite, [halves]; None where all are numbers.
    """

    limits: npt.NDArray[np.float32]
    sums: Floats
    counts: Counts
    nonfinite: Counts | None


def block_statistics(x: torch.Tensor, halves: int, stride: int, *, channels_first: bool) -> Block:
    """Returns the numbers of each half of a batch.

    Args:
        x: float32 [halves · samples, positions, channels], or […, channels, positions]; not empty.
        channels_first: the second.
    """
    return _backend(x).block_statistics(x, halves, stride, channels_first=channels_first)


def add_counts(values: torch.Tensor, counts: npt.NDArray[np.int32]) -> None:
    """Adds to counts [rows, BINS] how many values of each row fall in each bin.

    The bins are the leading bits of a float32: eight equal ones an octave on either side of 0.

    Args:
        values: finite float32 [rows, n], or the transposed view of [n, rows].
    """
    _backend(values).add_counts(values, counts)


def add_sketch(
    y: torch.Tensor, signs: torch.Tensor, sample: int, stride: int, total: Floats, energy: Floats
) -> None:
    """Adds signed sums of every `stride`-th value to `total`, and its square to `energy`.

    Value i of those taken goes to bucket i mod buckets, with the sign (i − 7919·sample) mod length.
    Values that are no numbers count as 0.

    Args:
        y: [halves · samples, n] of any float type.
        signs: float32 ±1, one for each value taken of a sample.
        sample: number of the first of these samples.
        total: [halves, buckets]; `energy`: [halves].
    """
    _backend(y).add_sketch(y, signs, sample, stride, total, energy)


def add_codes(
    rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, highest: int, counts: Counts
) -> None:
    """Adds to counts [halves, highest + 3] the codes of each half of a batch.

    A code is x times the float32 reciprocal of the scale, rounded to even, plus zero. Codes below 0
    are counted first, those beyond `highest` last; what is no number has the code 0. A batch that
    cannot be cut into halves is counted in each.

    Args:
        rows: float32 [batch, positions, channels].
        scale, zero: float32 in a shape that broadcasts over the rows.
    """
    _backend(rows).add_codes(rows, scale, zero, highest, counts)


def bin_quantiles(
    counts: npt.NDArray[Any], low: Floats, high: Floats, edges: Floats, levels: Floats
) -> Floats:
    """Returns quantiles of values that were counted in bins, [levels, rows].

    Inside a bin the values are taken as evenly spread, between the row's exact extremes; the two
    outermost bins reach to these.

    Args:
        counts: [rows, bins]; `edges`: [bins + 1]; `levels` in 0 … 1.
        low, high: exact extremes of each row, [rows].
    """
    return _plain_backend().bin_quantiles(counts, low, high, edges, levels)


def score_counts(
    scores: torch.Tensor, groups: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Returns how many scores fall in each half octave below 1, [count, SCORE_BINS].

    Args:
        scores: float32 [..., tokens] in 0 … 1.
        groups: the group of each token, below `count`.
    """
    return _backend(scores).score_counts(scores, groups, count)


def warm() -> None:
    """Compiles every loop of this module, or loads it from the cache."""
    values = torch.zeros(1, 2, 2)
    block_statistics(values, 1, 1, channels_first=False)
    add_counts(values[0], np.zeros((2, BINS), np.int32))
    add_counts(values[0].T, np.zeros((2, BINS), np.int32))
    add_sketch(values[0], torch.ones(2), 0, 1, np.zeros((1, 2)), np.zeros(1))
    add_codes(values, torch.ones(1), torch.zeros(1), 3, np.zeros((1, 6), np.int64))
    edges, one = np.arange(3.0), np.ones(1)
    for kind in (np.int32, np.int64):
        bin_quantiles(np.ones((1, 2), kind), one, one, edges, one)
    score_counts(values[0], np.zeros(2, np.int64), 1)


def _backend(x: torch.Tensor) -> Any:
    """Returns the implementation for values where they are."""
    if x.device.type == "cpu":
        return _plain_backend()
    from vqdq.kernels import statistics_reference

    return statistics_reference


def _plain_backend() -> Any:
    return chosen("vqdq.kernels.statistics_cpu", "vqdq.kernels.statistics_reference")[0]
