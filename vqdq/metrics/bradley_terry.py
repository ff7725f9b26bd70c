"""Strengths of three or more models from pairs with ties: Davidson's Bradley–Terry model.

P(i wins) : P(j wins) : P(tie) = π_i : π_j : ν √(π_i π_j)   (Davidson 1970, JASA 65).
Davidson and not Rao–Kupper: ties then leave the order of strengths as points would, and the model
is an exponential family, so that its likelihood is concave and Newton's method finds the maximum.
Unlike Elo the result does not depend on the order of the votes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vqdq.errors import UserError
from vqdq.metrics.preference import Outcome
from vqdq.metrics.proportions import Interval, quantile
from vqdq.metrics.resampling import cluster_sums, percentile_interval

PRIOR_SD = 3.0
"""Of a log strength and of log ν. A model that wins every pair has no finite strength without."""

_STEPS = 100
_TOLERANCE = 1e-10  # of the gradient, relative to the number of games

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Game:
    """One judged pair of two of several models."""

    first: str
    second: str
    prompt: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Strengths that explain counted games.

    Attributes:
        strengths: log π, sum zero, [models].
        tie: ν; 0 when there was no tie.
        covariance: of `strengths`, inverse of the observed information, [models, models].
    """

    strengths: Array
    tie: float
    covariance: Array

    def chance(self, first: int, second: int) -> float:
        """Returns the probability that `first` wins a decisive pair against `second`."""
        return 1 / (1 + math.exp(self.strengths[second] - self.strengths[first]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """One model's place.

    Attributes:
        model: its name; `rank`: from 1, by the lower end of `by_prompt`.
        strength: log π with the interval of the likelihood.
        by_prompt: the same with the interval from resampling prompts.
        separated: True when its interval does not overlap that of the next model.
    """

    model: str
    rank: int
    strength: Interval
    by_prompt: Interval
    separated: bool


def davidson(counts: Array, *, prior_sd: float | None = PRIOR_SD) -> Fit:
    """Returns the strengths that maximise likelihood and prior.

    Args:
        counts: [models, models, 2]; `[i, j, 0]` pairs that i won against j, and `[i, j, 1]` ties
            of i and j, counted once in either place.
        prior_sd: of a Gaussian around zero on each log strength and on log ν; None is plain
            maximum likelihood, which exists only when every group of models has lost to others.

    Raises:
        UserError: without a prior: no maximum exists, or the games do not connect all models.
    """
    models = len(counts)
    upper = [(i, j) for i in range(models) for j in range(i + 1, models)]
    table = np.array(
        [[counts[i, j, 0], counts[j, i, 0], counts[i, j, 1] + counts[j, i, 1]] for i, j in upper]
    )
    if prior_sd is None:
        _check_connected(counts)
        _check_finite(counts)
    has_ties = bool(table[:, 2].any())
    basis = np.linalg.qr(np.eye(models)[:, 1:] - 1 / models)[0]  # [models, models − 1], sum zero
    design = np.zeros((len(upper), 3, models))
    for row, (i, j) in enumerate(upper):
        design[row, 0, i] = design[row, 1, j] = 1.0
        design[row, 2, [i, j]] = 0.5
    design = design @ basis
    if has_ties:
        tie_column = np.zeros((len(upper), 3, 1))
        tie_column[:, 2] = 1.0
        design = np.concatenate([design, tie_column], axis=2)
    else:
        design, table = design[:, :2], table[:, :2]
    precision = 0.0 if prior_sd is None else prior_sd**-2
    point, information = _maximum(design, table, precision)
    size = models - 1
    covariance: Array = np.linalg.inv(information)[:size, :size].astype(np.float64)
    return Fit(
        strengths=basis @ point[:size],
        tie=float(np.exp(point[size])) if has_ties else 0.0,
        covariance=(basis @ covariance @ basis.T).astype(np.float64),
    )


def standings(
    games: Sequence[Game],
    generator: torch.Generator,
    *,
    samples: int = 500,
    level: float = 0.95,
    prior_sd: float = PRIOR_SD,
) -> tuple[Standing, ...]:
    """Returns the models from the best to the last, ranked by the lower end of their interval.

    Args:
        games: every judged pair.
        generator: draws the bootstrap over prompts.
        samples: of the bootstrap.

    Raises:
        UserError: fewer than two models, or the games do not connect them.
    """
    names = sorted({name for game in games for name in (game.first, game.second)})
    if len(names) < 2:
        raise UserError("there is nothing to rank.", where="votes", remedy="Judge two models.")
    at = {name: index for index, name in enumerate(names)}
    shape = (len(names), len(names), 2)
    clusters: dict[str, Array] = {}
    for game in games:
        counts = clusters.setdefault(game.prompt, np.zeros(shape))
        first, second = at[game.first], at[game.second]
        if game.outcome == "first":
            counts[first, second, 0] += 1
        elif game.outcome == "second":
            counts[second, first, 0] += 1
        else:
            counts[first, second, 1] += 1
    everything = np.sum(list(clusters.values()), axis=0)
    _check_connected(everything)
    fit = davidson(everything, prior_sd=prior_sd)
    flat = np.array([counts.ravel() for counts in clusters.values()])
    drawn = cluster_sums(flat, generator, samples=samples).reshape(-1, *shape)
    spread = np.array([davidson(counts, prior_sd=prior_sd).strengths for counts in drawn])
    half = quantile(0.5 + level / 2) * np.sqrt(np.diag(fit.covariance))
    rows: list[tuple[Interval, Interval, str]] = []
    for index, name in enumerate(names):
        value = float(fit.strengths[index])
        wald = Interval(
            value=value,
            low=value - float(half[index]),
            high=value + float(half[index]),
            level=level,
        )
        rows.append((wald, percentile_interval(spread[:, index], value, level=level), name))
    rows.sort(key=lambda row: (-row[1].low, row[2]))
    following = [*rows[1:], None]
    return tuple(
        Standing(
            model=name,
            rank=rank,
            strength=wald,
            by_prompt=inner,
            separated=after is not None and inner.low > after[1].high,
        )
        for rank, ((wald, inner, name), after) in enumerate(
            zip(rows, following, strict=True), start=1
        )
    )


def _maximum(design: Array, table: Array, precision: float) -> tuple[Array, Array]:
    """The maximum [fields] of the penalised log likelihood and minus its Hessian there."""
    point = np.zeros(design.shape[2])
    total = table.sum(axis=1)
    value = -math.inf
    step = np.zeros_like(point)
    for _ in range(_STEPS):
        logits = design @ (point + step)  # [pairs, outcomes]
        peak = logits.max(axis=1, keepdims=True)
        logs = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        here = float((table * logs).sum() - precision / 2 * ((point + step) ** 2).sum())
        if here < value - 1e-9 * (1 + abs(value)):
            step = step / 2  # too far: the likelihood is concave, so a shorter step rises
            continue
        point, value = point + step, here
        shares = np.exp(logs)
        mean = np.einsum("po,pof->pf", shares, design)
        gradient = np.einsum("po,pof->f", table, design) - total @ mean - precision * point
        second = np.einsum("p,po,pof,pog->fg", total, shares, design, design)
        second -= np.einsum("p,pf,pg->fg", total, mean, mean)
        second += precision * np.eye(len(point))
        if np.abs(gradient).max() <= _TOLERANCE * max(1.0, float(total.sum())):
            return point, second
        step = np.linalg.solve(second, gradient)
    raise ArithmeticError(f"no maximum after {_STEPS} steps of Newton's method")


def _check_connected(counts: Array) -> None:
    met = counts.sum(axis=2) > 0
    if not _reaches_all(met | met.T):
        raise UserError(
            "some models were never compared with the others, not even through a third.",
            where="Bradley–Terry",
            remedy="Judge pairs that connect all models.",
        )


def _check_finite(counts: Array) -> None:
    """Ford 1957: the maximum exists when nobody is beyond reach by wins; a tie reaches both."""
    tied = counts[..., 1] > 0
    reach: NDArray[np.bool_] = (counts[..., 0] > 0) | tied | tied.T
    if not (_reaches_all(reach) and _reaches_all(reach.T) and counts[..., 0].any()):
        raise UserError(
            "a model won or lost every pair, so its strength has no finite value.",
            where="Bradley–Terry",
            remedy="Use the prior, or judge more pairs.",
        )


def _reaches_all(edges: NDArray[np.bool_]) -> bool:
    reached = np.zeros(len(edges), np.bool_)
    reached[0] = True
    for _ in range(len(edges)):
        reached |= edges[reached].any(axis=0)
    return bool(reached.all())
