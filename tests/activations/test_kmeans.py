"""K-means against brute force, and where points coincide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vqdq.activations.kmeans import inertia, kmeans


def least_error(points: np.ndarray, count: int) -> float:
    """The smallest error of all partitions into at most `count` groups."""
    return min(
        inertia(points, np.array(labels))
        for labels in itertools.product(range(count), repeat=len(points))
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("points", "count"), [(7, 2), (7, 3), (6, 4)])
def test_small_sets_have_the_least_error_there_is(points: int, count: int, seed: int) -> None:
    values = torch.randn(points, 2, generator=torch.Generator().manual_seed(seed)).double()
    found = inertia(values.numpy(), kmeans(values, count).numpy())
    assert found == pytest.approx(least_error(values.numpy(), count), rel=1e-9, abs=1e-15)


def test_planted_groups_are_found_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 16, (2000,), generator=generator)
    centres = torch.stack((-torch.arange(16.0), torch.arange(16.0) ** 2), dim=1)
    points = centres[truth] + 0.02 * torch.randn(2000, 2, generator=generator)
    labels = kmeans(points, 16)
    pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
    assert len(pairs) == 16


def test_groups_are_numbered_by_first_appearance_and_repeat() -> None:
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
    labels = kmeans(points, 8)
    firsts = [labels.tolist().index(group) for group in range(8)]
    assert firsts == sorted(firsts)
    assert torch.equal(labels, kmeans(points, 8))


def test_fewer_different_points_than_groups() -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]])
    assert kmeans(points, 8).tolist() == [0, 1, 0, 1]
    assert kmeans(torch.zeros(5, 2), 4).tolist() == [0] * 5
    assert kmeans(torch.ones(1, 2), 16).tolist() == [0]
    assert kmeans(points, 1).tolist() == [0] * 4
