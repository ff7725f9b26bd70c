"""The staircase by hand, its limits, and thresholds of simulated people."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from vqdq.errors import UserError
from vqdq.metrics.staircase import LAPSE, Answer, Staircase, chance_right, threshold

LEVELS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def run(rule, told, most=1000):
    """Answers of a person who tells at `bits` as `told(bits)` says."""
    answers = []
    while (bits := rule.next_level(answers)) is not None and len(answers) < most:
        answers.append(Answer(bits=bits, right=bool(told(bits))))
    return answers


def test_two_right_make_it_harder_and_one_wrong_easier():
    rule = Staircase(levels=(4.0, 2.0, 3.0))
    said = [True, True, True, True, False, True, False]
    answers, seen = [], []
    for right in said:
        seen.append(rule.next_level(answers))
        answers.append(Answer(bits=seen[-1], right=right))
    assert seen == [2, 2, 3, 3, 4, 3, 3]
    assert rule.next_level(answers) == 2


def test_it_ends_after_the_turning_points():
    rule = Staircase(levels=LEVELS, reversals=4)
    answers = run(rule, lambda bits: bits < 4.5)
    turns = [a.bits for a in answers]
    assert turns == [2, 2, 3, 3, 4, 4, 5, 4, 4, 5, 4, 4]
    assert rule.next_level(answers) is None


def test_who_never_or_always_tells_ends_at_the_most_trials():
    rule = Staircase(levels=LEVELS, most=20)
    blind, hawk = run(rule, lambda _: False), run(rule, lambda _: True)
    assert len(blind) == len(hawk) == 20
    assert {a.bits for a in blind} == {2.0}
    assert "No difference detected down to 2 bits" in threshold(rule, blind).words
    assert "Still told apart at 8 bits" in threshold(rule, hawk).words


def test_trials_gather_where_seventy_one_per_cent_are_right():
    """Two down, one up: balance where p² = 1/2. On fine levels and after the first fifty."""
    rng = np.random.default_rng(1)
    rule = Staircase(levels=tuple(np.arange(1, 9, 0.1)), reversals=10**9, most=1500)
    answers = run(rule, lambda bits: rng.random() < chance_right(bits, 4.0, 0.7))
    assert np.mean([a.right for a in answers[50:]]) == pytest.approx(0.5**0.5, abs=0.03)


def test_intervals_cover_the_truth_of_simulated_people():
    rule = Staircase(levels=LEVELS)
    covered, errors = 0, []
    for person in range(120):
        rng = np.random.default_rng(person)
        truth = rng.uniform(2.5, 6.0)
        found = threshold(rule, run(rule, lambda b: rng.random() < chance_right(b, truth, 0.4)))  # noqa: B023
        covered += found.bits.contains(truth)
        errors.append(found.bits.value - truth)
    assert covered >= 108  # 90 % of people; 95 % is meant
    assert abs(np.mean(errors)) < 0.2
    assert np.sqrt(np.mean(np.square(errors))) < 0.8


def test_the_posterior_by_numerical_integration():
    rule = Staircase(levels=(2.0, 4.0))
    answers = [Answer(bits=2.0, right=True)] * 5 + [Answer(bits=4.0, right=False)] * 3
    found = threshold(rule, answers)

    def density(log_spread, at):
        p = [chance_right(b, at, np.exp(log_spread)) for b in (2.0, 4.0)]
        return p[0] ** 5 * (1 - p[1]) ** 3

    ends = np.log(0.1), np.log(2.0)
    total = integrate.dblquad(density, 1.0, 5.0, *ends, epsabs=1e-4)[0]
    for end, share in ((found.bits.value, 0.5), (found.bits.low, 0.025)):
        part = integrate.dblquad(density, 1.0, end, *ends, epsabs=1e-5)[0] / total
        assert part == pytest.approx(share, abs=0.01)


def test_limits_of_the_curve():
    assert chance_right(-100.0, 4.0, 0.5) == pytest.approx(1 - LAPSE)
    assert chance_right(1e6, 4.0, 0.1) == 0.5
    assert chance_right(4.0, 4.0, 0.5) == pytest.approx(0.75 - LAPSE / 2)


def test_nothing_yet_and_nothing_to_climb():
    rule = Staircase(levels=(2.0, 4.0))
    nothing = threshold(rule, [])
    assert nothing.words == "No trial has been answered yet (n = 0)."
    assert nothing.bits.value == pytest.approx(3.0, abs=0.02)
    with pytest.raises(UserError, match="two or more"):
        Staircase(levels=(4.0, 4.0))
