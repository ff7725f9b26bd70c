"""What people prefer: answers become pairs, pairs are counted, and counts become numbers.

The unit is the pair, not the vote: five assessors who look at one pair are one observation, by
majority. "Equal" and "both bad" are ties; skips are left out before. How to read the numbers is
said in `verdict`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from vqdq.metrics.proportions import (
    Interval,
    equivalence_test,
    flip_test,
    holm,
    sign_test,
    wilson,
)
from vqdq.metrics.resampling import SAMPLES, cluster_sums, percentile_interval

Outcome = Literal["first", "second", "tie", "both bad"]
"""Which of two models a picture pair speaks for; a tie may be two bad pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """One assessor's answer about one pair, with the sides already undone.

    Attributes:
        pair: names the pair; the same for every assessor.
        prompt: names the prompt, within which answers are alike.
        assessor: who said it.
        outcome: what was said.
    """

    pair: str
    prompt: str
    assessor: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOutcome:
    """What was decided about one pair."""

    pair: str
    prompt: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """Counted pairs, seen from the first model; `both_bad` are ties too, and not among `ties`."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    both_bad: int = 0

    @property
    def judged(self) -> int:
        """All pairs."""
        return self.wins + self.losses + self.ties + self.both_bad

    @property
    def decisive(self) -> int:
        """Pairs that speak for one of the two."""
        return self.wins + self.losses


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """The first model against the second on one question.

    Attributes:
        tally: the pairs.
        prompts: how many different prompts they have; fewer than pairs means that prompts repeat.
        win_rate: wins among decisive pairs, Wilson interval.
        clustered: the same rate, interval by resampling prompts; `clustered_inner` at 1 − 2·5 %,
            which is what an equivalence test at 5 % reads.
        score: ties as half a win, over all pairs; by resampling prompts.
        p_value: exact two-sided sign test over pairs.
        p_by_prompt: the same with whole prompts turned over (`flip_test`); equal to `p_value` when
            no prompt repeats. `adjusted` is this one after Holm over the whole test.
        margin: stated before: how far from one half is still "as good".
        p_equivalent: exact equivalence test at that margin, decisive pairs only.
    """

    tally: Tally
    prompts: int
    win_rate: Interval
    clustered: Interval
    clustered_inner: Interval
    score: Interval
    p_value: float
    p_by_prompt: float
    adjusted: float
    margin: float
    p_equivalent: float

    @property
    def repeats_prompts(self) -> bool:
        """True when pairs share prompts, so that they are not independent."""
        return self.prompts < self.tally.judged


def by_majority(judgements: Iterable[Judgement]) -> tuple[PairOutcome, ...]:
    """Returns one outcome a pair, in order of appearance: what more than half said, else a tie.

    Raises:
        ValueError: an assessor judged a pair twice, or a pair has two prompts.
    """
    answers: dict[str, dict[str, Outcome]] = {}
    prompts: dict[str, str] = {}
    for item in judgements:
        said = answers.setdefault(item.pair, {})
        if item.assessor in said:
            raise ValueError(f"{item.assessor} judged the pair {item.pair} twice")
        if prompts.setdefault(item.pair, item.prompt) != item.prompt:
            raise ValueError(f"the pair {item.pair} has two prompts")
        said[item.assessor] = item.outcome
    return tuple(
        PairOutcome(pair=pair, prompt=prompts[pair], outcome=majority(tuple(said.values())))
        for pair, said in answers.items()
    )


def majority(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns what more than half of the answers are, or a tie."""
    counts = Counter(outcomes)
    for outcome in get_args(Outcome):
        if 2 * counts[outcome] > len(outcomes):
            return outcome
    return "tie"


def tally(outcomes: Iterable[PairOutcome]) -> Tally:
    """Returns the counts."""
    counts = Counter(item.outcome for item in outcomes)
    return Tally(
        wins=counts["first"],
        losses=counts["second"],
        ties=counts["tie"],
        both_bad=counts["both bad"],
    )


def preference(
    outcomes: Sequence[PairOutcome],
    *,
    margin: float,
    generator: torch.Generator,
    samples: int = SAMPLES,
) -> Preference:
    """Returns the numbers of one comparison on one question; `adjusted` is still the plain p.

    Args:
        outcomes: one a pair, from `by_majority`.
        margin: of the equivalence test, between 0 and 0.5.
        generator: draws the bootstrap.
        samples: of the bootstrap.
    """
    counted = tally(outcomes)
    columns = get_args(Outcome)
    rows: dict[str, list[float]] = {}
    for item in outcomes:
        rows.setdefault(item.prompt, [0.0] * 4)[columns.index(item.outcome)] += 1
    rate = counted.wins / counted.decisive if counted.decisive else math.nan
    even = counted.ties + counted.both_bad
    score = (counted.wins + even / 2) / counted.judged if counted.judged else math.nan
    rates = scores = np.empty(0)
    if rows:
        drawn = cluster_sums(np.array(list(rows.values())), generator, samples=samples)
        decisive, judged = drawn[:, 0] + drawn[:, 1], drawn.sum(1)
        with np.errstate(invalid="ignore"):  # a sample may hold ties alone
            rates = drawn[:, 0] / decisive
        scores = (drawn[:, 0] + (judged - decisive) / 2) / judged
    p_by_prompt = flip_test([int(row[0] - row[1]) for row in rows.values()])
    return Preference(
        tally=counted,
        prompts=len(rows),
        win_rate=wilson(counted.wins, counted.decisive),
        clustered=percentile_interval(rates, rate),
        clustered_inner=percentile_interval(rates, rate, level=0.9),
        score=percentile_interval(scores, score),
        p_value=sign_test(counted.wins, counted.losses),
        p_by_prompt=p_by_prompt,
        adjusted=p_by_prompt,
        margin=margin,
        p_equivalent=equivalence_test(counted.wins, counted.losses, margin),
    )


def adjusted(preferences: Sequence[Preference]) -> tuple[Preference, ...]:
    """Returns the same comparisons with p values after Holm: all questions, all model pairs."""
    after = holm([item.p_by_prompt for item in preferences])
    pairs = zip(preferences, after, strict=True)
    return tuple(dataclasses.replace(item, adjusted=p) for item, p in pairs)
