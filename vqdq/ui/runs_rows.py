"""One run of the history as a row, and what stands around the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from vqdq.jobs import arithmetic
from vqdq.jobs.history import Usage
from vqdq.jobs.requests import CompressRequest, GenerateRequest, GridRequest, PlanRequest
from vqdq.jobs.run import RunRecord
from vqdq.quantities import duration, size
from vqdq.report.bundle import REPORTED
from vqdq.ui import header
from vqdq.ui.desk import as_fault
from vqdq.ui.runs_reveal import opener_command
from vqdq.ui.wording import count, decibels, escape, file_url, moment, shorten

EVENTS = 12
KIND_WORDS = {
    "compress": "Compress",
    "plan": "Plan",
    "compare": "Compare",
    "generate": "Draw",
    "inspect": "Inspect",
    "blame": "Blame",
    "grid": "Grid",
    "blind": "Blind test",
}
TABS = {"plan": "compress", "generate": "runs", "blame": "inspect"}
"""The tab that shows a kind of run, where it has another name."""
EMPTY = (
    '<div class="vq-history-empty"><h3>Nothing has run yet</h3><p class="vq-muted">Every'
    " compression and every comparison is kept here with its settings and pictures, also when"
    ' the program was restarted.</p><button type="button" class="vq-button" data-act="start">'
    "Compress your first model</button></div>"
)


def link(run: RunRecord) -> str:
    """Returns the part of an address that opens a run: "?tab=compare&run=…"."""
    return f"?tab={TABS.get(run.kind, run.kind)}&run={run.id}"


def nothing_found(words: str) -> str:
    """Returns what stands in the place of rows when a search finds none."""
    what = (
        f"Nothing is called “{escape(shorten(words, 60))}”." if words else "Nothing of this kind."
    )
    return (
        f'<div class="vq-history-empty"><h3>{what}</h3><p class="vq-muted">A search looks'
        " through prompts, models, names, recipes and seeds; every word must be found.</p></div>"
    )


def chosen_bar() -> str:
    """Returns the line that appears when runs are chosen; the script counts them."""
    return (
        '<div class="vq-chosen"><label><input type="checkbox" data-pick-all> All on this page'
        '</label><button type="button" class="vq-button vq-button-small" data-confirm="delete-many"'
        " data-delete-chosen hidden>Delete</button></div>"
    )


def pages(page: int, length: int, total: int) -> str:
    """Returns the way to earlier and later runs; nothing when one page holds all."""
    if total <= length:
        return f'<p class="vq-pages vq-muted">{count(total, "run")}</p>'

    def button(to: int, words: str, there: bool) -> str:
        off = "" if there else " disabled"
        return (
            f'<button type="button" class="vq-button vq-button-small" data-act="page"'
            f' data-page="{to}"{off}>{words}</button>'
        )

    first, last = page * length + 1, min(total, (page + 1) * length)
    return (
        f'<div class="vq-pages">{button(page - 1, "Newer", page > 0)}'
        f'<span class="vq-muted">{first}–{last} of {total:,}</span>'
        f"{button(page + 1, 'Older', last < total)}</div>"
    )


def usage(found: Usage) -> str:
    """Returns what the workspace takes on the disk, in words and as one bar."""
    if not found.counted:
        return '<p class="vq-disk vq-muted">Counting bytes</p>'
    parts = [("models", sum(found.models.values()))]
    parts += [(KIND_WORDS.get(kind, kind).lower(), n) for kind, n in found.by_kind().items()]
    parts.append(("index and logs", found.other))
    shown = [(name, n) for name, n in parts if n]
    bar = "".join(f'<i style="flex-grow:{n}"></i>' for _, n in shown)
    words = " · ".join(f"{escape(name)} {size(n)}" for name, n in shown)
    return (
        f'<div class="vq-disk"><p><b>{size(found.total)}</b> on the disk'
        f' <span class="vq-muted">· {size(found.free)} free</span></p>'
        f'<div class="vq-disk-bar" aria-hidden="true">{bar}</div>'
        f'<p class="vq-muted">{words}</p></div>'
    )


def row(run: RunRecord, bytes_: int | None) -> str:
    """Returns the row of a run; `bytes_` is what its folder takes, None before it was counted."""
    identity, title = escape(run.id), escape(shorten(run.title, 140))
    state = "stopping" if run.cancelling else run.state
    figure, note = _figure(run)
    taken = f" · {size(bytes_)}" if bytes_ is not None else ""
    return (
        f'<article class="vq-run" data-run-row="{identity}">'
        f'<label class="vq-run-pick"><input type="checkbox" data-pick="{identity}"'
        f' data-bytes="{bytes_ or 0}" aria-label="Choose {title}"></label>'
        f'<div class="vq-run-pictures" aria-hidden="true">{_pictures(run)}</div>'
        f'<div class="vq-run-title"><span class="vq-kind">{KIND_WORDS.get(run.kind, run.kind)}'
        f'</span> <a class="vq-run-name" href="{escape(link(run))}" data-act="open"'
        f' data-run="{identity}" data-kind="{escape(run.kind)}">{title}</a>'
        f"<small>{escape(note)}</small></div>"
        f'<span class="vq-state vq-state-{escape(run.state)}">{escape(state.capitalize())}</span>'
        f'<div class="vq-run-figure">{escape(figure)}<small>{moment(run.created)}{taken}</small>'
        f'</div><div class="vq-actions">{_actions(run, bytes_)}</div>'
        f'<details><summary>Details</summary><div class="vq-actions">{_more(run)}</div>'
        f"<pre>{escape(_details(run))}</pre></details></article>"
    )


def drawn(run: RunRecord) -> str:
    """Returns one picture with what it was drawn from; it has no tab of its own."""
    request, result = cast(GenerateRequest, run.request), run.result or {}
    if not result.get("image"):
        return ""
    return (
        f'<figure class="vq-drawn" data-shown-run="{escape(run.id)}">'
        f'<img src="{escape(file_url(run.folder / result["image"]))}"'
        f' alt="{escape(request.prompt)}"><figcaption><h3>{escape(shorten(run.title, 140))}</h3>'
        f'<p class="vq-muted">{escape(request.model)} · {request.steps} steps · guidance'
        f" {request.guidance:g} · {duration(result.get('seconds'))}</p></figcaption></figure>"
    )


def _button(run: RunRecord, act: str, words: str, extra: str = "", data: str = "") -> str:
    return (
        f'<button type="button" class="vq-button vq-button-small {extra}" data-act="{act}"'
        f' data-run="{escape(run.id)}" data-kind="{escape(run.kind)}"{data}>{words}</button>'
    )


def _actions(run: RunRecord, bytes_: int | None) -> str:
    made: list[str] = []
    if run.state in ("queued", "running"):
        made.append(_button(run, "cancel", "Cancel"))
    if run.resumable:
        words = "Resume" if run.kind in ("compress", "plan", "grid") else "Run again"
        made.append(_button(run, "resume", words))
    if run.state != "running":
        taken = f" {size(bytes_)}" if bytes_ else ""
        made.append(
            f'<button type="button" class="vq-button vq-button-small vq-button-quiet"'
            f' data-confirm="delete" data-sure="Delete{taken} for good?"'
            f' data-run="{escape(run.id)}" title="{_fate(run)}">Delete</button>'
        )
    return "".join(made)


def _fate(run: RunRecord) -> str:
    if run.kind == "compress" and run.state == "done":
        return "Deletes this record; the compressed model stays."
    if run.kind == "blind":
        return "Deletes the sealed pictures; votes are never deleted."
    return "Deletes this run's folder with everything in it."


def _more(run: RunRecord) -> str:
    """What is wanted now and then: a name, a link, a report, the folder."""
    quiet = "vq-button-quiet"
    made = [
        f'<button type="button" class="vq-button vq-button-small" data-rename="{escape(run.id)}"'
        f' data-now="{escape(run.name)}">Rename</button>',
        f'<button type="button" class="vq-button vq-button-small {quiet}"'
        f' data-copy-link="{escape(link(run))}">Copy link</button>',
    ]
    if run.state == "done" and run.kind in REPORTED:
        made.append(_report(run, quiet))
    if opener_command() is not None:
        made.append(_button(run, "reveal", "Show in folder", quiet))
    made.append(
        f'<button type="button" class="vq-button vq-button-small {quiet}"'
        f' data-copy="{escape(_folder(run))}">Copy path</button>'
    )
    return "".join(made)


def _report(run: RunRecord, quiet: str) -> str:
    """The button that writes a report or, once it is written, the ways to its files."""
    if not (run.folder / f"{run.id}.html").is_file():
        return _button(run, "report", "Report", quiet)
    return "".join(
        f'<a class="vq-button vq-button-small {quiet}" data-report-of="{escape(run.id)}"'
        f' href="{escape(file_url(run.folder / f"{run.id}.{kind}"))}"'
        f' download="{escape(run.id)}.{kind}">{words}</a>'
        for kind, words in (("html", "Report"), ("csv", "CSV"), ("json", "JSON"))
    )


def _folder(run: RunRecord) -> str:
    """The folder that a person looks for: the new model when there is one, else the run's own."""
    if isinstance(run.request, CompressRequest) and run.state == "done":
        return str((run.result or {}).get("output") or run.request.output)
    return str(run.folder)


def _pictures(run: RunRecord) -> str:
    """At most two small pictures; none of a blind test, which must not be seen before it."""
    result = run.result or {}
    if run.kind not in ("compare", "generate", "inspect"):
        return ""
    entries = [result, result.get("reference") or {}, *(result.get("variants") or [])[:1]]
    names = [entry["image"] for entry in entries if entry.get("image")]
    return "".join(
        f'<img src="{escape(file_url(run.folder / name))}" alt="" loading="lazy">'
        for name in names[:2]
    )


def _figure(run: RunRecord) -> tuple[str, str]:
    """The one number that matters and a line of explanation."""
    if run.state in ("queued", "running"):
        return (f"{100 * run.done / run.total:.0f} %" if run.total else "…"), header.position(run)
    if run.state in ("failed", "interrupted"):
        fault = as_fault(run.error)
        what = fault.what[:1].upper() + fault.what[1:]
        return "–", shorten(f"{what} {fault.remedy}", 160)
    values = run.result or {}
    took = duration(run.seconds) if run.seconds else ""
    if run.state != "done":
        return "–", took
    if run.kind == "compress":
        given = values.get("activations")
        note = f"{values.get('bits_per_weight', 0):.3g} bits per weight"
        note += f" · {given}" if given else ""
        return size(values.get("measured_bytes")), f"{note} · {took}"
    if run.kind == "plan":
        note = f"{values.get('bits_per_weight', 0):.3g} bits on average · {took}"
        return size(values.get("predicted_bytes")), note
    if run.kind == "compare":
        rows = values.get("variants") or [{}]
        psnr = decibels(float("inf") if rows[0].get("psnr") is None else rows[0]["psnr"])
        return f"PSNR {psnr}", f"{', '.join(str(row.get('label')) for row in rows)} · {took}"
    if isinstance(run.request, GridRequest):
        return count(run.request.cells, "picture"), took
    return "–", took


def _details(run: RunRecord) -> str:
    """Request and last events as text, for people who want to know exactly."""
    lines = [f"id       {run.id}", f"folder   {run.folder}"]
    request = run.request.to_json()
    if isinstance(run.request, CompressRequest | PlanRequest):
        request["recipe"] = run.request.recipe.name
    lines += [f"{key:8} {_plain(value)}" for key, value in request.items() if key != "kind"]
    lines += _arithmetic(run.result or {})
    if run.state not in ("queued", "running"):
        lines += _events(run.folder, run.finished)
    return "\n".join(lines)


def _plain(value: object) -> str:
    """A value of a request: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=256)
def _events(folder: Path, finished: float | None) -> list[str]:
    """The last events of a run that has ended, so they are read once."""
    del finished
    path = folder / "events.jsonl"
    if not path.is_file():
        return []
    told = path.read_text(encoding="utf-8", errors="replace").splitlines()[-EVENTS:]
    return ["events", *(f"  {_event(line)}" for line in told)]


def _arithmetic(result: Mapping[str, Any]) -> list[str]:
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
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict):
        return line
    known = cast(dict[str, Any], event)
    stamp = known.pop("time", None)
    when = [f"{datetime.fromtimestamp(stamp):%H:%M:%S}"] if isinstance(stamp, float) else []
    told = (f"{key}={value}" for key, value in known.items() if value not in (None, ""))
    return " ".join((*when, *told))
