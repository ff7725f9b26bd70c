"""Words of the page: moments, stages, counts.

Also `escape`, through which every word passes that the page did not write itself.
"""

from __future__ import annotations

import html
import math
from datetime import datetime, timedelta
from urllib.parse import quote

from vqdq.quantities import UNKNOWN, digits

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
