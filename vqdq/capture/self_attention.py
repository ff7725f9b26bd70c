"""Scores of a picture that looks at itself, and what both kinds of attention add up alike."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdq import kernels
from vqdq.capture.attention_record import SCORE_BINS, Floats
from vqdq.capture.steps import StepClock

QUERIES = 64
"""Evenly spaced queries of a call that stand for all: scores of all would take their square."""

Key = tuple[str, int]  # layer and step


def some_queries(q: Tensor, dim: int = 1) -> Tensor:
    """Returns at most `QUERIES` evenly spaced entries along `dim`."""
    count = q.shape[dim]
    if count <= QUERIES:
        return q
    stride = next(step for step in range(count // QUERIES, 2 * count) if math.gcd(step, count) == 1)
    at = torch.arange(QUERIES) * stride % count  # all different, and not along one column
    return q.index_select(dim, at.to(q.device))


class Mean:
    """A running mean of equal-shaped arrays."""

    __slots__ = ("_weight", "value")

    def __init__(self) -> None:
        self.value: Floats = np.zeros((), np.float32)
        self._weight = 0

    def add(self, x: Tensor, weight: int) -> None:
        """Adds the mean `x` of `weight` samples."""
        fresh = x.detach().float().cpu().numpy()
        self._weight += weight
        change = (fresh - self.value) * (weight / self._weight)
        self.value = self.value + change.astype(np.float32)


class Spread:
    """Largest and mean score, [halves] each."""

    __slots__ = ("mean", "peak")

    def __init__(self) -> None:
        self.peak: Floats = np.zeros((), np.float32)
        self.mean = Mean()

    def add(self, scores: Tensor) -> None:
        """Widens the largest to scores [halves, ...], and adds to the mean."""
        flat = scores.flatten(1)
        if flat.shape[1]:
            self.peak = np.maximum(self.peak, flat.amax(dim=1).cpu().numpy())
            self.mean.add(flat.mean(dim=1), flat.shape[1])


class SelfAttention:
    """Collects what a picture looks at of itself."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._grids: dict[str, tuple[int, int] | None] = {}  # in the order of the first call
        self._counts: dict[Key, npt.NDArray[np.int64]] = {}
        self._spread: dict[Key, Spread] = {}
        self._maps: dict[str, Mean] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names in the order they ran."""
        return tuple(self._grids)

    def add(self, name: str, found: Tensor, used: Tensor) -> None:
        """Adds scores [batch, heads, some queries, places], before and after they are rounded."""
        places = found.shape[-1]
        grid = self._grids.setdefault(name, self._clock.grid(places))
        key = (name, max(self._clock.step, 0))
        exact, parts = self._clock.halved(found), self._clock.halved(used)
        group = np.zeros(places, np.int64)
        counts = np.stack([kernels.score_counts(part, group, 1)[0] for part in parts])
        self._counts[key] = self._counts[key] + counts if key in self._counts else counts
        self._spread.setdefault(key, Spread()).add(exact)
        if grid is not None:
            guided = parts[-1]
            self._maps.setdefault(name, Mean()).add(
                guided.mean(dim=(0, 1, 2)).reshape(grid), len(guided)
            )

    def histogram(self) -> Floats:
        """Returns the counts of scores, [halves, layers, steps, SCORE_BINS]."""
        found = np.zeros((*self._shape(), SCORE_BINS), np.float32)
        for (name, step), counts in self._counts.items():
            found[:, self.layers.index(name), step] = counts
        return found

    def spread(self) -> Floats:
        """Returns the largest and the mean score, [2, halves, layers, steps]."""
        found = np.full((2, *self._shape()), np.nan, np.float32)
        for (name, step), spread in self._spread.items():
            found[:, :, self.layers.index(name), step] = spread.peak, spread.mean.value
        return found

    def maps(self) -> dict[str, Floats]:
        """Returns how much each place is looked at, by layer."""
        return {name: mean.value for name, mean in self._maps.items()}

    def _shape(self) -> tuple[int, int, int]:
        steps = len(self._clock.timesteps) or 1
        return len(self._clock.halves), len(self.layers), steps
