"""How many pairs a blind test needs before its answer means something.

Told before a test starts and again with its results: a test that finds nothing should say how
much it could have found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vqdq.metrics.proportions import at_least, equivalence_test, quantile, sign_test

_MOST = 1_000_000  # nobody votes on more


def pairs_to_detect(rate: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Returns the decisive pairs that detect a win rate of `rate` with probability `power`.

    The normal approximation of the two-sided sign test,
    n = ((z_{1−α/2} / 2 + z_power √(r (1 − r))) / (r − 1/2))².
    """
    if not 0 < rate < 1 or rate == 0.5:
        raise ValueError(f"a rate to detect lies in 0 ... 1 and is not one half: {rate}")
    reach = 0.5 * quantile(1 - alpha / 2) + math.sqrt(rate * (1 - rate)) * quantile(power)
    return math.ceil((reach / (rate - 0.5)) ** 2)


def pairs_for_equivalence(margin: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Returns the decisive pairs that show equivalence within ±`margin` when it is exact.

    The normal approximation of two one-sided tests at a true rate of one half,
    n = (z_{1−α} + z_{(1+power)/2})² / (4 margin²).
    """
    if not 0 < margin < 0.5:
        raise ValueError(f"a margin lies between 0 and 0.5, not at {margin}")
    reach = quantile(1 - alpha) + quantile(0.5 + power / 2)
    return math.ceil((reach / margin) ** 2 / 4)


def more_pairs(needed: int, decisive: int, judged: int) -> int:
    """Returns how many more pairs to judge until `needed` are decisive, at the share so far.

    Args:
        needed: decisive pairs wanted.
        decisive, judged: so far. The share of decisive pairs is taken as
            (decisive + 1) / (judged + 2) (Laplace), so that it is never zero; one half at the
            start.
    """
    if decisive >= needed:
        return 0
    return min(_MOST, math.ceil((needed - decisive) * (judged + 2) / (decisive + 1)))


def exact_power(rate: float, pairs: int, *, alpha: float = 0.05) -> float:
    """Returns the probability that the exact sign test detects a win rate of `rate`.

    Sums the binomial over the outcomes that are rejected.
    """
    most = max((k for k in range(pairs // 2 + 1) if sign_test(k, pairs - k) <= alpha), default=-1)
    if most < 0:
        return 0.0
    return at_least(pairs - most, pairs, rate) + at_least(pairs - most, pairs, 1 - rate)


def exact_equivalence_power(margin: float, pairs: int, *, alpha: float = 0.05) -> float:
    """Returns the probability that the exact equivalence test succeeds at a true rate of 1/2."""
    inside = [k for k in range(pairs + 1) if equivalence_test(k, pairs - k, margin) <= alpha]
    if not inside:
        return 0.0
    return at_least(inside[0], pairs, 0.5) - (
        at_least(inside[-1] + 1, pairs, 0.5) if inside[-1] < pairs else 0.0
    )


def detectable_rate(pairs: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Returns the smallest win rate that `pairs` decisive pairs detect with that probability.

    By the exact test, to one percent; None when even a rate of 99 % would be missed.
    """
    return _smallest(lambda rate: exact_power(rate, pairs, alpha=alpha), power)


def detectable_share(trials: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Returns the smallest share of right answers that `trials` forced choices tell from guessing.

    By the exact one-sided test against one half, to one percent; None when there are too few.
    """
    least = min((k for k in range(trials + 1) if at_least(k, trials, 0.5) <= alpha), default=None)
    if least is None:
        return None
    return _smallest(lambda share: at_least(least, trials, share), power)


def _smallest(chance: Callable[[float], float], power: float) -> float | None:
    rates = (percent / 100 for percent in range(51, 100))
    return next((rate for rate in rates if chance(rate) >= power), None)
