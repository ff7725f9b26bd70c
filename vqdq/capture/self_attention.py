"""Scores of a picture that looks at itself, and what both kinds of attention count alike."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vqdq.capture.attention_record import FLOOR_OCTAVES, SCORE_BINS, Floats
from vqdq.capture.steps import StepClock

QUERIES = 64
"""Evenly spaced queries of a call that stand for all: scores of all would take their square."""


def some_queries(q: Tensor) -> Tensor:
    """Returns at most `QUERIES` evenly spaced rows of [batch, queries, width]."""
    count = q.shape[1]
    if count <= QUERIES:
        return q
    stride = next(step for step in range(count // QUERIES, 2 * count) if math.gcd(step, count) == 1)
    at = torch.arange(QUERIES) * stride % count  # all different, and not along one column
    return q[:, at.to(q.device)]


def score_counts(found: Tensor) -> Floats:
    """Returns how many scores fall in each half octave, [SCORE_BINS]; bin 0 is open below."""
    per_octave = (SCORE_BINS - 1) / FLOOR_OCTAVES
    level = (found.log2() + FLOOR_OCTAVES).mul_(per_octave).clamp_(-0.5, SCORE_BINS - 1.5)
    counts = torch.histc(level, bins=SCORE_BINS, min=-1.0, max=float(SCORE_BINS - 1))
    return counts.cpu().numpy()


class Mean:
    """A running mean of equal-shaped arrays."""

    def __init__(self) -> None:
        self.value: Floats = np.zeros((), np.float32)
        self._weight = 0

    def add(self, x: Tensor, weight: int) -> None:
        """Adds the mean `x` of `weight` samples."""
        fresh = x.detach().cpu().numpy().astype(np.float32)
        self._weight += weight
        change = (fresh - self.value) * (weight / self._weight)
        self.value = (self.value + change).astype(np.float32)


def add_spread(
    known: dict[tuple[int, str, int], tuple[float, Mean]],
    key: tuple[int, str, int],
    scores: Tensor,
) -> None:
    """Widens the largest score at `key` to scores of any shape, and adds to their mean."""
    if scores.numel():
        peak, mean = known.get(key, (0.0, Mean()))
        mean.add(scores.mean(), scores.numel())
        known[key] = (max(peak, float(scores.max())), mean)


class SelfAttention:
    """Collects what self-attention layers look at."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._grids: dict[str, tuple[int, int] | None] = {}  # in the order of the first call
        self._counts: dict[tuple[int, str, int], Floats] = {}
        self._spread: dict[tuple[int, str, int], tuple[float, Mean]] = {}
        self._maps: dict[str, Mean] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names in the order they ran."""
        return tuple(self._grids)

    def add(self, name: str, found: Tensor, used: Tensor, keys: int) -> None:
        """Adds scores [batch, heads, some queries, keys], before and after they are rounded."""
        grid = self._grids.setdefault(name, self._clock.grid(keys))
        step = max(self._clock.step, 0)
        parts = list(zip(self._clock.split(found), self._clock.split(used), strict=True))
        for half, (exact, part) in enumerate(parts):
            key = (half, name, step)
            self._counts[key] = self._counts.get(key, 0) + score_counts(part)
            add_spread(self._spread, key, exact)
            if half == len(parts) - 1 and grid is not None:
                seen = part.mean(dim=(0, 1, 2)).reshape(grid)
                self._maps.setdefault(name, Mean()).add(seen, len(part))

    def histogram(self) -> Floats:
        """Returns the counts of scores, [halves, layers, steps, SCORE_BINS]."""
        found = np.zeros((*self._shape(), SCORE_BINS), np.float32)
        for (half, name, step), counts in self._counts.items():
            found[half, self.layers.index(name), step] = counts
        return found

    def spread(self) -> Floats:
        """Returns the largest and the mean score, [2, halves, layers, steps]."""
        found = np.full((2, *self._shape()), np.nan, np.float32)
        for (half, name, step), (peak, mean) in self._spread.items():
            found[:, half, self.layers.index(name), step] = peak, float(mean.value)
        return found

    def maps(self) -> dict[str, Floats]:
        """Returns how much each place is looked at, by layer."""
        return {name: mean.value for name, mean in self._maps.items()}

    def _shape(self) -> tuple[int, int, int]:
        steps = len(self._clock.timesteps) or 1
        return len(self._clock.halves), len(self.layers), steps
