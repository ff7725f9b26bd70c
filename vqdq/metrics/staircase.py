"""The bit width at which a person is just able to tell: an adaptive staircase and its threshold.

Each trial is a forced choice (ABX), right half the time by guessing. Two right answers in a row
make the next trial harder (more bits), a wrong one makes it easier: the trials gather where 71 %
are right (Levitt 1971, "Transformed up-down methods in psychoacoustics"), which is where an answer
says most. The threshold is then estimated from all answers, not from the turning points alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqdq.errors import UserError
from vqdq.metrics.proportions import Interval

LAPSE = 0.02
"""Share of answers that are slips, whatever is shown (Wichmann and Hill 2001)."""

_GRID = 0.02  # bits between grid points of the threshold
_BEYOND = 1.0  # bits that the threshold may lie outside the levels
_SPREADS = np.geomspace(0.1, 2.0, 25)  # bits; equally likely on a logarithmic scale

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One trial: the bits of what was compared with full precision, and whether it was told."""

    bits: float
    right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Staircase:
    """The rule, fixed before the first trial.

    Attributes:
        levels: bits, in any order; the test starts at the smallest, the easiest to tell.
        down: right answers in a row until it becomes harder; one wrong answer makes it easier.
        reversals: turning points after which it ends, and `most` trials at the latest.
    """

    levels: tuple[float, ...]
    down: int = 2
    reversals: int = 10
    most: int = 60

    def __post_init__(self) -> None:
        if len(set(self.levels)) < 2 or not all(math.isfinite(x) for x in self.levels):
            raise UserError(
                "needs two or more bit widths.", where="staircase", remedy="Add more models."
            )

    def next_level(self, answers: Sequence[Answer]) -> float | None:
        """Returns the bits of the next trial, or None at the end."""
        ladder = sorted(set(self.levels))
        at, streak, turns, direction = 0, 0, 0, 0
        for answer in answers:
            streak = streak + 1 if answer.right else 0
            move = 0
            if not answer.right:
                move = -1
            elif streak == self.down:
                move, streak = 1, 0
            if move:
                turns += direction not in (0, move)
                direction = move
                at = min(max(at + move, 0), len(ladder) - 1)
        done = turns >= self.reversals or len(answers) >= self.most
        return None if done else ladder[at]


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """Where a person stops seeing the difference.

    Attributes:
        bits: where half of the differences are seen (75 % right, slips aside): posterior median
            and central interval.
        trials: answers.
        words: one sentence.
    """

    bits: Interval
    trials: int
    words: str


def chance_right(bits: Array | float, threshold: Array | float, spread: Array | float) -> Array:
    """Returns the probability of a right answer.

    1/2 + (1/2 − lapse) / (1 + exp((bits − threshold) / spread)), lapse = 2 %: sure at few bits,
    guessing at many.
    """
    odds = np.clip((np.asarray(bits) - threshold) / spread, -500, 500)
    return 0.5 + (0.5 - LAPSE) / (1 + np.exp(odds))


def threshold(rule: Staircase, answers: Sequence[Answer], *, level: float = 0.95) -> Threshold:
    """Returns the threshold with its interval, from every answer.

    Bayes on a grid: the threshold equally likely from one bit under the levels to one over, the
    spread equally likely on a logarithmic scale from 0.1 to 2 bits and summed over.
    """
    low_end, high_end = min(rule.levels), max(rule.levels)
    grid = np.arange(low_end - _BEYOND, high_end + _BEYOND + _GRID / 2, _GRID)
    weights = _posterior(grid, answers)
    below = np.concatenate([[0.0], (weights.cumsum() / weights.sum())])
    edges = np.concatenate([[grid[0] - _GRID / 2], grid + _GRID / 2])
    quantiles = [0.5, 0.5 - level / 2, 0.5 + level / 2]
    value, low, high = (float(x) for x in np.interp(quantiles, below, edges))
    bits = Interval(value=value, low=low, high=high, level=level)
    return Threshold(
        bits=bits, trials=len(answers), words=_words(bits, len(answers), low_end, high_end)
    )


def _posterior(grid: Array, answers: Sequence[Answer]) -> Array:
    logs = np.zeros((len(grid), len(_SPREADS)))
    for bits in sorted({answer.bits for answer in answers}):
        right = sum(answer.right for answer in answers if answer.bits == bits)
        wrong = sum(not answer.right for answer in answers if answer.bits == bits)
        chance = chance_right(bits, grid[:, None], _SPREADS)
        logs += right * np.log(chance) + wrong * np.log1p(-chance)
    return np.exp(logs - logs.max()).sum(axis=1)


def _words(bits: Interval, trials: int, low_end: float, high_end: float) -> str:
    if trials == 0:
        return "No trial has been answered yet (n = 0)."
    span = f"{100 * bits.level:g}% interval {bits.low:.1f}–{bits.high:.1f}, n = {trials}"
    if bits.value < low_end:
        return f"No difference detected down to {low_end:.3g} bits ({span})."
    if bits.value > high_end:
        return f"Still told apart at {high_end:.3g} bits, the most that was shown ({span})."
    return f"The difference is just seen at about {bits.value:.1f} bits ({span})."
