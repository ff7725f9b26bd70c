"""One declaration of a setting serves the codec, the page, the command line and the recipe.

A method declares a frozen dataclass derived from `Params` whose fields are made by `param(...)`.
The form is drawn from the same declaration that validates, so there is no second list of ranges
anywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeGuard, TypeVar, cast

from vqdq.errors import UserError

Value = bool | int | float | str
T = TypeVar("T", bool, int, float, str)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParamInfo:
    """What the form, the documentation and the validation know about one setting."""

    name: str
    kind: type
    default: Value
    label: str
    help: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[Value, ...]
    reference: str
    advanced: bool


def param(
    default: T,
    *,
    label: str,
    help: str = "",
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[T] | tuple[()] = (),
    reference: str = "",
    advanced: bool = False,
) -> T:
    """Returns a dataclass field that carries its own form, range and source.

    Args:
        default: value when nothing is said; its type is the type of the setting.
        label: short name on the form; `help`: one sentence; `unit`: shown behind the value.
        low, high: inclusive range of a number; `choices`: the allowed values, when they are few.
        reference: where the default comes from (arXiv id and section).
        advanced: drawn in the fold.
    """
    meta = {
        "label": label,
        "help": help,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "reference": reference,
        "advanced": advanced,
    }
    return dataclasses.field(default=default, metadata={"param": meta})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Base of every method's settings; validates itself when it is made.

    Raises:
        UserError: a value of the wrong type, out of range or not among the choices.
    """

    def __post_init__(self) -> None:
        for info in describe(type(self)):
            _check(type(self).__name__, info, getattr(self, info.name))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Returns the settings in `values`; absent ones take their defaults.

        Raises:
            UserError: an unknown key (the nearest known one is named) or a bad value.
        """
        place = where or cls.__name__
        known = {info.name: info for info in describe(cls)}
        for key in values:
            if key not in known:
                raise UserError(
                    f'unknown setting "{key}".', where=place, remedy=nearest(key, known, "setting")
                )
        for key, value in values.items():
            _check(place, known[key], value)
        ready = {key: known[key].kind(value) for key, value in values.items()}
        return cls(**ready)

    def to_json(self) -> dict[str, Value]:
        """Returns every setting, defaults included, so that a recipe never changes meaning."""
        return {info.name: getattr(self, info.name) for info in describe(type(self))}


def describe(params: type[Params]) -> tuple[ParamInfo, ...]:
    """Returns the settings of a `Params` class in the order of their declaration."""
    found: list[ParamInfo] = []
    for field in dataclasses.fields(params):
        default = cast(Value, field.default)
        found.append(
            ParamInfo(
                name=field.name, kind=type(default), default=default, **field.metadata["param"]
            )
        )
    return tuple(found)


def nearest(word: str, known: Iterable[str], noun: str) -> str:
    """Returns the remedy for a misspelt name: the nearest known one, or the list of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f'Did you mean "{close[0]}"?'
    if not names:
        return f"There is no {noun} to choose from."
    return f"Known {noun}s: {', '.join(names)}."


def _check(place: str, info: ParamInfo, value: object) -> None:
    where = f"{place}.{info.name}"
    number = _is_number(value)
    fits = {
        bool: isinstance(value, bool),
        int: number and float(cast(float, value)).is_integer(),
        float: number,
        str: is_text(value),
    }[info.kind]
    if not fits:
        raise UserError(
            f"{value!r} is not {_article(info.kind)}.", where=where, remedy=_allowed(info)
        )
    if info.choices and value not in info.choices:
        raise UserError(f"{value!r} is not offered.", where=where, remedy=_allowed(info))
    if number:
        size = float(cast(float, value))
        low = info.low is not None and size < info.low
        high = info.high is not None and size > info.high
        if low or high:
            raise UserError(f"{value!r} is out of range.", where=where, remedy=_allowed(info))


def is_text(value: object) -> TypeGuard[str]:
    """Returns whether `value` is a text that a file can hold: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: object) -> bool:
    """Whether it is finite, as a float too: a whole number of JSON may have any length."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _allowed(info: ParamInfo) -> str:
    if info.choices:
        return f"Use one of: {', '.join(str(choice) for choice in info.choices)}."
    if info.low is not None and info.high is not None:
        return f"Use {info.low:g} to {info.high:g}{' ' + info.unit if info.unit else ''}."
    return f"The default is {info.default!r}."


def _article(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
