"""What people write for the values of an axis: "2, 3, 4", "1-8", "2..10:2", names, or a mix."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vqdq.errors import UserError
from vqdq.jobs.requests.grid import AXES, MAX_CELLS, Axis, Value
from vqdq.params import nearest

NUMBERS = ("bits", "seed", "steps", "guidance")
EXAMPLES = {
    "bits": "2, 3, 4, 16",
    "seed": "1-4",
    "steps": "10..30:5",
    "guidance": "1, 3, 5.5",
    "method": "trellis, uniform",
    "recipe": "original, trellis-3bit, vq-3bit",
    "model": "demo, my-model",
    "prompt": "a red circle | a blue ring",
}
_NUMBER = r"(\d+(?:\.\d+)?)"
_RANGE = re.compile(rf"{_NUMBER}\s*(?:-|–|\.\.)\s*{_NUMBER}(?:\s*:\s*{_NUMBER})?")
_TINY = 1e-9


def parse_values(axis: str, text: str) -> tuple[Value, ...]:
    """Returns the values in a text, in their order.

    Numbers are separated by commas and may be ranges, both ends included: `1-8`, `1..8`, and with a
    step `2..10:2`. Names are separated by commas, prompts by `|` or line ends, because they hold
    commas.

    Raises:
        UserError: no such axis, no value, one that is no number, a range that is empty or too long.
    """
    if axis not in AXES:
        raise UserError(f'"{axis}" is no axis.', where="axis", remedy=nearest(axis, AXES, "axis"))
    parts = re.split(r"[|\n]" if axis == "prompt" else r"[,\n]", text)
    words = [" ".join(part.split()) for part in parts if part.strip()]
    if not words:
        raise UserError("has no values.", where=axis, remedy=f"Write for example {EXAMPLES[axis]}.")
    if axis not in NUMBERS:
        return tuple(words)
    found: list[Value] = []
    for word in words:
        found += _numbers(axis, word)
        if len(found) > MAX_CELLS:
            raise UserError(
                f"more than {MAX_CELLS} values.", where=axis, remedy="Use fewer, or a larger step."
            )
    return tuple(found)


def parse_axis(text: str) -> Axis:
    """Returns the axis in a text like "bits=2,3,4".

    Raises:
        UserError: no "=", or what `parse_values` and `Axis` refuse.
    """
    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(
            f'"{text}" has no values.',
            where="axis",
            remedy=f"Write {name or 'bits'}={EXAMPLES.get(name, EXAMPLES['bits'])}.",
        )
    return Axis(name=name.strip(), values=parse_values(name.strip(), values))


def in_words(values: Sequence[Value]) -> str:
    """Returns numbers as a person would write them: "1-4" for a run of whole numbers."""
    whole = [value for value in values if isinstance(value, int)]
    if len(whole) == len(values) > 2 and whole == list(range(whole[0], whole[0] + len(whole))):
        return f"{whole[0]}-{whole[-1]}"
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _numbers(axis: str, word: str) -> list[Value]:
    span = _RANGE.fullmatch(word)
    if span is None:
        return [_number(axis, word)]
    low, high = float(span[1]), float(span[2])
    step = float(span[3] or 1)
    if step <= 0 or high < low:
        raise UserError(
            f'"{word}" is an empty range.', where=axis, remedy="Write 2..10:2: from, to, step."
        )
    count = int((high - low) / step + _TINY) + 1
    if count > MAX_CELLS:
        raise UserError(
            f'"{word}" has {count:,} values.', where=axis, remedy=f"Use at most {MAX_CELLS}."
        )
    return [_exact(axis, word, low + at * step) for at in range(count)]


def _number(axis: str, word: str) -> Value:
    try:
        return _exact(axis, word, float(word)) if "." in word else int(word)
    except ValueError:
        raise UserError(
            f'"{word[:40]}" is no number.',
            where=axis,
            remedy=f"Write for example {EXAMPLES[axis]}.",
        ) from None


def _exact(axis: str, word: str, value: float) -> Value:
    """Whole where it is whole; only guidance may hold a fraction."""
    rounded = round(value, 6)
    if rounded.is_integer():
        return int(rounded)
    if axis != "guidance":
        raise UserError(f'"{word}" is not whole.', where=axis, remedy="Use whole numbers.")
    return rounded
