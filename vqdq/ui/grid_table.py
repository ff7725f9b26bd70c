"""The grid as markup: a table whose cells fill in place, and one cell large.

The table of a page is sent once; afterwards only the finished cells travel (`arrivals`), and the
script puts each where it belongs: nothing scrolls back, nothing loses the focus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vqdq.jobs.grid_cells import Cell, Grid, label
from vqdq.jobs.grid_records import GridRow, lost
from vqdq.jobs.grid_sheet import distance, fixed
from vqdq.jobs.requests import GridRequest
from vqdq.jobs.requests.grid import Axis, Value
from vqdq.quantities import digits, duration, size
from vqdq.ui.wording import count, escape, file_url, shorten

ARRIVALS = 60  # rows that travel at once; far more than a moment brings
VERDICT = {
    "count": "number of objects",
    "shapes": "shapes",
    "colours": "colours",
    "sizes": "sizes",
    "relation": "position",
    "background": "background",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A grid on display.

    Attributes:
        run: its id; `folder`: where its PNG files are.
        at_work: it is queued or running: what is not there yet will come.
    """

    run: str
    request: GridRequest
    grid: Grid
    rows: Mapping[str, GridRow]
    folder: Path
    at_work: bool


def table(shown: Shown, page: int) -> str:
    """Returns the table of one page, in a frame that scrolls by itself, and the pages to choose."""
    columns, lines, _ = shown.grid.shape
    across, down, _ = shown.grid.sides
    corner = '<td class="vq-grid-corner"></td>' if down is not None else ""
    head = "".join(
        f'<th scope="col"><span>{_named(across, at)}</span></th>' for at in range(columns)
    )
    body: list[str] = []
    for line in range(lines):
        name = f'<th scope="row"><span>{_named(down, line)}</span></th>' if down else ""
        cells = "".join(_cell(shown, column, line, page) for column in range(columns))
        body.append(f"<tr>{name}{cells}</tr>")
    return (
        f'<div data-shown-run="{escape(shown.run)}">{_pages(shown, page)}'
        '<div class="vq-grid-frame" role="region" aria-label="Grid of pictures" tabindex="0">'
        f'<table class="vq-grid-table" style="--vq-columns:{columns}">'
        f'<caption class="vq-grid-caption">{escape(_caption(shown, page))}</caption>'
        f"<thead><tr>{corner}{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></div>"
    )


def arrivals(shown: Shown) -> str:
    """Returns the newest cells for the script to put in their places."""
    cells = {cell.picture.key: cell for cell in shown.grid.cells if cell.picture is not None}
    newest = [key for key in shown.rows if key in cells][-ARRIVALS:]
    content = {key: inside(shown, cells[key]) for key in newest}
    state = json.dumps({"run": shown.run, "cells": content}, ensure_ascii=False)
    return f'<div hidden data-grid-arrivals="{escape(state)}"></div>'


def inside(shown: Shown, cell: Cell) -> str:
    """Returns what lies in a cell: its picture, why there is none, or a place that waits."""
    picture = cell.picture
    if picture is None:
        return f'<div class="vq-cell vq-cell-empty"><p>{escape(cell.why)}</p></div>'
    row = shown.rows.get(picture.key)
    if row is None or (row["error"] is not None and shown.at_work):
        words = "waiting" if shown.at_work else "not drawn"
        ghost = "vq-skeleton" if shown.at_work else "vq-ghost"
        return (
            f'<div class="vq-cell"><span class="vq-cell-picture {ghost}"></span>'
            f'<span class="vq-cell-words">{words}</span></div>'
        )
    if row["error"] is not None:
        return (
            '<div class="vq-cell vq-cell-failed"><div class="vq-cell-picture"><p><b>Not drawn</b>'
            f" {escape(shorten(row['error']['what'], 120))}</p>"
            '<button type="button" class="vq-button vq-button-small" data-act="resume"'
            f' data-run="{escape(shown.run)}">Try again</button></div></div>'
        )
    wrong = lost(row, shown.rows, shown.grid)
    figures = " · ".join(filter(None, (distance(row), duration(row["seconds"]))))
    mark = f'<b class="vq-cell-lost">{escape(wrong)}</b>' if wrong else ""
    url = escape(file_url(shown.folder / row["image"]))
    spoken = ", ".join(filter(None, (*_settings(shown.grid, cell), figures, wrong)))
    return (
        f'<button type="button" class="vq-cell" data-act="cell" data-key="{escape(picture.key)}"'
        f' aria-label="{escape(spoken)}"><img class="vq-cell-picture" src="{url}" alt=""'
        f' decoding="sync" draggable="false"><span class="vq-cell-words">{escape(figures)}'
        f"{mark}</span></button>"
    )


def large(shown: Shown, key: str, variant: str = "") -> str:
    """Returns the dialog of one cell: the picture, the reference under a divider, and its facts.

    `variant`: the compressed model of the workspace that drew it, or "": where there is one, the
    Compare tab can draw the same cell.
    """
    cell = next((c for c in shown.grid.cells if c.picture and c.picture.key == key), None)
    row = shown.rows.get(key)
    if cell is None or row is None or not row["image"]:
        return ""
    title = " · ".join(_settings(shown.grid, cell)) or row["label"]
    mine = escape(file_url(shown.folder / row["image"]))
    alt = escape(row["prompt"])
    compare = pane = ""
    if row["reference"]:
        original = escape(file_url(shown.folder / row["reference"]))
        pane = (
            f'<img class="vq-duel-under" src="{original}" alt="Original: {alt}" draggable="false">'
            '<input type="range" class="vq-duel-split" min="0" max="100" value="50"'
            ' aria-label="Divider: the original on the left, this picture on the right">'
            '<span class="vq-divider" aria-hidden="true"></span>'
            '<span class="vq-tag vq-tag-a">Original</span>'
            f'<span class="vq-tag vq-tag-b">{escape(row["label"])}</span>'
        )
        compare = (
            '<button type="button" class="vq-button" data-duel aria-pressed="false">'
            "Slide over the original</button>"
        )
    if variant:
        compare += (
            f'<button type="button" class="vq-button" data-act="compare" data-key="{escape(key)}"'
            f' data-name="{escape(variant)}" data-cell-close>Open in Compare</button>'
        )
    return (
        f'<dialog class="vq-cell-large" data-key="{escape(key)}" aria-labelledby="vq-cell-title">'
        f'<div class="vq-cell-head"><h2 id="vq-cell-title">{escape(shorten(title, 140))}</h2>'
        '<button type="button" class="vq-button vq-button-small" data-cell-close>Close</button>'
        '</div><div class="vq-cell-body"><div class="vq-duel" data-on="false">'
        f'<img class="vq-duel-over" src="{mine}" alt="{escape(row["label"])}: {alt}"'
        f' draggable="false">{pane}</div><div class="vq-cell-facts">{_facts(shown, row)}'
        f'<div class="vq-actions">{compare}<button type="button" class="vq-button"'
        f' data-act="restore" data-key="{escape(key)}" data-cell-close>Restore these settings'
        "</button>"
        f'<a class="vq-link" href="{mine}" download="{escape(row["image"])}">Save the picture</a>'
        '</div><p class="vq-muted vq-small">Arrow keys go to the next cell.</p>'
        "</div></div></dialog>"
    )


def summary(shown: Shown) -> str:
    """Returns what became of a finished grid in one line."""
    rows = [row for row in shown.rows.values() if row["error"] is None]
    wrong = sum(lost(row, shown.rows, shown.grid) == "alignment lost" for row in rows)
    made = sum(drawer.compresses for drawer in shown.grid.drawers)
    facts = [
        count(len(rows), "picture"),
        f"{duration(sum(row['seconds'] for row in rows))} of drawing",
        f"{count(made, 'model')} made from the weights alone" if made else "",
        f"{count(wrong, 'picture')} lost alignment" if wrong else "",
        f"{count(len(shown.grid.empty), 'cell')} without a picture" if shown.grid.empty else "",
    ]
    return " · ".join(filter(None, facts))


def _facts(shown: Shown, row: GridRow) -> str:
    verdict = row["verdict"]
    wrong = [] if verdict is None else [VERDICT[name] for name in VERDICT if not verdict.get(name)]
    judged = row["verdict_reason"] or ""
    if verdict is not None:
        judged = "yes" if verdict["passed"] else f"no: {', '.join(wrong)}"
    far = "equal in every pixel" if row["psnr"] is None else f"{digits(row['psnr'])} dB"
    bits = f"{digits(row['bits_per_weight'])} bits a weight · {size(row['bytes'])}"
    facts = [
        ("Prompt", row["prompt"]),
        ("Model", row["label"]),
        ("Size", bits),
        ("Seed", str(row["seed"])),
        ("Steps", f"{row['steps']}, guidance {row['guidance']:g}"),
        ("PSNR", far if row["reference"] else "no original in this grid"),
        *([("SSIM", f"{row['ssim']:.4f}")] if row["ssim"] is not None else []),
        ("Shows what was asked", judged),
        ("Time", f"{duration(row['seconds'])}, {size(row['peak_memory_bytes'])} of memory"),
        *([("Activations", row["activations"])] if row["activations"] else []),
        ("Starting noise", row["initial_latent_sha256"][:12]),
    ]
    del shown
    return (
        "<dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in facts)
        + "</dl>"
    )


def _cell(shown: Shown, column: int, line: int, page: int) -> str:
    cell = shown.grid.at(column, line, page)
    key = cell.picture.key if cell.picture is not None else ""
    return f'<td data-key="{escape(key)}">{inside(shown, cell)}</td>'


def _settings(grid: Grid, cell: Cell) -> list[str]:
    return [
        shorten(label(side, side.values[at]), 80)
        for side, at in zip(grid.sides, cell.place, strict=True)
        if side is not None
    ]


def _named(side: Axis | None, at: int) -> str:
    return "" if side is None else escape(_short(side, side.values[at]))


def _short(side: Axis, value: Value) -> str:
    return shorten(label(side, value), 120)


def _caption(shown: Shown, page: int) -> str:
    side = shown.grid.sides[2]
    name = [] if side is None else [_short(side, side.values[page])]
    return " · ".join([*fixed(shown.request), *name])


def _pages(shown: Shown, page: int) -> str:
    side = shown.grid.sides[2]
    if side is None:
        return ""
    buttons = "".join(
        f'<button type="button" class="vq-pick" data-act="page" data-at="{at}"'
        f' aria-pressed="{str(at == page).lower()}">{escape(_short(side, value))}</button>'
        for at, value in enumerate(side.values)
    )
    return f'<div class="vq-picks vq-grid-pages" role="group" aria-label="Page">{buttons}</div>'
