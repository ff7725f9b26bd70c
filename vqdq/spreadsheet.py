"""Words in a CSV file that a spreadsheet would compute: they are marked as text."""

from __future__ import annotations

from typing import Any

_COMPUTED = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: Any) -> Any:
    """Returns a value for a cell: "" for None, a text that begins like a formula behind an
    apostrophe, everything else as it is.
    """
    if value is None:
        return ""
    if isinstance(value, str) and value.lstrip(" ")[:1] in _COMPUTED and value.strip():
        return f"'{value}"
    return value
