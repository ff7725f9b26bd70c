"""Intervals and tests of shares against scipy, statsmodels and closed forms."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vqdq.metrics import proportions

COUNTS = [(0, 1), (0, 7), (3, 3), (5, 9), (21, 38), (68, 128), (44, 128), (990, 1000)]


@pytest.mark.parametrize(("wins", "trials"), COUNTS)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_is_that_of_statsmodels(wins, trials, level):
    low, high = proportion_confint(wins, trials, alpha=1 - level, method="wilson")
    ours = proportions.wilson(wins, trials, level=level)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)
    assert ours.value == wins / trials


def test_wilson_solves_the_score_equation():
    ours = proportions.wilson(21, 38)
    for end in (ours.low, ours.high):
        z = (21 / 38 - end) / math.sqrt(end * (1 - end) / 38)
        assert abs(z) == pytest.approx(stats.norm.ppf(0.975), abs=1e-10)


def test_the_published_shares_read_as_the_protocol_says():
    """53 % and 45 % of 128 are inconclusive, 34.5 % is not."""
    ends = {n: proportions.wilson(n, 128) for n in (68, 58, 44)}
    assert ends[68].contains(0.5)
    assert ends[58].contains(0.5)
    assert ends[44].high < 0.5


def test_no_trial_says_nothing():
    ours = proportions.wilson(0, 0)
    assert math.isnan(ours.value)
    assert (ours.low, ours.high) == (0.0, 1.0)
    assert ours.to_json() == {"value": None, "low": 0.0, "high": 1.0, "level": 0.95}


@given(wins=st.integers(0, 300), losses=st.integers(0, 300))
@settings(max_examples=60)
def test_the_sign_test_is_scipys(wins, losses):
    ours = proportions.sign_test(wins, losses)
    if wins + losses == 0:
        assert ours == 1.0
        return
    assert ours == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_the_sign_test_in_fractions():
    assert proportions.sign_test(0, 5) == 2 / 32
    assert proportions.sign_test(5, 0) == 2 / 32
    exact = Fraction(2 * sum(math.comb(38, k) for k in range(13)), 2**38)
    assert proportions.sign_test(12, 26) == float(exact)
    assert proportions.sign_test(0, 2000) == 0.0  # smaller than any double, and no overflow
    assert proportions.sign_test(1000, 1000) == 1.0


@given(data=st.data(), trials=st.integers(1, 400), chance=st.floats(0.01, 0.99))
@settings(max_examples=60)
def test_binomial_tails_are_scipys(data, trials, chance):
    wins = data.draw(st.integers(0, trials))
    upper = stats.binom.sf(wins - 1, trials, chance)
    lower = stats.binom.cdf(wins, trials, chance)
    assert proportions.at_least(wins, trials, chance) == pytest.approx(upper, rel=1e-9, abs=1e-300)
    assert proportions.at_most(wins, trials, chance) == pytest.approx(lower, rel=1e-9, abs=1e-300)


@given(st.lists(st.integers(-6, 6), max_size=10))
@settings(max_examples=60)
def test_turning_prompts_over_is_all_sign_patterns(leads):
    sums = [
        abs(sum(sign * lead for sign, lead in zip(signs, leads, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(leads))
    ]
    wanted = sum(total >= abs(sum(leads)) for total in sums) / len(sums)
    assert proportions.flip_test(leads) == pytest.approx(wanted, rel=1e-12)


def test_turning_prompts_over_is_scipys_permutation_test():
    leads = [3, -1, 4, 1, -2, 4, 3, 0, 2, -3, 1, 2]
    theirs = stats.permutation_test(
        (np.array(leads),), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert proportions.flip_test(leads) == pytest.approx(theirs.pvalue, rel=1e-12)


@given(wins=st.integers(0, 200), losses=st.integers(0, 200))
@settings(max_examples=40)
def test_one_pair_a_prompt_is_the_sign_test(wins, losses):
    ours = proportions.flip_test([1] * wins + [-1] * losses + [0] * 3)
    assert ours == pytest.approx(proportions.sign_test(wins, losses), rel=1e-11)


@pytest.mark.parametrize(("wins", "losses"), [(110, 105), (50, 50), (200, 150), (3, 2), (0, 0)])
@pytest.mark.parametrize("margin", [0.05, 0.1, 0.2])
def test_equivalence_is_two_one_sided_binomial_tests(wins, losses, margin):
    ours = proportions.equivalence_test(wins, losses, margin)
    if wins + losses == 0:
        assert ours == 1.0
        return
    n = wins + losses
    above = stats.binomtest(wins, n, 0.5 - margin, alternative="greater").pvalue
    below = stats.binomtest(wins, n, 0.5 + margin, alternative="less").pvalue
    assert ours == pytest.approx(max(above, below), rel=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=15)
def test_holm_is_that_of_statsmodels(values):
    with mock.patch("gc.collect"):  # which theirs calls each time: a second among many objects
        theirs = multipletests(values, method="holm")[1]
    assert proportions.holm(values) == pytest.approx(tuple(theirs), abs=1e-12)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="5 of 3"):
        proportions.wilson(5, 3)
    with pytest.raises(ValueError, match="margin"):
        proportions.equivalence_test(3, 3, 0.5)
