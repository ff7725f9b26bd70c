"""How far assessors agree: Krippendorff's alpha, and each assessor with themselves.

Alpha and not a kappa: Cohen's takes exactly two assessors and Fleiss' the same number for every
pair, while in a blind test some skip and some stop early. On complete data alpha is Fleiss' kappa
with a correction for small numbers. The categories are nominal: "both bad" has no place on a line
from the one model to the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Agreement of assessors over the units that at least two of them judged.

    Attributes:
        alpha: 1 is perfect, 0 what chance would give; nan when undefined, which is when no unit
            was judged twice or everybody gave one answer to everything.
        observed: share of pairs of answers to one unit that are equal; nan without any.
        units: how many units at least two judged.
    """

    alpha: float
    observed: float
    units: int

    def words(self) -> str:
        """Returns one plain sentence."""
        if self.units == 0:
            return "no pair was judged by two people, so agreement is unknown."
        if math.isnan(self.alpha):
            return f"every answer was the same on {self.units} pairs; agreement says nothing then."
        lead = f"Krippendorff's alpha {self.alpha:.2f} over {self.units} pairs"
        if self.alpha < 0.05:
            return f"{lead}: assessors agree no more than by chance."
        return f"{lead} (1 is perfect, 0 is chance)."


def krippendorff(units: Iterable[Sequence[str]]) -> Agreement:
    """Returns the agreement of answers, one sequence of answers a unit, missing ones left out.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", nominal data, any number of
    observers, missing values: alpha = 1 − D_o / D_e, where D_o is the share of unequal pairs of
    answers inside units (each unit's pairs weighted by 1 / (m_u − 1)) and D_e that among all
    answers.
    """
    totals: Counter[str] = Counter()
    unequal = 0.0
    used = 0
    for unit in units:
        count = len(unit)
        if count < 2:
            continue
        used += 1
        inside = Counter(unit)
        totals.update(inside)
        unequal += sum(n * (count - n) for n in inside.values()) / (count - 1)
    if used == 0:
        return Agreement(alpha=math.nan, observed=math.nan, units=0)
    answers = totals.total()
    observed = unequal / answers
    expected = sum(n * (answers - n) for n in totals.values()) / (answers * (answers - 1))
    alpha = math.nan if expected == 0 else 1 - observed / expected
    return Agreement(alpha=alpha, observed=1 - observed, units=used)
