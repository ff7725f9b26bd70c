"""The allocator against every possible choice, on instances small enough to try them all."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdq.allocation import (
    Option,
    allocate,
    lower_bound,
    smallest_bytes,
    total_bytes,
    total_loss,
)
from vqdq.errors import UserError

_option = st.builds(Option, bytes=st.integers(0, 60), loss=st.floats(0, 10, allow_subnormal=False))
_instance = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(_option, min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def _best_of_all(options: dict[str, list[Option]], budget: int) -> float:
    choices = itertools.product(*options.values())
    return min(
        math.fsum(option.loss for option in choice)
        for choice in choices
        if sum(option.bytes for option in choice) <= budget
    )


@given(options=_instance, extra=st.integers(0, 120))
@settings(max_examples=300)
def test_it_finds_the_best_of_all_choices(options: dict[str, list[Option]], extra: int) -> None:
    budget = smallest_bytes(options) + extra
    chosen = allocate(options, budget)
    assert list(chosen) == list(options)
    assert total_bytes(options, chosen) <= budget
    best = _best_of_all(options, budget)
    assert total_loss(options, chosen) == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert lower_bound(options, budget) <= best + 1e-9


@given(options=_instance, extra=st.integers(0, 100), more=st.integers(0, 30))
@settings(max_examples=100)
def test_more_bytes_never_lose_more(
    options: dict[str, list[Option]], extra: int, more: int
) -> None:
    budget = smallest_bytes(options) + extra
    losses = [total_loss(options, allocate(options, size)) for size in (budget, budget + more)]
    assert losses[1] <= losses[0] + 1e-9


def _many(layers: int) -> dict[str, list[Option]]:
    """Layers of a real model's sizes: loss = a 4^-bits, bytes = n bits / 8 + overhead."""
    found: dict[str, list[Option]] = {}
    for number in range(layers):
        weights = 16 * (1 + number * number * 37 % 501) * (1 + number % 7)
        effect = 10 ** (-3 * ((number * 61 % 97) / 97))
        found[f"layer.{number}"] = [
            Option(bytes=weights * bits // 8 + 100 + number, loss=effect * 4.0**-bits)
            for bits in (2, 3, 4, 5)
        ]
    return found


@pytest.mark.parametrize("share", [0.05, 0.21, 0.5, 0.83])
def test_many_layers_come_close_to_the_bound(share: float) -> None:
    options = _many(150)
    largest = sum(of_layer[-1].bytes for of_layer in options.values())
    least = smallest_bytes(options)
    budget = least + int(share * (largest - least))
    chosen = allocate(options, budget)
    assert budget * 0.9999 <= total_bytes(options, chosen) <= budget
    assert total_loss(options, chosen) <= lower_bound(options, budget) * 1.003


@pytest.mark.parametrize("extra", [0, 137, 1000, 3001])
def test_it_agrees_with_a_plain_table_over_all_budgets(extra: int) -> None:
    options = {
        layer: [Option(bytes=-(-o.bytes // 64), loss=o.loss) for o in of_layer]
        for layer, of_layer in _many(60).items()
    }
    budget = smallest_bytes(options) + extra
    least = np.zeros(budget + 1)  # the least loss with at most b bytes
    for of_layer in options.values():
        following = np.full(budget + 1, np.inf)
        for option in of_layer:
            shifted = least[: budget + 1 - option.bytes] + option.loss
            np.minimum(following[option.bytes :], shifted, out=following[option.bytes :])
        least = following
    chosen = allocate(options, budget)
    assert total_loss(options, chosen) == pytest.approx(least[budget], rel=1e-12)


def test_equal_layers_of_exponential_loss_differ_by_one_bit_at_most() -> None:
    options = {
        f"layer.{i}": [Option(bytes=100 * bits, loss=4.0**-bits) for bits in (2, 3, 4, 5)]
        for i in range(8)
    }
    chosen = allocate(options, 8 * 100 * 3 + 350)  # 3.4375 bits on average: three layers get 4
    assert sorted(chosen.values()) == [1, 1, 1, 1, 1, 2, 2, 2]


def test_bits_follow_the_logarithm_of_the_effect() -> None:
    """Reverse water-filling: bits_l = mean + ½ log2(a_l / geometric mean a)."""
    effects = {"a": 1.0, "b": 16.0, "c": 256.0}
    options = {
        layer: [Option(bytes=100 * bits, loss=effect * 4.0**-bits) for bits in range(1, 9)]
        for layer, effect in effects.items()
    }
    chosen = allocate(options, 1200)
    assert {layer: index + 1 for layer, index in chosen.items()} == {"a": 2, "b": 4, "c": 6}


def test_everything_fits() -> None:
    options = _many(20)
    chosen = allocate(options, 10**9)
    assert set(chosen.values()) == {3}


def test_a_budget_that_cannot_be_met_names_the_smallest_size() -> None:
    options = {"a": [Option(bytes=1200, loss=1.0)], "b": [Option(bytes=300, loss=0.0)]}
    with pytest.raises(UserError, match=r"1,499 bytes are too few.* at least 1,500"):
        allocate(options, 1499)
    assert allocate(options, 1500) == {"a": 0, "b": 0}


def test_an_option_without_a_number_names_the_layer() -> None:
    options = {"down.0": [Option(bytes=1, loss=math.nan)]}
    with pytest.raises(UserError, match=r"down\.0.*measure again"):
        allocate(options, 10)
    with pytest.raises(UserError, match=r"down\.1"):
        allocate({"down.1": []}, 10)
    assert allocate({}, 0) == {}
