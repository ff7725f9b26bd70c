"""K-means of a few thousand points into a few groups: small, exact enough, the same every time.

Lloyd's iteration from several k-means++ starts (Arthur and Vassilvitskii, SODA 2007), each polished
by moving single points where that lowers the error (Hartigan and Wong, AS 136): without it, small
sets end in a poor local minimum too often. All in numpy on one thread, so equal input gives equal
groups everywhere.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
_STARTS = 6
_ROUNDS = 60  # of Lloyd's iteration; it has settled long before
_MOVES = 400_000  # distances spent at most on moving single points after a start has settled


def kmeans(points: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Returns the group of each point, int64 [n], numbered by first appearance.

    No group is empty unless there are fewer different points than groups.

    Args:
        points: [n, dim], finite.
        count: of groups, at least 1.
        seed: of the starts.
    """
    values = points.detach().cpu().double().numpy()
    generator = torch.Generator().manual_seed(seed)
    best, least = np.zeros(len(values), dtype=np.int64), np.inf
    for _ in range(_STARTS if count > 1 else 0):
        labels = _settled(values, _start(values, count, generator))
        labels = _polished(values, labels, count)
        error = inertia(values, labels)
        if error < least:
            best, least = labels, error
    _, first, back = np.unique(best, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[back.reshape(-1)])


def inertia(points: Floats, labels: Ints) -> float:
    """Returns the squared distance of all points [n, dim] to the means of their groups."""
    means, _ = _means(points, labels, int(labels.max()) + 1)
    return float(np.square(points - means[labels]).sum())


def _start(points: Floats, count: int, generator: torch.Generator) -> Floats:
    """Returns k-means++ centres [count, dim]: each drawn by its distance to those before it."""
    draws = torch.rand(count, dtype=torch.float64, generator=generator).numpy()
    chosen = [int(draws[0] * len(points))]
    nearest = np.square(points - points[chosen[0]]).sum(1)
    for draw in draws[1:]:
        mass = np.cumsum(nearest)
        chosen.append(min(int(np.searchsorted(mass, draw * mass[-1], "right")), len(points) - 1))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(1))
    return points[chosen]


def _settled(points: Floats, centres: Floats) -> Ints:
    """Returns the labels where Lloyd's iteration stops."""
    labels = _distances(points, centres).argmin(1)
    for _ in range(_ROUNDS):
        centres, sizes = _means(points, labels, len(centres))
        distances = _distances(points, centres)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):  # an empty group takes the point that is worst off
            own = distances[np.arange(len(points)), labels]
            worst = np.argsort(-own, kind="stable")[: len(empty)]
            centres[empty[: len(worst)]] = points[worst]
            distances = _distances(points, centres)
        moved = distances.argmin(1)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels


def _polished(points: Floats, labels: Ints, count: int) -> Ints:
    """Returns labels after moving single points while the error falls, the best move first.

    Taking a point from a group of n saves n/(n−1) of its squared distance to that mean, giving it
    to one of m costs m/(m+1) of its distance to this one.
    """
    labels, rows = labels.copy(), np.arange(len(points))
    for _ in range(_MOVES // (len(points) * count)):
        means, sizes = _means(points, labels, count)
        distances = _distances(points, means)
        own = sizes[labels]
        saved = np.where(own > 1, own / np.maximum(own - 1, 1) * distances[rows, labels], 0.0)
        costs = distances * (sizes / (sizes + 1))
        costs[rows, labels] = np.inf
        gains = saved - costs.min(1)
        point = int(gains.argmax())
        if gains[point] <= 1e-12 * max(saved[point], 1e-300):
            break
        labels[point] = costs[point].argmin()
    return labels


def _means(points: Floats, labels: Ints, count: int) -> tuple[Floats, Ints]:
    """Returns the mean of each group [count, dim], zeros where it is empty, and its size."""
    sizes = np.bincount(labels, minlength=count)
    sums = [np.bincount(labels, weights=column, minlength=count) for column in points.T]
    return np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None], sizes


def _distances(points: Floats, centres: Floats) -> Floats:
    """Returns squared distances [n, count], summed over dimensions in order."""
    found = np.zeros((len(points), len(centres)))
    for point, centre in zip(points.T, centres.T, strict=True):
        found += np.square(point[:, None] - centre)
    return found
