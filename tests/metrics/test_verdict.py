"""The words never say more than the numbers."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from tests.metrics.test_preference import outcomes
from vqdq.metrics.preference import preference
from vqdq.metrics.verdict import detection, verdict


def judge(*counts, margin=0.1, per_prompt=1):
    result = preference(
        outcomes(*counts, per_prompt=per_prompt),
        margin=margin,
        generator=torch.Generator().manual_seed(0),
    )
    return verdict(result, "full precision", "3 bits")


def test_no_difference_is_not_sameness():
    said = judge(12, 9, 17)
    assert said.kind == "undetected"
    assert said.winner == ""
    assert said.words.startswith("No difference detected (n = 38).")
    assert said.pairs_to_detect == 315  # (194 − 21) × 40 / 22
    assert "About 315 more pairs" in said.words
    for word in ("identical", "same", "lossless"):
        assert word not in said.words.lower()


def test_a_preference_is_named_with_its_interval():
    said = judge(84, 44)
    assert (said.kind, said.winner) == ("preferred", "full precision")
    assert "66% (95% interval 57–73%) of 128 decisive pairs (n = 128, p < 0.001)" in said.words
    mirrored = judge(44, 84)
    assert mirrored.winner == "3 bits"
    assert mirrored.words == said.words.replace("full precision", "3 bits")


def test_equivalence_is_said_only_within_the_margin():
    said = judge(160, 158, 30)
    assert said.kind == "equivalent"
    assert "within ±10 percentage points (n = 348, 318 decisive" in said.words
    assert judge(160, 158, 30, margin=0.03).kind == "undetected"
    assert said.pairs_for_equivalence == 0


def test_a_small_difference_may_be_both():
    said = judge(2200, 2000)
    assert said.kind == "slightly preferred"
    assert "stays within the stated margin" in said.words


def test_repeated_prompts_ask_for_more():
    assert judge(60, 36).kind == "preferred"
    assert judge(60, 36, per_prompt=12).kind == "undetected"
    assert judge(164, 156, per_prompt=40).kind == "undetected"  # eight prompts, all of one mind


def test_much_data_and_no_difference():
    said = judge(310, 290, margin=0.02)
    assert said.kind == "undetected"
    assert said.pairs_to_detect == 0
    assert "would very probably have been found" in said.words


def test_nothing_and_only_ties():
    assert judge().words == "No pair has been judged yet (n = 0)."
    said = judge(0, 0, 38)
    assert said.words.startswith("No difference detected (n = 38). Every pair was a tie.")
    assert said.kind == "undetected"


@pytest.mark.parametrize(("right", "trials"), [(16, 20), (12, 20), (0, 9), (20, 20)])
def test_detection_is_a_one_sided_test_against_guessing(right, trials):
    found = detection(right, trials)
    wanted = stats.binomtest(right, trials, 0.5, alternative="greater").pvalue
    assert found.p_value == pytest.approx(wanted, rel=1e-9)
    assert found.words.startswith("Told apart" if wanted <= 0.05 else "No difference detected (n =")


def test_detection_of_nothing():
    assert detection(0, 0).words == "No trial has been answered yet (n = 0)."
