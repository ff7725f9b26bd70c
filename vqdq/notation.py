"""Settings as people type them, `bits=6 groups=8`, and back: the rules box, links and flags.

One notation for every declaration: a new setting can be typed as soon as it is declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from vqdq.errors import UserError
from vqdq.params import ParamInfo, Params, Value, describe

P = TypeVar("P", bound=Params)


def read(params: type[P], words: Sequence[str], *, where: str = "") -> P:
    """Returns the settings in `words`, each "name=value"; the others take their defaults.

    Raises:
        UserError: a word without "=", an unknown setting (the nearest is named) or a bad value.
    """
    known = {info.name: info for info in describe(params)}
    values = {name: _value(known.get(name), text) for name, text in map(_pair, words)}
    return params.from_json(values, where=where)


def words(params: Params | None) -> list[str]:
    """Returns "name=value" for each setting that is not at its default."""
    if params is None:
        return []
    return [
        f"{info.name}={getattr(params, info.name)}"
        for info in describe(type(params))
        if getattr(params, info.name) != info.default
    ]


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name or not value:
        raise UserError(
            f'"{word}" is not "name=value".', remedy="Write settings like bits=4, without spaces."
        )
    return name, value


def _value(info: ParamInfo | None, text: str) -> Value:
    """The value that `text` means for the setting; unknown settings are refused by `Params`."""
    if info is None or info.kind is str:
        return text
    if info.kind is bool:
        if text.lower() in ("true", "yes", "on", "false", "no", "off"):
            return text.lower() in ("true", "yes", "on")
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if info.kind is int and number.is_integer() else number
