"""Alpha: the published example, Fleiss' kappa of statsmodels, and the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from vqdq.metrics.agreement import krippendorff

# Krippendorff 2011, section C: four observers, twelve units, missing values; nominal 0.743.
PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def test_the_published_example():
    columns = zip(*(row.split() for row in PUBLISHED), strict=True)
    found = krippendorff([[x for x in unit if x != "."] for unit in columns])
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.units == 11  # the twelfth has one answer alone


@pytest.mark.parametrize("seed", range(4))
def test_on_complete_data_it_is_fleiss_kappa_with_its_correction(seed):
    """1 − alpha = (1 − kappa) (N − 1) / N for N answers."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(4, size=(40, 1))
    answers = np.where(rng.random((40, 5)) < 0.6, truth, rng.integers(4, size=(40, 5)))
    kappa = fleiss_kappa(aggregate_raters(answers)[0])
    alpha = krippendorff([[str(x) for x in unit] for unit in answers]).alpha
    assert 1 - alpha == pytest.approx((1 - kappa) * 199 / 200, abs=1e-12)


def test_limits():
    perfect = krippendorff([["a", "a"], ["b", "b", "b"], ["tie", "tie"]])
    assert (perfect.alpha, perfect.observed) == (1.0, 1.0)
    opposite = krippendorff([["a", "b"], ["b", "a"]])
    assert opposite.alpha < 0
    assert opposite.observed == 0
    assert "no more than by chance" in opposite.words()


def test_undefined_is_said():
    alone = krippendorff([["a"], ["b"], []])
    assert (alone.units, math.isnan(alone.alpha)) == (0, True)
    assert "unknown" in alone.words()
    constant = krippendorff([["a", "a"], ["a", "a"]])
    assert math.isnan(constant.alpha)
    assert constant.observed == 1
    assert "says nothing" in constant.words()
