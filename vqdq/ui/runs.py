"""The Runs tab: everything that was done in this workspace, newest first, also after a restart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr

from vqdq.jobs import arithmetic
from vqdq.jobs.requests import CompressRequest, PlanRequest
from vqdq.jobs.run import RunRecord
from vqdq.ui import comparison, frontier, header
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.live import Part, Region, Session, html, markup
from vqdq.ui.wording import decibels, duration, escape, moment, shorten, size

LIMIT = 60
EVENTS = 12
KINDS = {
    "compress": "Compress",
    "plan": "Plan",
    "compare": "Compare",
    "generate": "Draw",
    "inspect": "Inspect",
    "blame": "Blame",
    "grid": "Grid",
    "blind": "Blind test",
}
OPENABLE = ("compress", "plan", "compare", "inspect", "blame", "grid", "blind")


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the history, whose clicks the page answers, and the frontier."""
    del tab
    plotted = frontier.build(desk, session)
    history = html("", "vq-history")
    region = Region("history", history, markup(lambda s: history_html(desk, s)))
    return Part(regions=[region], doors=[history]) + plotted


def history_html(desk: Desk, session: Session) -> str:
    """Returns the table of runs, or what will be here when there is none."""
    del session
    runs = desk.workspace.runs(limit=LIMIT)
    if not runs:
        return (
            '<div class="vq-history-empty"><h2>Nothing has run yet</h2><p'
            ' class="vq-muted">Every compression and'
            " every comparison is kept here with its settings and pictures, also when"
            " the program was"
            ' restarted.</p><button type="button" class="vq-button"'
            ' data-act="start">Compress your first model'
            "</button></div>"
        )
    return f'<div class="vq-history"><h2>Runs</h2><div>{"".join(map(_row, runs))}</div></div>'


def reveal(folder: Path) -> bool:
    """Returns whether the system's file manager was asked to show `folder`."""
    opener = opener_command()
    if opener is None or not folder.is_dir():
        return False
    subprocess.Popen(
        [opener, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return True


def opener_command() -> str | None:
    """Returns the program that shows a folder on this computer's desktop, or None without a
    desktop.
    """
    if sys.platform == "darwin":
        return shutil.which("open")
    if sys.platform == "win32":
        return shutil.which("explorer")
    has_desktop = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return shutil.which("xdg-open") if has_desktop else None


def _row(run: RunRecord) -> str:
    identity = escape(run.id)
    state = "stopping" if run.cancelling else run.state
    figure, note = _figure(run)
    return (
        f'<article class="vq-run" data-run-row="{identity}">'
        f'<span class="vq-state vq-state-{escape(run.state)}">{escape(state.capitalize())}</span>'
        f'<div class="vq-run-title">{KINDS.get(run.kind, run.kind)}:'
        f" {escape(shorten(run.request.title, 140))}"
        f"<small>{escape(note)}</small></div>"
        f'<div class="vq-run-figure">{escape(figure)}<small>{moment(run.created)}</small></div>'
        f'<div class="vq-actions">{_actions(run)}</div>'
        f"<details><summary>Details</summary><pre>{escape(_details(run))}</pre></details></article>"
    )


def _actions(run: RunRecord) -> str:
    identity = escape(run.id)

    def button(act: str, words: str, extra: str = "") -> str:
        return (
            f'<button type="button" class="vq-button vq-button-small {extra}" data-act="{act}"'
            f' data-run="{identity}" data-kind="{escape(run.kind)}">{words}</button>'
        )

    made: list[str] = []
    if run.state in ("queued", "running"):
        made.append(button("cancel", "Cancel"))
    if run.state == "done" and run.kind in OPENABLE:
        made.append(button("open", "Open"))
    if run.resumable:
        made.append(button("resume", "Resume" if run.kind in ("compress", "plan") else "Run again"))
    folder = _folder(run)
    if opener_command() is not None:
        made.append(button("reveal", "Show folder", "vq-button-quiet"))
    made.append(
        f'<button type="button" class="vq-button vq-button-small vq-button-quiet"'
        f' data-copy="{escape(folder)}">Copy path</button>'
    )
    if run.state != "running":
        made.append(
            f'<button type="button" class="vq-button vq-button-small vq-button-quiet"'
            f' data-confirm="delete"'
            f' data-sure="Delete for good?" data-run="{identity}">Delete</button>'
        )
    return "".join(made)


def _folder(run: RunRecord) -> str:
    """The folder that a person looks for: the new model when there is one, else the run's own."""
    if isinstance(run.request, CompressRequest) and run.state == "done":
        return str((run.result or {}).get("output") or run.request.output)
    return str(run.folder)


def _figure(run: RunRecord) -> tuple[str, str]:
    """The one number that matters and a line of explanation."""
    if run.state in ("queued", "running"):
        return (f"{100 * run.done / run.total:.0f} %" if run.total else "…"), header.position(run)
    if run.state in ("failed", "interrupted"):
        fault = as_fault(run.error)
        return "–", shorten(f"{fault.what} {fault.remedy}", 160)
    values = run.result or {}
    if run.kind == "compress" and run.state == "done":
        given = values.get("activations")
        note = f"{values.get('bits_per_weight', 0):.3g} bits per weight"
        note += f" · {given}" if given else ""
        return size(values.get("measured_bytes")), f"{note} · {duration(run.seconds)}"
    if run.kind == "plan" and run.state == "done":
        note = f"{values.get('bits_per_weight', 0):.3g} bits on average · {duration(run.seconds)}"
        return size(values.get("predicted_bytes")), note
    if run.kind == "compare" and run.state == "done":
        rows = values.get("variants", [])
        psnr = decibels(comparison.of_run(run).variants[0].psnr)
        return psnr, f"{', '.join(str(row.get('label')) for row in rows)} · {duration(run.seconds)}"
    return "–", duration(run.seconds) if run.seconds else ""


def _details(run: RunRecord) -> str:
    """Request and last events as text, for people who want to know exactly."""
    lines = [f"id       {run.id}", f"folder   {run.folder}"]
    request = run.request.to_json()
    if isinstance(run.request, CompressRequest | PlanRequest):
        request["recipe"] = run.request.recipe.name
    lines += [f"{key:8} {value}" for key, value in request.items() if key != "kind"]
    lines += _arithmetic(run.result or {})
    path = run.folder / "events.jsonl"
    if run.state not in ("queued", "running") and path.is_file():
        lines.append("events")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[-EVENTS:]:
            lines.append(f"  {_event(line)}")
    return "\n".join(lines)


def _arithmetic(result: dict[str, Any]) -> list[str]:
    """How the layers are computed: of the new model, or of each that drew."""
    rows = [result, *result.get("variants", ())]
    return [
        f"layers   {row.get('label', 'new model')}: {arithmetic.in_words(row['arithmetic'])}"
        for row in rows
        if row.get("arithmetic")
    ]


def _event(line: str) -> str:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return line
    if not isinstance(event, dict):
        return line
    return " ".join(f"{key}={value}" for key, value in event.items() if value not in (None, ""))
