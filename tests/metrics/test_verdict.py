"""The words never say more than the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.metrics.test_preference import outcomes
from vqdq.metrics.preference import PairOutcome, preference
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


def test_pairs_that_are_alike_are_not_taken_for_evidence():
    """200 tests without any difference, the four pairs of a prompt alike: at most 5 % are meant."""
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    by_pairs = found = 0
    for _ in range(200):
        taste = np.repeat(0.5 + 0.4 * rng.choice([-1, 1], 25), 4)
        data = [
            PairOutcome(pair=str(i), prompt=str(i // 4), outcome="first" if won else "second")
            for i, won in enumerate(rng.random(100) < taste)
        ]
        result = preference(data, margin=0.1, generator=generator, samples=200)
        by_pairs += result.p_value <= 0.05
        found += verdict(result, "a", "b").kind == "preferred"
    assert by_pairs >= 24  # the plain sign test is fooled
    assert found <= 16  # 8 %: five standard errors above 3.3 %


def test_few_prompts_are_never_called_equivalent():
    assert judge(320, 320).kind == "equivalent"
    mixed = [
        PairOutcome(pair=str(i), prompt=str(i % 9), outcome="first" if i % 2 else "second")
        for i in range(720)
    ]
    result = preference(mixed, margin=0.1, generator=torch.Generator().manual_seed(0))
    assert result.p_equivalent < 1e-6
    assert verdict(result, "a", "b").kind == "undetected"


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
