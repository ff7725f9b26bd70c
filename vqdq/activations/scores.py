"""Levels of attention scores: logarithmic, in base 2 or in a base that fits the bits, or even.

Scores [heads, queries, keys] of one sample come from the softmax, in float32. Their scale is taken
from them as they are: the largest score of the words, so it follows the prompt and nothing else in
the batch (DGQ, arXiv 2501.04304, section 4.2; its code takes the largest of the whole batch). The
start token, key 0 of cross-attention, stands apart: its scores are neither measured nor rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Scheme = Literal["log", "log2", "linear"]
_SMALLEST = 1e-30  # of a peak and a mean: a sample whose words get nothing keeps its zeros


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """What the scale of a sample is made of.

    Attributes:
        peak: its largest score of a word; `mean`: of all its scores of words.
        count: how many they are.
    """

    peak: float
    mean: float
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreLevels:
    """The levels of a sample's scores, s its largest.

    "log2", as published: s 2^−q for q = 0 … 2^b − 1. The smallest, s 2^−15 at 4 bits, is never 0,
    so that every masked key gets it.
    "log": s 2^(−q R / (2^b − 2)) for q = 0 … 2^b − 2, and 0 for the last code: R octaves are cut
    evenly, and what is below half of the smallest level vanishes, for thousands of tiny scores
    that are all lifted to a level add up.
    "linear": s q / (2^b − 1).

    Attributes:
        scheme, bits: as above.
        peak: s; `octaves`: R, only read by "log".
    """

    scheme: Scheme
    bits: int
    peak: float
    octaves: float

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def base(self) -> float:
        """Quotient of neighbouring levels; only of the logarithmic ones."""
        return 2.0**self._step

    @property
    def _step(self) -> float:
        """Octaves between neighbouring levels."""
        return 1.0 if self.scheme == "log2" else self.octaves / (self.highest - 1)

    def table(self) -> torch.Tensor:
        """Returns the score of every code, float32 [2^bits]."""
        codes = range(self.highest + 1)
        if self.scheme == "linear":
            levels = [self.peak * code / self.highest for code in codes]
            return torch.tensor(levels, dtype=torch.float32)
        levels = [self.peak * 2.0 ** (-code * self._step) for code in codes]
        if self.scheme == "log":
            levels[-1] = 0.0
        return torch.tensor(levels, dtype=torch.float32)

    def encode(self, scores: torch.Tensor) -> torch.Tensor:
        """Returns the codes of any scores, uint8."""
        if self.scheme == "linear":
            codes = (scores * (self.highest / self.peak)).round_().clamp_(0, self.highest)
            return codes.to(torch.uint8)
        # Levels below the peak; inf for a score of 0. One pass each: there are millions of scores.
        top = torch.tensor(math.log2(self.peak) / self._step, device=scores.device)
        down = torch.sub(top, scores.log2(), alpha=1 / self._step)
        if self.scheme == "log2":
            return down.round_().clamp_(0, self.highest).to(torch.uint8)
        nothing = down > (self.octaves + 1) / self._step
        return down.round_().clamp_(0, self.highest - 1).add_(nothing).to(torch.uint8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the scores that codes stand for, float32."""
        table = self.table().to(codes.device)
        return table.index_select(0, codes.flatten().int()).view(codes.shape)


def spread(scores: torch.Tensor, *, start_apart: bool) -> Spread:
    """Returns the spread of a sample's scores [heads, queries, keys]."""
    words = scores[..., 1:] if start_apart else scores
    if not words.numel():
        return Spread(peak=0.0, mean=0.0, count=0)
    return Spread(peak=float(words.max()), mean=float(words.mean()), count=words.numel())


def merged(parts: Sequence[Spread]) -> Spread:
    """Returns the spread of all parts together: blocks of one sample, or one scale for a batch."""
    count = sum(part.count for part in parts)
    total = math.fsum(part.mean * part.count for part in parts)
    finite = all(math.isfinite(part.peak) for part in parts)
    peak = max(part.peak for part in parts) if finite else math.nan
    return Spread(peak=peak, mean=total / max(count, 1), count=count)


def score_levels(found: Spread, scheme: Scheme, bits: int) -> ScoreLevels:
    """Returns the levels for a sample of that spread.

    "log" covers R = log2(peak / mean) + m octaves, m = 3/2 + 3/4 (bits − 4). Without a start token
    the mean is 1 / keys, so a row loses less than 2^−(m + 1) of its mass: 18 % at 4 bits, 2 % at
    8. More octaves would lose less and make the steps longer. Measured on softmaxes of normal
    logits (deviation 1, 2, 4 and mixed; 24, 77, 256 and 4096 keys; 4 to 8 bits), the product with
    random values comes within 0.3 dB of the best R at the median and 2.4 dB at worst when sums are
    kept, 0.5 and 4.0 dB when they are not.
    """
    peak, mean = max(found.peak, _SMALLEST), max(found.mean, _SMALLEST)
    octaves = math.log2(peak / mean) + 1.5 + 0.75 * (bits - 4)
    return ScoreLevels(scheme=scheme, bits=bits, peak=peak, octaves=octaves)


def fake_scores(
    scores: torch.Tensor, levels: ScoreLevels, *, start_apart: bool, keep_sums: bool = False
) -> torch.Tensor:
    """Returns what the codes of `scores` stand for, float32, same shape.

    Args:
        start_apart: key 0 stays as it is.
        keep_sums: what a row's words add up to stays: the softmax is normalised after its scores
            were rounded, not before. One division a row. The error that all scores of a row share
            is gone, and with it most of the error of a row that one key dominates.
    """
    words = scores[..., 1:] if start_apart else scores
    known = levels.decode(levels.encode(words))
    if keep_sums:
        total = known.sum(-1, keepdim=True)
        known *= torch.where(total > 0, words.sum(-1, keepdim=True) / total, 0.0)
    return torch.cat((scores[..., :1], known), dim=-1) if start_apart else known
