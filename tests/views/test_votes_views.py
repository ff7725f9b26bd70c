"""Figures of a blind test: what is plotted is what was found, in the colours of the models."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from vqdq.jobs.outcome import Comparison
from vqdq.metrics.agreement import krippendorff
from vqdq.metrics.preference import PairOutcome, preference
from vqdq.metrics.staircase import Answer, Staircase, threshold
from vqdq.metrics.verdict import detection, verdict
from vqdq.views import votes
from vqdq.views.style import PAGE


def comparison(wins, losses, ties):
    said = ["first"] * wins + ["second"] * losses + ["tie"] * ties
    pairs = [PairOutcome(pair=f"{n}", prompt=f"{n}", outcome=one) for n, one in enumerate(said)]
    found = preference(pairs, margin=0.1, generator=torch.Generator().manual_seed(0))
    return Comparison(
        question="overall",
        first="FP16",
        second="three",
        preference=found,
        verdict=verdict(found, "FP16", "three"),
        agreement=krippendorff([]),
    )


def test_preferences_are_bars_of_pairs_and_rates_with_intervals():
    rows = [("Overall", comparison(15, 3, 6)), ("Defects", comparison(0, 0, 4))]
    view = votes.preferences(rows, {"FP16": 0, "three": 1}, 0.1, PAGE)
    left, right = view.figure.axes
    widths = [bar.get_width() for bar in left.patches]
    assert widths == [15, 6, 0, 3, 0, 4, 0, 0]
    wilson = stats.binomtest(15, 18).proportion_ci(method="wilson")
    line = next(one for one in right.lines if len(one.get_xdata()) == 2 and one.get_ydata()[0] == 0)
    np.testing.assert_allclose(line.get_xdata(), wilson, rtol=1e-9)
    np.testing.assert_allclose(view.data.columns["wilson_high"][0], wilson.high)
    assert np.isnan(view.data.columns["win_rate"][1])  # all ties: no dot, and no number
    assert "15" in view.svg()
    assert "No difference detected (n = 4)" in view.alt
    narrow = votes.preferences(rows, {"FP16": 0, "three": 1}, 0.1, PAGE.phone())
    assert narrow.figure.get_figwidth() < view.figure.get_figwidth()


def test_who_can_tell_and_how_few_bits():
    told = votes.detections([("everybody", detection(9, 12))], PAGE)
    assert told.data.columns["right_share"].tolist() == [0.75]
    answers = [Answer(bits=bits, right=bits < 3) for bits in (2.0, 4.0) * 10]
    rule = Staircase(levels=(2.0, 3.0, 4.0))
    found = threshold(rule, answers)
    view = votes.thresholds([("Ana", found)], rule.levels, PAGE)
    assert view.data.columns["bits"].tolist() == [found.bits.value]
    assert found.words in view.alt
