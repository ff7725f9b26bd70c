"""The Grid tab: one picture for each pair of settings, its cost before, its cells as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs import grid_sheet
from vqdq.jobs.grid_cost import Cost
from vqdq.jobs.requests import GridRequest
from vqdq.quantities import roughly, size
from vqdq.ui import grid_form, grid_state, grid_table, header
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.grid_form import GridForm
from vqdq.ui.grid_state import cost_of, shown, shown_run, submit
from vqdq.ui.grid_table import Shown
from vqdq.ui.live import ACTION, PRIVATE, Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.wording import chip, count, escape, file_url, moment, shorten

EARLIER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class GridLook:
    """What a person looks at in a grid.

    Attributes:
        page: of the third axis; `cell`: key of the picture that is shown large, or "".
        saved: file that was just made for saving, or "".
    """

    page: int = 0
    cell: str = ""
    saved: str = ""


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the regions and events of this tab."""
    with gr.Column(elem_classes=["vq-grid"]):
        form = grid_form.build(desk)
        with gr.Row(elem_classes=["vq-grid-go"]):
            told = html("", "vq-grid-cost")
            start = gr.Button("Draw", variant="primary", elem_id="vq-grid-start", min_width=160)
        fault = html("", "vq-grid-fault")
        status = html("", "vq-grid-status")
        tools = html("", "vq-grid-tools")
        pictures = html("", "vq-grid-table")
        coming = html("", "vq-grid-arrivals")
        cell = html("", "vq-grid-cell")
        earlier = html("", "vq-grid-earlier")

    def outlook(*values: Any) -> tuple[str, Any]:
        return _outlook(desk, form, values)

    for control in form.controls.values():
        control.change(outlook, form.inputs, [told, start], trigger_mode="always_last", **ACTION)
    for trigger in form.choice.triggers:
        trigger(outlook, form.inputs, [told, start], trigger_mode="always_last", **ACTION)
    sides = [form.controls[side] for side, _ in grid_form.SIDES]
    for side, _ in grid_form.SIDES:

        def turn(*values: Any, side: str = side) -> list[Any]:
            return form.turned(side, values)

        names = form.controls[f"{side}.names"]
        names.focus(form.offered, form.controls[side], names, **PRIVATE)
        form.controls[side].input(turn, sides, list(form.areas.values()), **ACTION)

    def begin(state: Session, *values: Any) -> tuple[Session, str]:
        try:
            run = submit(desk, form.request(values))
        except UserError as error:
            return state, header.fault(
                error.what, where=error.where, remedy=error.remedy, title="Not drawn"
            )
        return state.showing(grid=run).looking(GridLook()), ""

    def look(state: Session, event: gr.EventData) -> Session:
        data = clicked(event)
        now = replace(state.look(GridLook), saved="")
        match data.get("act"):
            case "page" if data.get("at", "").isdigit():
                return state.looking(replace(now, page=int(data["at"]), cell=""))
            case "cell":
                return state.looking(replace(now, cell=data.get("key", "")))
            case "resume":
                desk.workspace.resume(data.get("run", ""))
                return state
            case _:
                return state

    def restore(state: Session, event: gr.EventData) -> list[Any]:
        data = clicked(event)
        found = shown(desk, state)
        if data.get("act") != "restore" or found is None:
            return [gr.skip()] * (1 + len(form.inputs))
        request = found.request
        if data.get("key"):
            request = _as_cell(found, data["key"])
        return [state, *form.filled(request), *form.written(request)]

    def save(state: Session, event: gr.EventData) -> tuple[Session, str]:
        return _saved(desk, state, clicked(event).get("act", ""))

    def enter(state: Session, *values: Any) -> tuple[Any, ...]:
        return state.entering("grid"), *outlook(*values)

    wires = [
        Wire(start.click, begin, [session, *form.inputs], [session, fault]),
        Wire(pictures.click, look, [session], [session]),
        Wire(cell.click, restore, [session], [session, *form.inputs]),
        Wire(tools.click, save, [session], [session, fault]),
        Wire(tab.select, enter, [session, *form.inputs], [session, told, start]),
    ]
    regions = [
        Region("grid status", status, markup(lambda s: status_html(desk, s))),
        Region("grid tools", tools, markup(lambda s: _tools(desk, s))),
        Region("grid table", pictures, lambda s: _table(desk, s)),
        Region("grid arrivals", coming, markup(lambda s: _arrivals(desk, s))),
        Region("grid cell", cell, markup(lambda s: _large(desk, s))),
        Region("grid models", form.controls["variant"], lambda _: _variants(desk)),
        Region("grid earlier", earlier, markup(lambda s: _earlier(desk, s))),
    ]
    return Part(regions=regions, wires=wires, doors=[status, cell, earlier])


def status_html(desk: Desk, session: Session) -> str:
    """Returns the state of the grid on display: nothing yet, drawing, stopped, or one line."""
    run = shown_run(desk, session)
    if run is None:
        return (
            '<div class="vq-grid-none"><h2>Many pictures, two settings at a time</h2><p'
            ' class="vq-muted">Choose what changes along the columns and the rows. Everything else'
            " stays the same in every cell, the starting noise too.</p></div>"
        )
    found = shown(desk, session)
    if run.state in ("queued", "running"):
        return header.progress(run, desk.ahead(run)) + _left(desk, found)
    drawn = 0 if found is None else sum(row["error"] is None for row in found.rows.values())
    total = 0 if found is None else len(found.grid.pictures)
    words = "Go on" if run.state != "failed" else "Try again"
    again = (
        f'<button type="button" class="vq-button" data-act="resume" data-run="{escape(run.id)}">'
        f"{words}</button>"
    )
    if run.state == "done" and found is not None:
        measured = chip("measured", "Each picture's own time, and its pixels against the original.")
        return f'<p class="vq-grid-done" role="status">{grid_table.summary(found)} {measured}</p>'
    if run.state == "cancelled":
        return (
            f'<div class="vq-progress"><p>Stopped after {drawn} of {count(total, "picture")}.'
            f" They are kept.</p><div class='vq-actions'>{again}</div></div>"
        )
    fault = as_fault(run.error)
    kept = f"{drawn} of {count(total, 'picture')} are here."
    return header.fault(
        fault.what,
        where=fault.where,
        remedy=fault.remedy,
        title=f"Not complete: {kept}",
        actions=again,
    )


def _outlook(desk: Desk, form: GridForm, values: Sequence[Any]) -> tuple[str, Any]:
    """The line that tells the cost, and the button that says how many."""
    try:
        found = cost_of(desk, form.request(values))
    except UserError as error:
        words = escape(shorten(str(error), 300))
        return f'<p class="vq-grid-wrong">{words}</p>', gr.update(value="Draw", interactive=False)
    button = f"Draw {count(found.pictures, 'picture')} · about {roughly(found.seconds)}"
    return cost_html(found), gr.update(value=button, interactive=True)


def cost_html(found: Cost) -> str:
    """Returns the cost in one or two lines."""
    guess = chip("estimated", found.source)
    head = [
        *([count(found.cells, "cell")] if found.cells != found.pictures else []),
        count(found.pictures, "picture"),
        f"about {roughly(found.draw_seconds)} of drawing",
    ]
    if found.compressions:
        head.append(
            f"{count(found.compressions, 'model')} to make first, about"
            f" {roughly(found.make_seconds)}"
        )
    head.append(f"{size(found.disk_bytes)} of disk")
    notes: list[str] = []
    if found.compressions:
        notes.append("Models are made from the weights alone, without calibration.")
    if found.empty:
        notes.append(f"{count(found.empty, 'cell')} without a picture: the grid says why.")
    notes += [f"{name} does not fit: {why}" for name, why in found.problems.items()]
    more = "".join(f'<p class="vq-muted vq-small">{escape(shorten(n, 240))}</p>' for n in notes)
    return f'<p aria-live="polite">{escape(" · ".join(head))} {guess}</p>{more}'


def _left(desk: Desk, found: Shown | None) -> str:
    """How much is left of the whole grid: the bar above is about the present stage alone."""
    if found is None:
        return ""
    done = [key for key, row in found.rows.items() if row["error"] is None]
    total = len(found.grid.pictures)
    own = [row["seconds"] / row["steps"] for row in found.rows.values() if row["seconds"] > 0]
    try:
        left = cost_of(desk, found.request, done)
    except UserError:
        return ""
    seconds = left.seconds
    if len(own) >= 3:
        pace = sorted(own)[len(own) // 2]
        steps = sum(p.steps for p in found.grid.pictures if p.key not in done)
        seconds = left.make_seconds + pace * steps
    eta = f" · about {roughly(seconds)} left" if len(done) < total else ""
    return (
        f'<p class="vq-muted vq-small vq-grid-left">{len(done)} of {count(total, "picture")}'
        f"{eta}</p>"
    )


def _table(desk: Desk, session: Session) -> tuple[str, Any]:
    found = shown(desk, session)
    if found is None or "grid" not in session.opened:
        return "", ""
    page = min(session.look(GridLook).page, found.grid.shape[2] - 1)
    return f"{found.run} {page} {found.at_work}", grid_table.table(found, page)


def _arrivals(desk: Desk, session: Session) -> str:
    found = shown(desk, session)
    return "" if found is None or "grid" not in session.opened else grid_table.arrivals(found)


def _large(desk: Desk, session: Session) -> str:
    key = session.look(GridLook).cell
    found = shown(desk, session) if key else None
    if found is None:
        return ""
    return grid_table.large(found, key, grid_state.variant_of(desk, found, key))


def _tools(desk: Desk, session: Session) -> str:
    found = shown(desk, session)
    if found is None or not any(row["image"] for row in found.rows.values()):
        return ""
    saved = session.look(GridLook).saved
    link = ""
    if saved:
        path = found.folder / saved
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        link = (
            f'<a class="vq-link" href="{escape(file_url(path))}?{stamp}" download="{escape(saved)}"'
            f' data-save-now="{stamp}">{escape(saved)}</a>'
        )
    return (
        '<div class="vq-actions"><button type="button" class="vq-button vq-button-small"'
        ' data-act="sheet">Save this page as PNG</button><button type="button" class="vq-button'
        f' vq-button-small" data-act="csv">Save all numbers as CSV</button>{link}</div>'
    )


def _saved(desk: Desk, state: Session, act: str) -> tuple[Session, str]:
    """The session after a file was made for saving."""
    found = shown(desk, state)
    if found is None or act not in ("sheet", "csv"):
        return state, ""
    look = state.look(GridLook)
    page = min(look.page, found.grid.shape[2] - 1)
    name = f"grid-{page + 1}.png" if act == "sheet" else "grid.csv"
    path = found.folder / name
    try:
        if act == "sheet":
            grid_sheet.write_sheet(path, found.request, found.grid, found.rows, page)
        else:
            grid_sheet.write_table(path, found.request, found.grid, found.rows)
    except UserError as error:
        panel = header.fault(error.what, where=error.where, remedy=error.remedy, title="Not saved")
        return state, panel
    return state.looking(replace(look, saved=name)), ""


def _as_cell(found: Shown, key: str) -> GridRequest:
    """The request with the settings of one cell where no axis changes them."""
    picture = grid_state.picture_of(found, key)
    if picture is None:
        return found.request
    return replace(
        found.request,
        prompt=picture.prompt,
        seed=picture.seed,
        steps=picture.steps,
        guidance=picture.guidance,
    )


def _variants(desk: Desk) -> tuple[str, Any]:
    known = [("Original", ""), *desk.variants()]
    return repr(known), gr.update(choices=known)


def _earlier(desk: Desk, session: Session) -> str:
    runs = desk.runs("grid", EARLIER)
    if len(runs) < 2:
        return ""
    now = shown_run(desk, session)
    cards: list[str] = []
    for run in runs:
        on = str(now is not None and now.id == run.id).lower()
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-kind="grid"'
            f' data-run="{escape(run.id)}" aria-pressed="{on}">'
            f"<span>{escape(shorten(run.request.title, 64))}</span>"
            f"<small>{escape(run.state)} · {moment(run.created)}</small></button>"
        )
    return f'<h2>Earlier grids</h2><div class="vq-cards">{"".join(cards)}</div>'
