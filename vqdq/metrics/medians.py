"""The median and how well it is known, without assuming how the numbers are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from vqdq.metrics.proportions import Interval


def median_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Returns the median with an interval between two order statistics.

    From x(k) to x(n+1−k) lies the true median with probability 1 − 2 P(B <= k−1), B binomial
    (n, 1/2), whatever the distribution (David and Nagaraja, Order Statistics, section 7.1). k is
    the largest that keeps `level`. Fewer than six values cannot: then it is their whole range, and
    the interval's own `level` says what that is worth; one value has no interval (level 0).

    Args:
        values: any numbers, infinities included.

    Returns:
        nan for everything without a value.
    """
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return Interval(value=math.nan, low=math.nan, high=math.nan, level=0.0)
    outside, place = 0.0, 0  # P(B <= place - 1) on one side
    while place < count // 2:
        more = outside + math.comb(count, place) / 2**count
        if 1 - 2 * more < level:
            break
        outside, place = more, place + 1
    if place == 0:
        sure = 1 - 2 / 2**count
        return Interval(value=median(ordered), low=ordered[0], high=ordered[-1], level=sure)
    low, high = ordered[place - 1], ordered[count - place]
    return Interval(value=median(ordered), low=low, high=high, level=1 - 2 * outside)
