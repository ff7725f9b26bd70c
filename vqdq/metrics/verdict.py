"""Words that follow the statistics, and never go further.

"No difference detected" is not "the same": the number of pairs stands beside it, and how many more
would be needed. Nothing is ever called identical here; that is a word for pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqdq.metrics.power import more_pairs, pairs_for_equivalence, pairs_to_detect
from vqdq.metrics.preference import Preference
from vqdq.metrics.proportions import Interval, at_least, wilson

Kind = Literal["nothing", "undetected", "equivalent", "preferred", "slightly preferred"]

ALPHA = 0.05
FEWEST_PROMPTS = 10  # from fewer, a bootstrap over prompts is too sure of itself
TARGET = 0.6  # "could it have found 60 : 40?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What may be said about two models.

    Attributes:
        kind: "nothing" (no pair judged), "undetected", "equivalent" (within the margin),
            "preferred", or "slightly preferred" (detected, and yet within the margin).
        winner: name of the preferred model, or "".
        words: one or two sentences.
        pairs_to_detect: more pairs until 60 : 40 would be found with 80 % power; 0 when enough.
        pairs_for_equivalence: more pairs until equivalence could be shown with 80 % power.
    """

    kind: Kind
    winner: str
    words: str
    pairs_to_detect: int
    pairs_for_equivalence: int


def verdict(result: Preference, first: str, second: str, *, alpha: float = ALPHA) -> Verdict:
    """Returns what `result` says about the models named `first` and `second`.

    A difference counts when the adjusted exact test by prompt is at most `alpha`; where prompts
    repeat, the interval beside it must exclude one half as well. Equivalence: the exact test of
    pairs, and where prompts repeat, at least ten of them and the inner interval within the margin.
    Where the pairs of a prompt are alike, the test of pairs alone finds differences that are not
    there in 17 % (25 prompts) to 35 % (5 prompts) of simulated tests.
    """
    tally = result.tally
    detect = more_pairs(pairs_to_detect(TARGET, alpha=alpha), tally.decisive, tally.judged)
    equal = more_pairs(
        pairs_for_equivalence(result.margin, alpha=alpha), tally.decisive, tally.judged
    )
    differs = result.adjusted <= alpha and (
        not result.repeats_prompts or not result.clustered.contains(0.5)
    )
    inner = result.clustered_inner
    within = result.p_equivalent <= alpha and (
        not result.repeats_prompts
        or (
            result.prompts >= FEWEST_PROMPTS
            and inner.low >= 0.5 - result.margin
            and inner.high <= 0.5 + result.margin
        )
    )
    ahead = tally.wins > tally.losses
    winner = (first if ahead else second) if differs else ""
    points = f"±{100 * result.margin:g} percentage points"
    kind: Kind
    if tally.judged == 0:
        kind, words = "nothing", "No pair has been judged yet (n = 0)."
    elif differs:
        kind = "slightly preferred" if within else "preferred"
        interval = result.clustered if result.repeats_prompts else result.win_rate
        words = (
            f"{winner} is {kind}: {_share(interval, flip=not ahead)} of {tally.decisive} decisive"
            f" pairs (n = {tally.judged}, {_p(result.adjusted)})."
        )
        if within:
            words += f" The difference stays within the stated margin of {points}."
    elif within:
        kind = "equivalent"
        words = (
            f"{first} and {second} are preferred equally often within {points}"
            f" (n = {tally.judged}, {tally.decisive} decisive, {_p(result.p_equivalent)})."
        )
    else:
        kind, words = "undetected", _undetected(result, detect)
    return Verdict(
        kind=kind,
        winner=winner,
        words=words,
        pairs_to_detect=detect,
        pairs_for_equivalence=equal,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """Whether one can tell two models apart (ABX).

    Attributes:
        correct: share of right answers, Wilson interval; one half is guessing.
        trials: how many answers.
        p_value: exact one-sided test against guessing, P(at least as many right).
        words: one sentence.
    """

    correct: Interval
    trials: int
    p_value: float
    words: str


def detection(right: int, trials: int, *, alpha: float = ALPHA) -> Detection:
    """Returns what `right` answers of `trials` forced choices say."""
    p_value = at_least(right, trials, 0.5)
    share = wilson(right, trials)
    if trials == 0:
        words = "No trial has been answered yet (n = 0)."
    elif p_value <= alpha:
        words = f"Told apart: {_share(share)} right (n = {trials}, {_p(p_value)})."
    else:
        words = (
            f"No difference detected (n = {trials}): {_share(share)} right, and guessing gives 50%."
        )
    return Detection(correct=share, trials=trials, p_value=p_value, words=words)


def _undetected(result: Preference, detect: int) -> str:
    tally = result.tally
    words = f"No difference detected (n = {tally.judged})."
    if tally.decisive == 0:
        words += " Every pair was a tie."
    if detect:
        noun = "pair" if detect == 1 else "pairs"
        return f"{words} About {detect:,} more {noun} would be needed to find a 60 : 40 preference."
    return f"{words} A 60 : 40 preference would very probably have been found."


def _share(interval: Interval, *, flip: bool = False) -> str:
    value, low, high = interval.value, interval.low, interval.high
    if flip:
        value, low, high = 1 - value, 1 - high, 1 - low
    level = f"{100 * interval.level:g}%"
    return f"{100 * value:.0f}% ({level} interval {100 * low:.0f}–{100 * high:.0f}%)"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
