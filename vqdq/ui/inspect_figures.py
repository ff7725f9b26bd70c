"""A figure on the page and as a file: drawn once for what it shows, saved when someone asks.

A plot names the fields of `Look` that it reads. They are its key, so a click that concerns another
plot costs nothing; and they name its file, which never holds a word of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vqdq.durable import write_bytes
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.ui.inspection import Capture
from vqdq.ui.look import Look
from vqdq.ui.wording import escape
from vqdq.views.style import DARK, LIGHT, PAGE, PEN, Style, View

FORMATS = ("png", "svg", "csv")
KEPT = 64
"""Figures of one capture that stay drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One figure of the page.

    Attributes:
        name: unique; begins the name of its file. `title`: for people who cannot see it.
        draw: from a capture and a settled look; None when there is nothing to draw.
        reads: the fields of `Look` that `draw` depends on; the others hold their defaults.
    """

    name: str
    title: str
    draw: Callable[[Capture, Look, Style], View | None]
    reads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A figure as markup, its sentence, and where its first axes are (`View.frame`)."""

    svg: str
    caption: str
    frame: tuple[float, float, float, float]


def drawn(capture: Capture, plot: Plot, look: Look, *, narrow: bool) -> Drawn | None:
    """Returns the figure for the page; None when there is nothing to draw.

    Raises:
        UserError: a record is missing or damaged, or a filter matches nothing.
    """
    known = _read(plot, look)
    key = (plot.name, known, narrow)
    if key not in capture.figures:
        view = _view(capture, plot, known, PAGE.phone() if narrow else PAGE)
        with PEN:
            svg = "" if view is None else view.svg()
        while len(capture.figures) >= KEPT:
            capture.figures.pop(next(iter(capture.figures)), None)
        capture.figures[key] = (
            None if view is None else Drawn(svg=svg, caption=view.caption, frame=view.frame)
        )
    return capture.figures[key]


def figure(
    capture: Capture,
    plot: Plot,
    look: Look,
    *,
    narrow: bool,
    over: str = "",
    below: str = "",
    heading: str = "",
) -> str:
    """Returns a figure with its sentence and its files; "" when there is nothing to draw.

    Args:
        over: markup laid over the figure; `below`: under it; `heading`: above it.
    """
    found = drawn(capture, plot, look, narrow=narrow)
    if found is None:
        return ""
    files = "".join(
        f'<button type="button" class="vq-file" data-act="save" data-figure="{plot.name}"'
        f' data-as="{kind}" aria-label="{escape(plot.title)} as {kind.upper()}">'
        f"{kind.upper()}</button>"
        for kind in FORMATS
    )
    above = f"<h3>{escape(heading)}</h3>" if heading else ""
    return (
        f'{above}<figure class="vq-figure" data-narrow="{str(narrow).lower()}">'
        f'<div class="vq-figure-body">{found.svg}{over}</div>{below}'
        f"<figcaption>{escape(found.caption)}</figcaption>"
        f'<div class="vq-files"><span>Save as</span>{files}</div></figure>'
    )


def save(capture: Capture, plot: Plot, look: Look, kind: str, *, dark: bool) -> Path:
    """Returns the path of the figure as a file in the run's folder, after writing it.

    Args:
        kind: one of `FORMATS`; a picture has the colours of the page's mode.

    Raises:
        UserError: no such format, nothing to draw, or a full disk.
    """
    if kind not in FORMATS:
        raise UserError(f'"{kind[:20]}" is no format.', where="figure", remedy="Use PNG or SVG.")
    view = _view(capture, plot, _read(plot, look), DARK if dark else LIGHT)
    if view is None:
        raise UserError("there is nothing to draw.", where=plot.title, remedy="Record it first.")
    with PEN:
        content = view.content(kind)
    path = capture.folder / "figures" / f"{file_name(capture, plot, look)}.{kind}"
    with disk_faults(path):
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, content)
    return path


def file_name(capture: Capture, plot: Plot, look: Look) -> str:
    """Returns what a figure's file is called: the plot and what it shows, free of the prompt."""
    parts = [plot.name]
    for field in plot.reads:
        value = getattr(look, field)
        if field == "variant":
            side = capture.variant(look)
            parts.append(side.label if side is not None else "FP16")
        elif field == "step":
            parts.append(f"step-{value + 1}")
        elif field == "word":
            parts.append(f"word-{value + 1}")
        elif value != getattr(Look(), field):
            parts.append(field if isinstance(value, bool) else str(value))
    clean = (re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-.") for part in parts)
    return "_".join(part for part in clean if part)[:150]


def _read(plot: Plot, look: Look) -> Look:
    return replace(Look(), **{field: getattr(look, field) for field in plot.reads})


def _view(capture: Capture, plot: Plot, look: Look, style: Style) -> View | None:
    if "variant" in plot.reads:
        style = style.showing(look.variant)
    with PEN:
        return plot.draw(capture, look, style)


def picks(
    act: str, known: tuple[tuple[str, str, str], ...], on: str, label: str, *, off: str = ""
) -> str:
    """Returns a row of buttons of which one is pressed: (value, words, tooltip) each.

    Args:
        act: what a click does; `off`: why none of them can be pressed, "" when they can.
    """
    state = f' disabled title="{escape(off)}"' if off else ""
    buttons = "".join(
        f'<button type="button" class="vq-pick" data-act="{act}" data-value="{escape(name)}"'
        f"{state or _tooltip(tip)}"
        f' aria-pressed="{str(name == on).lower()}">{escape(words)}</button>'
        for name, words, tip in known
    )
    return f'<div class="vq-picks" role="group" aria-label="{escape(label)}">{buttons}</div>'


def _tooltip(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""
