"""Davidson's model against generalised linear models of statsmodels and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from vqdq.errors import UserError
from vqdq.metrics.bradley_terry import Game, davidson, standings


def _counts(models, seed, *, ties=True):
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 40, size=(models, models, 2)).astype(float)
    counts[..., 1] = np.triu(counts[..., 1], 1) if ties else 0
    counts[np.arange(models), np.arange(models)] = 0
    return counts


def test_two_models_in_closed_form():
    """Saturated: log π1/π2 = log(wins/losses), ν = ties / √(wins · losses)."""
    counts = np.zeros((2, 2, 2))
    counts[0, 1], counts[1, 0, 0] = (30, 25), 12
    fit = davidson(counts, prior_sd=None)
    assert fit.strengths[0] - fit.strengths[1] == pytest.approx(math.log(30 / 12), abs=1e-9)
    assert fit.tie == pytest.approx(25 / math.sqrt(30 * 12), rel=1e-9)
    assert fit.strengths.sum() == pytest.approx(0, abs=1e-12)
    assert fit.chance(0, 1) == pytest.approx(30 / 42, abs=1e-9)


@pytest.mark.parametrize("models", [3, 5])
def test_without_ties_it_is_a_logistic_regression(models):
    counts = _counts(models, models, ties=False)
    fit = davidson(counts, prior_sd=None)
    design, answers = [], []
    for i in range(models):
        for j in range(i + 1, models):
            row = np.zeros(models)
            row[i], row[j] = 1, -1
            design.append(row[1:])  # model 0 is the reference
            answers.append([counts[i, j, 0], counts[j, i, 0]])
    theirs = sm.GLM(answers, np.array(design), family=sm.families.Binomial()).fit(tol=1e-12)
    assert fit.strengths[1:] - fit.strengths[0] == pytest.approx(theirs.params, abs=1e-7)
    contrast = np.eye(models)[1:] - np.eye(models)[0]
    ours = np.sqrt(np.diag(contrast @ fit.covariance @ contrast.T))
    assert ours == pytest.approx(theirs.bse, rel=1e-5)
    assert fit.tie == 0


@pytest.mark.parametrize("models", [3, 4])
def test_with_ties_it_is_a_poisson_regression(models):
    """Davidson's model is log-linear in the counts, one constant a pair (Fienberg 1979)."""
    counts = _counts(models, 10 + models)
    fit = davidson(counts, prior_sd=None)
    rows, answers = [], []
    pairs = [(i, j) for i in range(models) for j in range(i + 1, models)]
    for number, (i, j) in enumerate(pairs):
        constant = np.eye(len(pairs))[number]
        for weights, tie, count in (
            ({i: 1.0}, 0, counts[i, j, 0]),
            ({j: 1.0}, 0, counts[j, i, 0]),
            ({i: 0.5, j: 0.5}, 1, counts[i, j, 1]),
        ):
            strength = np.zeros(models)
            for model, weight in weights.items():
                strength[model] = weight
            rows.append([*strength[1:], tie, *constant])
            answers.append(count)
    theirs = sm.GLM(answers, np.array(rows), family=sm.families.Poisson()).fit(tol=1e-12)
    assert fit.strengths[1:] - fit.strengths[0] == pytest.approx(
        theirs.params[: models - 1], abs=1e-6
    )
    assert math.log(fit.tie) == pytest.approx(theirs.params[models - 1], abs=1e-6)
    contrast = np.eye(models)[1:] - np.eye(models)[0]
    ours = np.sqrt(np.diag(contrast @ fit.covariance @ contrast.T))
    assert ours == pytest.approx(theirs.bse[: models - 1], rel=1e-4)


def test_the_prior_keeps_a_model_that_always_wins_finite():
    counts = np.zeros((3, 3, 2))
    counts[0, 1, 0] = counts[0, 2, 0] = 40
    counts[1, 2, 0], counts[2, 1, 0] = 20, 15
    with pytest.raises(UserError, match="won or lost every pair"):
        davidson(counts, prior_sd=None)
    fit = davidson(counts)
    assert np.isfinite(fit.strengths).all()
    assert fit.strengths.argmax() == 0
    assert fit.chance(0, 1) > 0.97


def test_only_ties_are_even():
    counts = np.zeros((3, 3, 2))
    counts[0, 1, 1] = counts[1, 2, 1] = counts[0, 2, 1] = 20
    fit = davidson(counts)
    assert fit.strengths == pytest.approx(np.zeros(3), abs=1e-9)
    assert fit.tie > 5


def _games(strengths, tie, count, seed):
    rng = np.random.default_rng(seed)
    names = sorted(strengths)
    games = []
    for number in range(count):
        first, second = rng.choice(names, 2, replace=False)
        a, b = math.exp(strengths[first]), math.exp(strengths[second])
        weights = np.array([a, b, tie * math.sqrt(a * b)])
        what = rng.choice(["first", "second", "tie"], p=weights / weights.sum())
        games.append(Game(first=first, second=second, prompt=str(number % 60), outcome=str(what)))
    return games


def test_known_strengths_come_back_in_order():
    truth = {"fp16": 0.8, "4 bits": 0.5, "2 bits": -1.3}
    found = standings(_games(truth, 0.7, 900, 0), torch.Generator().manual_seed(0), samples=200)
    assert [row.model for row in found] == ["fp16", "4 bits", "2 bits"]
    assert [row.rank for row in found] == [1, 2, 3]
    for row in found:
        assert row.by_prompt.contains(truth[row.model])
        assert row.strength.contains(truth[row.model])
        width = row.strength.high - row.strength.low
        assert row.by_prompt.high - row.by_prompt.low == pytest.approx(width, rel=0.3)
    assert found[1].separated  # 2 bits are far away
    assert not found[2].separated  # nobody follows the last


def test_models_that_never_met_are_refused():
    games = [
        Game(first=a, second=b, prompt="p", outcome="first")
        for a, b in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"))
    ]
    with pytest.raises(UserError, match="never compared"):
        standings(games, torch.Generator(), samples=10)
    with pytest.raises(UserError, match="nothing to rank"):
        standings([], torch.Generator())
    counts = np.zeros((3, 3, 2))
    counts[0, 1, 0] = counts[1, 0, 0] = 5
    with pytest.raises(UserError, match="never compared"):
        davidson(counts, prior_sd=None)
