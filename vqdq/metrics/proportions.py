"""Shares and what can be said about them: intervals and exact tests, in closed form.

Everything here is about `wins` of `trials` that are independent. Where prompts repeat they are
not; then the bootstrap of `resampling` is the interval to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_UNIT = NormalDist()


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A share or a strength with the interval around it.

    Attributes:
        value: the estimate; nan where there is nothing to estimate from.
        low, high: both ends.
        level: how sure, 0.95 for 95 %.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def contains(self, value: float) -> bool:
        """True when `value` lies inside, the ends included."""
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, float | None]:
        """Returns the numbers as JSON values; null where JSON has no such number."""
        named = {"value": self.value, "low": self.low, "high": self.high, "level": self.level}
        return {key: x if math.isfinite(x) else None for key, x in named.items()}


def quantile(share: float) -> float:
    """Returns the quantile of the unit Gaussian: 1.96 for 0.975."""
    return _UNIT.inv_cdf(share)


def two_sided(z: float) -> float:
    """Returns the probability that a unit Gaussian is at least |z| away from zero."""
    return math.erfc(abs(z) / math.sqrt(2))


def wilson(wins: int, trials: int, *, level: float = 0.95) -> Interval:
    """Returns the share of `wins` with Wilson's score interval; [0, 1] without any trial.

    Wilson 1927: the shares p that a score test does not reject,
    |wins/n − p| <= z √(p (1 − p) / n). Unlike Wald's it stays inside [0, 1] and keeps its
    coverage at small n.
    """
    _check(wins, trials)
    if trials == 0:
        return Interval(value=math.nan, low=0.0, high=1.0, level=level)
    z2 = quantile(0.5 + level / 2) ** 2
    share = wins / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials**2)
    half = math.sqrt(z2 * spread) / (1 + z2 / trials)
    low = 0.0 if wins == 0 else centre - half
    high = 1.0 if wins == trials else centre + half
    return Interval(value=share, low=low, high=high, level=level)


def at_least(wins: int, trials: int, chance: float) -> float:
    """Returns P(X >= wins) of a binomial X, summed term by term."""
    _check(wins, trials)
    if wins == 0:
        return 1.0
    if chance in (0.0, 1.0):
        return chance
    return min(1.0, math.fsum(_mass(k, trials, chance) for k in range(wins, trials + 1)))


def at_most(wins: int, trials: int, chance: float) -> float:
    """Returns P(X <= wins) of a binomial X."""
    return at_least(trials - wins, trials, 1 - chance)


def sign_test(wins: int, losses: int) -> float:
    """Returns the exact two-sided p value of `wins` against `losses` where both are as likely.

    Twice the smaller tail, at most 1; ties do not take part (Dixon and Mood 1946). In whole
    numbers, so exact for any count.
    """
    trials = wins + losses
    _check(wins, trials)
    tail, term = 0, 1
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (trials - k) // (k + 1)
    return min(1.0, 2 * tail / 2**trials)


def flip_test(leads: Sequence[int]) -> float:
    """Returns the exact two-sided p value of a sum of leads, one lead a prompt.

    A lead is wins minus losses on one prompt. Without any preference each could as well have gone
    the other way as a whole, so the sum is compared with all 2^prompts sums of ± leads (Fisher's
    randomisation test). That holds however alike the pairs of a prompt are. With one pair a prompt
    it is the sign test. All sums at once, by convolution.
    """
    sizes = [abs(lead) for lead in leads if lead]
    reach = sum(sizes)
    shares = np.zeros(2 * reach + 1)
    shares[reach] = 1.0
    for size in sizes:  # np.roll does not wrap: the sums so far stay away from both ends
        shares = (np.roll(shares, size) + np.roll(shares, -size)) / 2
    found = abs(sum(leads))
    if found == 0:
        return 1.0
    return min(1.0, 2 * math.fsum(shares[reach + found :].tolist()))


def equivalence_test(wins: int, losses: int, margin: float) -> float:
    """Returns the p value of "the win rate is not within ±`margin` of one half".

    Two one-sided exact binomial tests (TOST, Schuirmann 1987): the larger of P(X >= wins) at
    1/2 − margin and P(X <= wins) at 1/2 + margin. Small means: as good as each other within the
    margin. Of decisive pairs only; ties do not take part, which is the careful choice.
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"a margin lies between 0 and 0.5, not at {margin}")
    trials = wins + losses
    if trials == 0:
        return 1.0
    return max(at_least(wins, trials, 0.5 - margin), at_most(wins, trials, 0.5 + margin))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns p values adjusted for being several, in the given order (Holm 1979, step-down)."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def _mass(wins: int, trials: int, chance: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(wins + 1) - math.lgamma(trials - wins + 1)
    return math.exp(ways + wins * math.log(chance) + (trials - wins) * math.log1p(-chance))


def _check(wins: int, trials: int) -> None:
    if not 0 <= wins <= trials:
        raise ValueError(f"{wins} of {trials} is not a count")
