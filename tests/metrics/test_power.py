"""How many pairs: the published table, the exact power, and simulation-free checks by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from vqdq.metrics import power
from vqdq.metrics.proportions import equivalence_test


@pytest.mark.parametrize(
    ("rate", "pairs"), [(0.55, 783), (0.6, 194), (0.65, 85), (0.7, 47), (0.8, 20)]
)
def test_pairs_for_eighty_per_cent_power(rate, pairs):
    assert power.pairs_to_detect(rate) == pairs
    assert power.pairs_to_detect(1 - rate) == pairs


def test_pairs_for_equivalence_within_ten_points():
    assert power.pairs_for_equivalence(0.1) == 215
    assert power.pairs_for_equivalence(0.05) == pytest.approx(4 * 215, abs=4)


@pytest.mark.parametrize("rate", [0.55, 0.6, 0.7, 0.8])
def test_the_exact_test_has_about_the_promised_power(rate):
    """The exact test is a little more careful than the formula; the difference is known."""
    exact = power.exact_power(rate, power.pairs_to_detect(rate))
    assert 0.73 < exact < 0.83
    assert power.exact_power(rate, math.ceil(1.15 * power.pairs_to_detect(rate)) + 5) > 0.8


@pytest.mark.parametrize(("rate", "pairs"), [(0.6, 194), (0.7, 47), (0.5, 100), (0.8, 5)])
def test_exact_power_sums_what_scipy_rejects(rate, pairs):
    wins = np.arange(pairs + 1)
    rejected = [stats.binomtest(int(k), pairs).pvalue <= 0.05 for k in wins]
    wanted = stats.binom.pmf(wins, pairs, rate)[rejected].sum()
    assert power.exact_power(rate, pairs) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_exact_power_for_equivalence_sums_what_is_accepted():
    wins = np.arange(216)
    accepted = [equivalence_test(int(k), 215 - int(k), 0.1) <= 0.05 for k in wins]
    wanted = stats.binom.pmf(wins, 215, 0.5)[accepted].sum()
    assert power.exact_equivalence_power(0.1, 215) == pytest.approx(wanted, rel=1e-9)
    assert 0.74 < wanted < 0.82
    assert power.exact_equivalence_power(0.1, 20) == 0.0


def test_more_pairs_allows_for_ties():
    assert power.more_pairs(194, 194, 400) == 0
    assert power.more_pairs(194, 0, 0) == 2 * 194  # half of them decisive, before anything is known
    assert power.more_pairs(194, 97, 97) == math.ceil(97 * 99 / 98)
    assert power.more_pairs(194, 0, 10**9) == 1_000_000  # all ties: more than anybody votes on


def test_nothing_to_detect_is_refused():
    with pytest.raises(ValueError, match="rate"):
        power.pairs_to_detect(0.5)
    with pytest.raises(ValueError, match="margin"):
        power.pairs_for_equivalence(0.5)


@pytest.mark.parametrize("count", [5, 12, 40, 215])
def test_what_can_be_found_is_the_first_rate_with_the_power(count):
    for found, chance in (
        (power.detectable_rate(count), lambda rate: _sign_power(rate, count)),
        (power.detectable_share(count), lambda share: _abx_power(share, count)),
    ):
        rates = [percent / 100 for percent in range(51, 100)]
        assert found == next((rate for rate in rates if chance(rate) >= 0.8), None)
    assert power.detectable_rate(5) is power.detectable_share(4) is None


def _sign_power(rate, count):
    law, chances = stats.binom(count, 0.5), stats.binom(count, rate)
    rejected = [k for k in range(count + 1) if 2 * min(law.cdf(k), law.sf(k - 1)) <= 0.05]
    return sum(chances.pmf(k) for k in rejected)


def _abx_power(share, count):
    least = next((k for k in range(count + 1) if stats.binom.sf(k - 1, count, 0.5) <= 0.05), None)
    return 0.0 if least is None else stats.binom.sf(least - 1, count, share)
