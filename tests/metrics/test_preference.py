"""Pairs, counts, the bootstrap by prompt, and the numbers of one comparison."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from vqdq.metrics import preference as pref
from vqdq.metrics.preference import Judgement, PairOutcome, by_majority, majority, tally
from vqdq.metrics.proportions import holm
from vqdq.metrics.resampling import cluster_sums, percentile_interval


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def outcomes(first=0, second=0, tie=0, bad=0, *, per_prompt=1):
    said = ["first"] * first + ["second"] * second + ["tie"] * tie + ["both bad"] * bad
    return [
        PairOutcome(pair=str(i), prompt=str(i // per_prompt), outcome=what)
        for i, what in enumerate(said)
    ]


def judged(*rows):
    return [Judgement(pair=p, prompt=p[0], assessor=a, outcome=o) for p, a, o in rows]


@pytest.mark.parametrize(
    ("said", "decided"),
    [
        (["first"], "first"),
        (["first", "second"], "tie"),
        (["first", "first", "second"], "first"),
        (["first", "first", "tie", "tie"], "tie"),
        (["first", "tie", "second"], "tie"),
        (["both bad", "both bad", "first"], "both bad"),
        (["second", "second", "second", "first", "tie"], "second"),
    ],
)
def test_a_majority_is_more_than_half(said, decided):
    assert majority(said) == decided


def test_pairs_not_votes_are_counted():
    rows = judged(
        ("p1", "Ana", "first"), ("p1", "Ben", "first"), ("p1", "Cem", "second"),
        ("p2", "Ana", "second"), ("q1", "Ben", "both bad"), ("q2", "Ben", "tie"),
    )  # fmt: skip
    found = by_majority(rows)
    assert [item.outcome for item in found] == ["first", "second", "both bad", "tie"]
    counted = tally(found)
    assert (counted.wins, counted.losses, counted.ties, counted.both_bad) == (1, 1, 1, 1)
    assert (counted.judged, counted.decisive) == (4, 2)


def test_one_vote_an_assessor_and_pair():
    with pytest.raises(ValueError, match="twice"):
        by_majority(judged(("p1", "Ana", "first"), ("p1", "Ana", "second")))
    with pytest.raises(ValueError, match="two prompts"):
        by_majority(
            [
                Judgement(pair="p", prompt="a", assessor="Ana", outcome="tie"),
                Judgement(pair="p", prompt="b", assessor="Ben", outcome="tie"),
            ]
        )


def test_numbers_of_one_comparison():
    found = pref.preference(outcomes(44, 84, 20, 4), margin=0.1, generator=seeded())
    assert found.win_rate.value == 44 / 128
    assert found.score.value == (44 + 12) / 152
    assert found.p_value == pytest.approx(stats.binomtest(44, 128).pvalue, rel=1e-9)
    assert found.prompts == found.tally.judged == 152
    assert not found.repeats_prompts


def test_without_repeats_the_bootstrap_is_a_binomial():
    found = pref.preference(outcomes(60, 40), margin=0.1, generator=seeded(), samples=20_000)
    low, high = stats.binom.ppf([0.025, 0.975], 100, 0.6) / 100
    assert found.clustered.low == pytest.approx(low, abs=0.0101)
    assert found.clustered.high == pytest.approx(high, abs=0.0101)
    assert found.clustered.value == 0.6
    assert found.clustered.contains(0.55)


def test_the_score_interval_is_that_of_the_mean():
    """Ties count half: the spread of a mean of independent scores, by its closed form."""
    found = pref.preference(outcomes(90, 60, 150), margin=0.1, generator=seeded(), samples=8000)
    values = np.repeat([1.0, 0.0, 0.5], [90, 60, 150])
    half = 1.96 * values.std() / math.sqrt(300)
    assert found.score.high - found.score.low == pytest.approx(2 * half, rel=0.04)


def test_repeated_prompts_widen_the_interval_as_theory_says():
    """Four pairs a prompt that always agree: the spread doubles, as if n were a quarter."""
    plain = pref.preference(outcomes(120, 80), margin=0.1, generator=seeded(), samples=8000)
    alike = pref.preference(
        outcomes(120, 80, per_prompt=4), margin=0.1, generator=seeded(), samples=8000
    )
    assert alike.repeats_prompts
    assert alike.prompts == 50
    width = [x.clustered.high - x.clustered.low for x in (plain, alike)]
    assert width[1] / width[0] == pytest.approx(2.0, rel=0.07)
    assert alike.win_rate == plain.win_rate


def test_the_bootstrap_is_scipys():
    rng = np.random.default_rng(3)
    wins = rng.integers(0, 5, 30).astype(float)
    clusters = np.stack([wins, 4 - wins], axis=1)
    drawn = cluster_sums(clusters, seeded(), samples=20_000)
    ours = percentile_interval(drawn[:, 0] / drawn.sum(1), wins.sum() / 120)
    theirs = stats.bootstrap(
        (wins, 4 - wins),
        lambda a, b, axis: a.sum(axis) / (a.sum(axis) + b.sum(axis)),
        paired=True, vectorized=True, method="percentile", n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_the_same_seed_gives_the_same_interval():
    data = outcomes(30, 20, 10, per_prompt=3)
    first = pref.preference(data, margin=0.1, generator=seeded(5))
    assert pref.preference(data, margin=0.1, generator=seeded(5)) == first
    assert cluster_sums(np.eye(3), seeded(), samples=7).sum(axis=1).tolist() == [3.0] * 7


def test_nothing_and_only_ties_have_no_rate():
    for data, score in (([], math.nan), (outcomes(tie=8), 0.5)):
        found = pref.preference(data, margin=0.1, generator=seeded())
        assert math.isnan(found.win_rate.value)
        assert (found.clustered.low, found.clustered.high) == (0.0, 1.0)
        assert (found.p_value, found.p_equivalent) == (1.0, 1.0)
        assert found.score.value == pytest.approx(score, nan_ok=True)


def test_holm_over_all_comparisons():
    found = [
        pref.preference(outcomes(w, 40 - w), margin=0.1, generator=seeded(), samples=10)
        for w in (29, 20, 28)
    ]
    after = pref.adjusted(found)
    assert [x.adjusted for x in after] == list(holm([x.p_by_prompt for x in found]))
    assert [x.p_value for x in after] == [x.p_value for x in found]
    assert after[0].adjusted == pytest.approx(3 * found[0].p_value)


def test_the_test_by_prompt_turns_whole_prompts_over():
    """Twelve prompts of four pairs, nine won and three lost: a sign test of twelve, not of 48."""
    found = pref.preference(outcomes(36, 12, per_prompt=4), margin=0.1, generator=seeded())
    assert found.p_by_prompt == pytest.approx(stats.binomtest(9, 12).pvalue)
    assert found.p_value == pytest.approx(stats.binomtest(36, 48).pvalue)
