"""JSON that strangers wrote, read so that it can neither hide nor hang anything."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from vqdq.errors import UserError


def parse_object(text: str | bytes, place: str, *, remedy: str, what: str = "") -> dict[str, Any]:
    """Returns the object that a JSON text is.

    Args:
        place: named in errors; what: the part of it that the text is ("the header ").

    Raises:
        UserError: no JSON, no object, a key twice, or nested too deep.
    """
    try:
        values: object = json.loads(text, object_pairs_hook=_once)
    except _Twice as error:
        raise UserError(f"{what}has {error} twice.", where=place, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        # no JSON, no UTF-8, a number of thousands of digits, or brackets without end
        raise UserError(f"{what}is not JSON.", where=place, remedy=remedy) from error
    if not isinstance(values, dict):
        raise UserError(f"{what}is not a JSON object.", where=place, remedy=remedy)
    return cast(dict[str, Any], values)


class _Twice(Exception):
    """A key that stands in an object twice: two readers could see two files."""


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key[:100])
        found[key] = value
    return found
