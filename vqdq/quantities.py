"""Numbers as people read them: a unit always, three significant digits, one way everywhere."""

from __future__ import annotations

import math

UNKNOWN = "–"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def digits(value: float | None, unit: str = "") -> str:
    """Returns three significant digits, never in exponent form: 3.02, 29.4, 1,240."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        number = "∞" if value > 0 else "−∞"
    elif value == 0:
        number = "0"
    else:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        number = f"{value:,.{min(places, 6)}f}".replace("-", "−")
    return f"{number} {unit}" if unit else number


def size(count: float | None) -> str:
    """Returns a size in bytes, decimal units as on a disk's label: 57.0 MB."""
    if count is None:
        return UNKNOWN
    value, index = float(count), 0
    while value >= 999.5 and index < len(_UNITS) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.0f} B" if index == 0 else digits(value, _UNITS[index])


def duration(seconds: float | None) -> str:
    """Returns a duration: 0.82 s, 14 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 9.95:
        if seconds < 0.1:
            return f"{seconds * 1000:.0f} ms"
        return f"{seconds:.1f} s" if seconds >= 0.995 else f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def roughly(seconds: float) -> str:
    """Returns an estimated duration as coarse as it is known: 3 s, 20 s, 2 min, 3 h."""
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 55:
        return f"{5 * round(seconds / 5)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{round(seconds / 3600)} h"
