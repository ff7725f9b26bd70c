"""Settings validate themselves and name the nearest allowed value."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from vqdq.errors import UserError
from vqdq.params import Params, describe, nearest, param


@dataclass(frozen=True, kw_only=True, slots=True)
class Example(Params):
    bits: int = param(3, label="Bits", unit="bits", low=2, high=4)
    rate: float = param(0.5, label="Rate", low=0.0, high=1.0)
    fast: bool = param(True, label="Fast")
    mode: str = param("auto", label="Mode", choices=("auto", "layer"))


def test_defaults_and_descriptions_come_from_one_declaration() -> None:
    assert Example().to_json() == {"bits": 3, "rate": 0.5, "fast": True, "mode": "auto"}
    first = describe(Example)[0]
    assert (first.name, first.kind, first.default, first.unit) == ("bits", int, 3, "bits")
    assert (first.low, first.high, first.choices) == (2, 4, ())


def test_json_goes_both_ways() -> None:
    values = {"bits": 4, "rate": 1.0, "fast": False, "mode": "layer"}
    assert Example.from_json(values).to_json() == values
    assert Example.from_json({"bits": 2.0, "rate": 1}).to_json()["bits"] == 2
    assert type(Example.from_json({"rate": 1}).rate) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 5}, "5 is out of range. Use 2 to 4 bits."),
        ({"bits": 1}, "1 is out of range. Use 2 to 4 bits."),
        ({"bits": 2.5}, "2.5 is not a whole number. Use 2 to 4 bits."),
        ({"bits": True}, "True is not a whole number."),
        ({"bits": "3"}, "'3' is not a whole number."),
        ({"rate": float("nan")}, "nan is not a number."),
        ({"rate": None}, "None is not a number."),
        ({"fast": 1}, "1 is not true or false."),
        ({"mode": "own"}, "'own' is not offered. Use one of: auto, layer."),
        ({"mode": 3}, "3 is not a text."),
        ({"bit": 3}, 'unknown setting "bit". Did you mean "bits"?'),
        ({"zzz": 3}, 'unknown setting "zzz". Known settings: bits, fast, mode, rate.'),
    ],
)
def test_faults_name_the_place_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as fault:
        Example.from_json(values, where="rules[0].params")
    assert message in str(fault.value)
    assert str(fault.value).startswith("rules[0].params")


def test_direct_construction_validates_too() -> None:
    with pytest.raises(UserError, match="out of range"):
        Example(bits=9)
    with pytest.raises(FrozenInstanceError):
        Example().bits = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_nearest_always_helps() -> None:
    assert nearest("trelis", ["trellis", "uniform"], "method") == 'Did you mean "trellis"?'
    assert nearest("q", ["b", "a"], "method") == "Known methods: a, b."
    assert nearest("q", [], "preset") == "There is no preset to choose from."


def test_a_fault_survives_pickling() -> None:
    fault = UserError("a fact.", where="here", remedy="Do this.")
    again = pickle.loads(pickle.dumps(fault))
    assert str(again) == str(fault) == "here: a fact. Do this."
