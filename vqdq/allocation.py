"""Which setting each layer gets: the least total loss that fits into a budget of bytes.

A multiple-choice knapsack: one option a layer, the sum of bytes bounded, the sum of losses least.
One multiplier λ (the price of a byte, Everett 1963) solves the relaxation: every layer takes the
option of least loss + λ·bytes, and the dual bound says how far any choice can be from the best.
What the relaxation leaves open is small, so the rest is solved exactly: partial choices are
extended layer by layer, and dropped when another has no more bytes and no more loss, or when their
excess over the relaxation is above that of the best known choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqdq.errors import UserError
from vqdq.params import Params

_MOST_STATES = 20_000  # partial choices kept; beyond, those of least excess stay


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to store a layer.

    Attributes:
        bytes: everything that is stored for the layer.
        loss: what it costs in quality, >= 0; losses of layers add up.
        method, params: what a recipe would say; None keeps the layer in 16 bits.
    """

    bytes: int
    loss: float
    method: str | None = None
    params: Params | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Relaxed:
    price: float  # λ, loss per byte
    bound: float  # no choice within the budget has less loss
    chosen: dict[str, int]  # a choice within the budget, nearly the best


def smallest_bytes(options: Mapping[str, Sequence[Option]]) -> int:
    """Returns the bytes of the smallest option of every layer together."""
    return sum(min(option.bytes for option in of_layer) for of_layer in options.values())


def total_bytes(options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int]) -> int:
    """Returns the bytes of a choice."""
    return sum(options[layer][index].bytes for layer, index in chosen.items())


def total_loss(options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int]) -> float:
    """Returns the loss of a choice."""
    return math.fsum(options[layer][index].loss for layer, index in chosen.items())


def lower_bound(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> float:
    """Returns a loss that no choice within the budget can be under (the dual bound).

    Raises:
        UserError: the budget is below `smallest_bytes`.
    """
    _require(options, budget_bytes)
    return _relax(options, budget_bytes).bound


def allocate(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, int]:
    """Returns the index of the chosen option of each layer: least total loss within the budget.

    The result is the optimum unless more than 20 000 partial choices compete; then its distance
    from the optimum is still below `total_loss` − `lower_bound`, which is never more than the
    largest gain of a single layer's next option.

    Raises:
        UserError: the budget is below the smallest possible size, which is named; a layer has no
            option; an option has a negative size or a loss that is not a number >= 0.
    """
    _require(options, budget_bytes)
    relaxed = _relax(options, budget_bytes)
    exact = _search(options, budget_bytes, relaxed)
    return relaxed.chosen if exact is None else exact


def _require(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> None:
    for layer, of_layer in options.items():
        if not of_layer:
            raise UserError("there is no way to store this layer.", where=layer)
        for option in of_layer:
            if option.bytes < 0 or not math.isfinite(option.loss) or option.loss < 0:
                raise UserError(
                    f"an option of {option.bytes} bytes has the loss {option.loss}.",
                    where=layer,
                    remedy="The measurement of this layer failed: measure again.",
                )
    least = smallest_bytes(options)
    if budget_bytes < least:
        raise UserError(
            f"{budget_bytes:,} bytes are too few: the layers take at least {least:,}.",
            where="target",
            remedy="Ask for more, or for a method with a smaller setting.",
        )


def _hull(options: Sequence[Option]) -> list[int]:
    """Returns indices of the lower convex hull of (bytes, loss): ever more bytes, ever less loss,
    ever less gain per byte."""
    kept: list[int] = []
    for index in sorted(range(len(options)), key=lambda i: (options[i].bytes, options[i].loss, i)):
        here = options[index]
        if kept and here.loss >= options[kept[-1]].loss:
            continue
        while len(kept) > 1:
            last, before = options[kept[-1]], options[kept[-2]]
            old = (before.loss - last.loss) * (here.bytes - last.bytes)
            new = (last.loss - here.loss) * (last.bytes - before.bytes)
            if old > new:
                break
            kept.pop()
        kept.append(index)
    return kept


def _relax(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> _Relaxed:
    """Takes the steps of all hulls in the order of their gain per byte until one does not fit."""
    hulls = {layer: _hull(of_layer) for layer, of_layer in options.items()}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    left = budget_bytes - total_bytes(options, chosen)
    steps: list[tuple[float, str, int]] = []  # gain per byte, layer, position in its hull
    for layer, hull in hulls.items():
        for place in range(1, len(hull)):
            low, high = options[layer][hull[place - 1]], options[layer][hull[place]]
            steps.append(((low.loss - high.loss) / (high.bytes - low.bytes), layer, place))
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    price = 0.0
    for gain, layer, place in steps:
        hull = hulls[layer]
        if chosen[layer] != hull[place - 1]:
            continue  # an earlier step of this layer did not fit
        more = options[layer][hull[place]].bytes - options[layer][hull[place - 1]].bytes
        if more <= left:
            chosen[layer] = hull[place]
            left -= more
        elif price == 0.0:
            price = gain  # the critical step: the relaxation takes a part of it
    bound = math.fsum(
        min(option.loss + price * option.bytes for option in of_layer)
        for of_layer in options.values()
    )
    return _Relaxed(price=price, bound=max(0.0, bound - price * budget_bytes), chosen=chosen)


def _search(
    options: Mapping[str, Sequence[Option]], budget_bytes: int, relaxed: _Relaxed
) -> dict[str, int] | None:
    """Returns the best choice found among those better than `relaxed.chosen`, or None."""
    best = total_loss(options, relaxed.chosen)
    gap = (best - relaxed.bound) * (1 + 1e-9) + 1e-12 * best
    layers = list(options)
    excess = {layer: _excess(options[layer], relaxed.price) for layer in layers}
    layers.sort(key=lambda layer: -float(np.partition(np.append(excess[layer], np.inf), 1)[1]))
    rest = smallest_bytes(options)
    used: NDArray[np.int64] = np.zeros(1, np.int64)
    lost: NDArray[np.float64] = np.zeros(1)
    over: NDArray[np.float64] = np.zeros(1)
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # parent state, option
    for layer in layers:
        of_layer = options[layer]
        rest -= min(option.bytes for option in of_layer)
        parts: list[tuple[NDArray[np.int64], int]] = []
        for index, option in enumerate(of_layer):
            fits = used + option.bytes + rest <= budget_bytes
            kept = np.flatnonzero(fits & (over + excess[layer][index] <= gap))
            parts.append((kept, index))
        parent = np.concatenate([kept for kept, _ in parts])
        option_of = np.concatenate([np.full(len(kept), index) for kept, index in parts])
        if len(parent) == 0:
            return None  # nothing is better than what is known
        sizes = np.array([option.bytes for option in of_layer], np.int64)
        losses = np.array([option.loss for option in of_layer])
        used_next, lost_next = used[parent] + sizes[option_of], lost[parent] + losses[option_of]
        over_next = over[parent] + excess[layer][option_of]
        keep = _undominated(used_next, lost_next)
        if len(keep) > _MOST_STATES:
            order = np.argsort(over_next[keep], kind="stable")[:_MOST_STATES]
            keep = keep[np.sort(order)]
        used, lost, over = used_next[keep], lost_next[keep], over_next[keep]
        trail.append((parent[keep], option_of[keep]))
    state = int(np.argmin(lost))
    chosen: dict[str, int] = {}
    for layer, (parent, option_of) in zip(reversed(layers), reversed(trail), strict=True):
        chosen[layer] = int(option_of[state])
        state = int(parent[state])
    found = {layer: chosen[layer] for layer in options}
    return found if total_loss(options, found) < best else None


def _excess(options: Sequence[Option], price: float) -> NDArray[np.float64]:
    """Returns each option's loss + price·bytes above the least of them, [options]."""
    cost = np.array([option.loss + price * option.bytes for option in options])
    return cost - cost.min()


def _undominated(used: NDArray[np.int64], lost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns indices, by bytes, of the states that no other equals or beats in both."""
    order = np.lexsort((lost, used))
    least = np.minimum.accumulate(lost[order])
    first = np.ones(len(order), bool)
    first[1:] = lost[order][1:] < least[:-1]
    return order[first]
