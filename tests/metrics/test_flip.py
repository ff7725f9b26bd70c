"""Closed forms, and the numbers of the authors' own program."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vqdq.errors import UserError
from vqdq.metrics.flip import flip


def _gradient() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([x / 63, y / 47, 0.5 + 0.5 * np.sin(x / 5)], axis=-1)


def _damaged() -> np.ndarray:
    """The gradient with a red patch and a black line."""
    picture = _gradient()
    picture[10:20, 30:40] = (1, 0, 0)
    picture[:, 50] = 0
    return picture


# `flip_evaluator.evaluate(gradient, damaged, "LDR", applyMagma=False, parameters={"ppd": ...})` of
# the authors' package flip-evaluator 1.7 (float32): the mean, and the error at (row, column).
POINTS = ((15, 35), (10, 29), (30, 50), (25, 35))
THEIRS = {
    67.0: (0.09300498, (0.89647, 0.53246, 0.53596, 0.05852)),
    30.0: (0.07842066, (0.96457, 0.43854, 0.97221, 0.0)),
}


@pytest.mark.parametrize("ppd", THEIRS)
def test_agrees_with_the_authors_program(ppd):
    mean, errors = THEIRS[ppd]
    found = flip(_gradient(), _damaged(), pixels_per_degree=ppd)
    assert found.mean == pytest.approx(mean, abs=2e-6)
    for place, error in zip(POINTS, errors, strict=True):
        assert found.error[place] == pytest.approx(error, abs=2e-5)
    back = flip(_damaged(), _gradient(), pixels_per_degree=ppd)
    np.testing.assert_allclose(back.error, found.error, atol=1e-12)


def test_equal_pictures_have_no_error():
    found = flip(_gradient(), _gradient())
    assert (found.mean, found.error.max()) == (0, 0)
    assert found.error.shape == (48, 64)


def test_black_against_white_is_the_closed_form():
    # Flat pictures have no edges: HyAB is 100, far above the knee of the largest distance, which
    # is that of green and blue after Hunt's adjustment.
    green, blue = (87.7347, -75.6367, 72.9810), (32.2970, 25.5808, -34.8386)
    largest = (green[0] - blue[0] + math.dist(green[1:], blue[1:])) ** 0.7
    knee = 0.4 * largest
    expected = 0.95 + 0.05 * (100**0.7 - knee) / (largest - knee)
    for shape in ((12, 12), (12, 12, 3)):
        found = flip(np.zeros(shape), np.ones(shape))
        np.testing.assert_allclose(found.error, expected, atol=2e-4)


def test_sizes_must_agree():
    with pytest.raises(UserError, match="different sizes"):
        flip(_gradient(), _gradient()[:40])
    with pytest.raises(ValueError, match="0 pixels per degree"):
        flip(_gradient(), _gradient(), pixels_per_degree=0)
