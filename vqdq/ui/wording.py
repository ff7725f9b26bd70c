"""Numbers and times as people read them: a unit always, three significant digits, one way
everywhere.

Also `escape`, through which every word passes that the page did not write itself.
"""

from __future__ import annotations

import html
import math
from datetime import datetime, timedelta
from urllib.parse import quote

UNKNOWN = "–"
_UNITS = ("B", "kB", "MB", "GB", "TB")
STAGES = {
    "queued": "Waiting for its turn",
    "plan": "Reading the model",
    "load": "Loading the model",
    "record": "Drawing on prompts",
    "weigh": "Weighing the steps",
    "calibrate": "Calibrating",
    "sensitivity": "Measuring the layers",
    "distortion": "Trying every size",
    "protect": "Estimating what inputs cost",
    "blame": "Putting layers back, one by one",
    "repair": "Measuring repairs",
    "encode": "Compressing",
    "decode": "Unpacking",
    "finetune": "Fine-tuning",
    "ranges": "Watching activations",
    "save": "Writing the file",
    "checksums": "Checking the file",
    "verify": "Checking the file",
    "generate": "Drawing",
    "draw": "Drawing",
    "pair": "Comparing layer by layer",
    "follow": "Following the latents",
    "weights": "Reading the weights",
    "pairs": "Drawing the pairs",
    "cells": "Drawing the grid",
    "compare": "Comparing",
    "measure": "Measuring",
    "capture": "Recording",
}
"""Stages of a job in plain words; a stage that is not here is shown as it is."""


def escape(text: object) -> str:
    """Returns `text` safe inside HTML text and quoted attributes."""
    return html.escape(str(text), quote=True)


def digits(value: float | None, unit: str = "") -> str:
    """Returns three significant digits, never in exponent form below a million: 3.02, 29.4, 512."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        number = "∞" if value > 0 else "−∞"
    elif value == 0:
        number = "0"
    else:
        places = max(0, 2 - math.floor(math.log10(abs(value))))
        number = f"{value:.{min(places, 6)}f}".replace("-", "−")
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


def moment(stamp: float | None, now: datetime | None = None) -> str:
    """Returns when something happened, the shortest way that is still clear: 14:03, yesterday
    14:03.
    """
    if stamp is None:
        return UNKNOWN
    today = now or datetime.now()
    then = datetime.fromtimestamp(stamp)
    if then.date() == today.date():
        return f"{then:%H:%M}"
    if then.date() == today.date() - timedelta(days=1):
        return f"yesterday {then:%H:%M}"
    return f"{then:%d %b %H:%M}" if then.year == today.year else f"{then:%d %b %Y}"


def decibels(value: float | None) -> str:
    """Returns a level in dB; two runs that are equal in every bit have no error, "exact"."""
    if value is not None and math.isinf(value):
        return "exact" if value > 0 else "none"
    return digits(value, "dB")


def count(number: int, noun: str) -> str:
    """Returns "1 layer", "5 layers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def stage(name: str) -> str:
    """Returns a stage of a job in plain words."""
    return STAGES.get(name, name.replace("_", " ").capitalize() if name else "Starting")


def shorten(text: str, limit: int = 90) -> str:
    """Returns `text` on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def file_url(path: object) -> str:
    """Returns the address of a served file, relative so that a proxy's prefix is kept.

    Gradio hands out these bytes as they lie on the disk: nothing is re-encoded.
    """
    return f"gradio_api/file={quote(str(path))}"


def chip(kind: str, how: str) -> str:
    """Returns the chip that says what a number is (measured, estimated, exact, …); `how` is its
    tooltip.
    """
    return (
        f'<span class="vq-chip vq-chip-{escape(kind)}" title="{escape(how)}">{escape(kind)}</span>'
    )
