"""The sections of a capture in their order: which are drawn, what leads to them, their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vqdq.errors import UserError
from vqdq.quantities import digits
from vqdq.ui import (
    header,
    inspect_layer,
    inspect_map,
    inspect_trajectory,
    inspect_weights,
    inspect_words,
)
from vqdq.ui.inspect_figures import Plot, save
from vqdq.ui.inspection import Capture, settled
from vqdq.ui.look import SECTIONS, Look, Screen
from vqdq.ui.theme import variant_colour
from vqdq.ui.wording import chip, escape

Body = Callable[..., str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One part of the page.

    Attributes:
        body: from a capture and a settled look, `narrow` for a phone; `room`: units of height that
            it takes up before it is drawn.
    """

    body: Body
    plots: tuple[Plot, ...]
    room: int


KNOWN = {
    "map": Section(body=inspect_map.section, plots=inspect_map.PLOTS, room=900),
    "layer": Section(body=inspect_layer.section, plots=inspect_layer.PLOTS, room=1600),
    "weights": Section(body=inspect_weights.section, plots=inspect_weights.PLOTS, room=1000),
    "words": Section(body=inspect_words.section, plots=inspect_words.PLOTS, room=2000),
    "trajectory": Section(
        body=inspect_trajectory.section, plots=inspect_trajectory.PLOTS, room=700
    ),
}
PLOTS = {plot.name: plot for section in KNOWN.values() for plot in section.plots}


def draw(name: str, capture: Capture, look: Look, screen: Screen) -> str:
    """Returns a section; one that nobody wants yet keeps its room and asks when it is seen."""
    title = dict(SECTIONS)[name]
    section = KNOWN[name]
    if name not in screen.wanted:
        return (
            f'{_heading(name, title)}<div class="vq-waiting" style="min-height:{section.room}px">'
            f'<button type="button" class="vq-button" data-act="want" data-value="{name}">'
            f"Draw this part</button></div></section>"
        )
    try:
        with capture.pen:
            body = section.body(capture, settled(capture, look), narrow=screen.narrow)
    except UserError as error:
        body = header.fault(error.what, where=error.where, remedy=error.remedy)
    return f"{_heading(name, title)}{body}</section>"


def file_of(capture: Capture, look: Look, name: str, kind: str, *, dark: bool) -> Path:
    """Returns the path of a figure's file, after writing it.

    Raises:
        UserError: no such figure or format, nothing to draw, or a full disk.
    """
    if name not in PLOTS:
        raise UserError("there is no such figure.", where="figure")
    return save(capture, PLOTS[name], settled(capture, look), kind, dark=dark)


def navigation(capture: Capture, look: Look) -> str:
    """Returns the row of anchors, and which variant is shown when there are several."""
    links = "".join(
        f'<a href="#vq-at-{name}" data-section="{name}">{words}</a>'
        for name, words in (*SHORT.items(), ("blame", "Blame"))
    )
    several = ""
    if len(capture.sides) > 2:
        chosen = settled(capture, look).variant
        buttons = "".join(
            f'<button type="button" class="vq-pick" data-act="variant" data-at="{index}"'
            f' aria-pressed="{str(index == chosen).lower()}">'
            f'<i class="vq-swatch" style="background:{variant_colour(index)}"></i>'
            f"{escape(side.label)}</button>"
            for index, side in enumerate(capture.sides[1:], start=1)
        )
        several = (
            '<div class="vq-picks vq-variants" role="group" aria-label="Model beside FP16">'
            f"{buttons}</div>"
        )
    return (
        '<nav class="vq-inspect-nav" aria-label="Parts of this recording">'
        f'<div class="vq-anchors">{links}</div>{several}'
        '<button type="button" hidden data-act="narrow" data-value="false"></button></nav>'
    )


SHORT = {name: name.capitalize() for name, _ in SECTIONS}


def summary(capture: Capture) -> str:
    """Returns one line about the capture on display.

    Raises:
        UserError: a record is missing or damaged.
    """
    labels = " · ".join(escape(side.label) for side in capture.sides)
    count = len(capture.reference.activity.layers)
    seconds = digits(capture.seconds, "s")
    how = "Counted while the pictures were drawn; percentiles are read from bins 12.5 % wide."
    return (
        f'<p class="vq-muted" role="status" data-shown-run="{escape(capture.run)}">{labels}:'
        f" {count} layers at {capture.steps} steps, recorded in {seconds} {chip('measured', how)}."
        f" The pictures are the same as without recording.{_cost(capture)}</p>"
    )


def _cost(capture: Capture) -> str:
    """How much longer drawing took with the recorder, when the job has told."""
    part = capture.reference.part
    seconds, plain = part.get("seconds"), part.get("plain_seconds")
    if not seconds or not plain:
        return ""
    how = "The time without it: some steps were made once more with nothing recorded."
    times = digits(max(float(seconds) / float(plain), 1.0))
    return f" Drawing took {times} times as long as without {chip('estimated', how)}."


def _heading(name: str, title: str) -> str:
    return f'<section class="vq-part" id="vq-at-{name}"><h2 tabindex="-1">{escape(title)}</h2>'
