"""Which capture is on display: its state while it is recorded, and those that came before."""

from __future__ import annotations

from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.run import RunRecord
from vqdq.ui import header
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.live import Session
from vqdq.ui.wording import escape, moment, shorten

EARLIER = 12


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the capture on display: the chosen one, else the newest."""
    if session.run("inspect"):
        try:
            return desk.workspace.run(session.run("inspect"))
        except UserError:
            pass  # it was deleted: show the newest instead
    runs = desk.runs("inspect", 20)
    return next((run for run in runs if run.state in ("queued", "running", "done")), None)


def status_html(desk: Desk, session: Session) -> str:
    """Returns the state of the capture on display: nothing yet, recording, stopped, or one line."""
    run = shown_run(desk, session)
    if run is None:
        return (
            '<div class="vq-inspect-empty"><h2>Look inside while a picture is drawn</h2>'
            "<p>Press <b>Record</b>. You will see where each word of the prompt is looked at, and"
            " what goes into any layer: which channels and places stand out, and what"
            f" compression changes.</p>{_SKETCH}</div>"
        )
    if run.state in ("queued", "running"):
        return header.progress(run, desk.ahead(run))
    if run.state == "done":
        if "inspect" not in session.opened:
            return ""
        from vqdq.ui import inspect_sections, inspection

        try:
            return inspect_sections.summary(inspection.of_run(run))
        except UserError as error:
            return header.fault(error.what, where=error.where, remedy=error.remedy)
    button = (
        '<div class="vq-actions"><button type="button" class="vq-button" data-act="resume"'
        f' data-run="{escape(run.id)}">Record again</button></div>'
    )
    if run.state == "cancelled":
        return f'<div class="vq-progress"><p>Stopped before it was done.</p>{button}</div>'
    fault = as_fault(run.error)
    return header.fault(
        fault.what, where=fault.where, remedy=fault.remedy, title="Not recorded", actions=button
    )


def earlier_html(desk: Desk, session: Session) -> str:
    """Returns the finished captures to open, newest first; "" when there are none."""
    runs = [run for run in desk.runs("inspect", 40) if run.state == "done"][:EARLIER]
    if not runs:
        return ""
    shown = shown_run(desk, session)
    cards: list[str] = []
    for run in runs:
        request = run.request
        assert isinstance(request, InspectRequest)
        on = str(shown is not None and shown.id == run.id).lower()
        beside = escape(", ".join(request.variants) or "FP16 only")
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-run="{escape(run.id)}"'
            f' aria-pressed="{on}"><span>{escape(shorten(request.prompt, 64))}</span>'
            f"<small>{beside} · seed {request.seed} · {moment(run.created)}</small></button>"
        )
    return f'<h2>Earlier recordings</h2><div class="vq-cards">{"".join(cards)}</div>'


_SKETCH = (
    '<svg class="vq-sketch" viewBox="0 0 480 120" aria-hidden="true">'
    + "".join(
        f'<rect x="{8 + 12 * at}" y="{104 - height}" width="10" height="{height}"/>'
        for at, height in enumerate(
            (22, 30, 18, 26, 96, 24, 20, 34, 28, 16, 30, 24, 62, 20, 26, 18)
        )
    )
    + "".join(
        f'<rect x="{224 + 24 * (at % 4)}" y="{8 + 24 * (at // 4)}" width="23" height="23"'
        f' opacity="{opacity}"/>'
        for at, opacity in enumerate(
            (0.1, 0.2, 0.2, 0.1, 0.2, 0.6, 0.9, 0.3, 0.2, 0.8, 1, 0.4, 0.1, 0.3, 0.4, 0.2)
        )
    )
    + "".join(
        f'<rect x="{348 + 14 * at}" y="{104 - height}" width="13" height="{height}"/>'
        for at, height in enumerate((10, 26, 52, 80, 60, 30, 14, 24))
    )
    + "</svg>"
)
