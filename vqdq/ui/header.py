"""The line above every tab: what is loaded, on what it runs, and the job that is running now."""

from __future__ import annotations

import os
from functools import cache

import psutil
import torch

from vqdq.jobs.requests import BlameRequest, CompressRequest, PlanRequest, Request
from vqdq.jobs.run import RunRecord
from vqdq.quantities import duration, size
from vqdq.ui.wording import count, escape, shorten, stage

VERBS = {
    "compress": "Compressing",
    "plan": "Planning",
    "generate": "Drawing",
    "compare": "Comparing",
    "inspect": "Recording",
    "blame": "Finding layers",
    "blind": "Drawing pairs",
    "grid": "Drawing a grid",
}
UNITS = {
    "encode": "layer",
    "decode": "layer",
    "record": "picture",
    "calibrate": "call",
    "ranges": "call",
    "sensitivity": "call",
    "distortion": "layer",
    "blame": "measurement",
    "repair": "measurement",
    "follow": "variant",
    "weights": "layer",
    "pairs": "picture",
    "cells": "picture",
}
"""What is counted in a stage; a step where nothing else is said."""
_ICON = (
    '<svg viewBox="0 0 20 20" fill="none" stroke="currentColor" stroke-width="1.6"'
    ' stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">{}</svg>'
)
CROSS = _ICON.format('<path d="M5 5l10 10M15 5L5 15"/>')
_SUN = _ICON.format(
    '<circle cx="10" cy="10" r="3.5"/><path d="M10 2v1.5M10 16.500V18M2 10h1.500M16.5 10H18'
    'M4.3 4.300l1.1 1.100M14.6 14.600l1.1 1.100M15.7 4.300l-1.1 1.100M5.4 14.600l-1.1 1.1"/>'
)
_MOON = _ICON.format('<path d="M16.5 12A7 7 0 0 1 8 3.500a7 7 0 1 0 8.5 8.500z"/>')
_QUESTION = _ICON.format(
    '<circle cx="10" cy="10" r="7.5"/><path d="M7.9 7.800a2.2 2.2 0 1 1 3.1'
    ' 2.100c-.7.4-1 .8-1 1.6"/>'
    '<path d="M10 14v.1"/>'
)
_DOWN = _ICON.format('<path d="M5 8l5 5 5-5"/>')
LOGO = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><path fill="currentColor" d="M15 3a13'
    ' 13 0 0 0 0 26z"/>'
    '<path fill="var(--vq-accent)" d="M17 3h4v2h4v4h2v4h2v6h-2v4h-2v4h-4v2h-4z"/></svg>'
)


@cache
def device() -> tuple[str, str]:
    """Returns the device and its memory in plain words: ("CPU · 2 cores", "24.0 GB")."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        return torch.cuda.get_device_name(0), size(memory)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU · {cores} cores", size(psutil.virtual_memory().total)


def identity(title: str, details: str, *, offline: bool = True) -> str:
    """Returns logo, model, device and the offline badge; `title` and `details` describe the
    model.
    """
    processor, memory = device()
    badge = (
        '<span class="vq-fact" title="Nothing leaves this computer: no look-ups, no telemetry.">'
        '<i class="vq-dot" aria-hidden="true"></i>offline</span>'
        if offline
        else ""
    )
    return (
        f'<div class="vq-bar"><h1 class="vq-brand">{LOGO}VQDQ</h1><div class="vq-facts">'
        f'<button type="button" class="vq-fact vq-model" data-act="model" aria-haspopup="dialog"'
        f' aria-controls="vq-model-panel" title="{escape(details)}">'
        f"<strong>{escape(title)}</strong>{_DOWN}</button>"
        f'<span class="vq-fact vq-fact-device">{escape(processor)}<span class="vq-fact-memory">'
        f" · {escape(memory)}</span></span>"
        f"{badge}</div></div>"
    )


def tools() -> str:
    """Returns the buttons for light or dark and for help."""
    return (
        '<div class="vq-tools"><button type="button" class="vq-icon" data-theme-toggle'
        ' aria-label="Light or dark">'
        f'<span class="vq-sun">{_SUN}</span><span class="vq-moon">{_MOON}</span></button>'
        f'<button type="button" class="vq-icon" data-help-open aria-label="Help and'
        f' keys">{_QUESTION}'
        "</button></div>"
    )


def pill(run: RunRecord | None, waiting: int = 0) -> str:
    """Returns the running job: what, k of n, time left, Cancel; empty but of the same size without
    one.

    Its `data-title` is what the window's title shows.
    """
    if run is None:
        return '<div class="vq-pill" data-on="false" data-title="VQDQ"></div>'
    share = 100 * run.done / run.total if run.total else 0
    verb = VERBS.get(run.kind, run.kind)
    title = f"{share:.0f}% · {verb} – VQDQ" if run.total else f"{verb} – VQDQ"
    if run.cancelling:
        verb, title = "Stopping", "Stopping – VQDQ"
    more = f" · {waiting} waiting" if waiting else ""
    cancel = (
        ""
        if run.cancelling
        else f'<button type="button" class="vq-icon" data-act="cancel" data-run="{escape(run.id)}"'
        f' aria-label="Cancel this job" title="Cancel this job">{CROSS}</button>'
    )
    return (
        f'<div class="vq-pill" data-on="true" data-title="{escape(title)}">'
        f"<b>{escape(verb)}</b><span>{escape(position(run))}{more}</span>{cancel}"
        f'<i style="width:{share:.1f}%"></i></div>'
    )


def position(run: RunRecord) -> str:
    """Returns where a job is: "layer 41 of 133 · 7 s left"."""
    if run.state == "queued":
        return "waiting for its turn"
    if not run.total:
        return stage(run.stage).lower()
    unit = UNITS.get(run.stage, "step")
    left = f" · {_whole(run.eta_seconds)} left" if run.eta_seconds is not None else ""
    return f"{unit} {min(run.done + 1, run.total)} of {run.total}{left}"


def _whole(seconds: float) -> str:
    """Returns an expected time in whole seconds: it is not known to their tenths."""
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 10 else duration(whole)


def progress(run: RunRecord, ahead: int = 0) -> str:
    """Returns the progress panel of a job: stage, bar, what it works on, Cancel. Fixed height.

    Args:
        ahead: runs that have to end before a queued one begins.
    """
    share = 100 * run.done / run.total if run.total else 0
    unknown = str(not run.total).lower()
    heading = (
        "Stopping" if run.cancelling else stage("queued" if run.state == "queued" else run.stage)
    )
    where = position(run) if run.total else ""
    if run.state == "queued" and ahead:
        where = f"{count(ahead, 'run')} before it"
    cancel = (
        '<button type="button" class="vq-button vq-button-small" disabled>Stopping</button>'
        if run.cancelling
        else '<button type="button" class="vq-button vq-button-small" data-act="cancel"'
        f' data-run="{escape(run.id)}">Cancel</button>'
    )
    since = f"{duration(run.seconds)} so far" if run.state == "running" and run.seconds > 1 else ""
    now = " · ".join(filter(None, (shorten(run.message), since)))
    return (
        '<div class="vq-progress"><div class="vq-progress-head">'
        f'<b role="status">{escape(heading)}</b><span class="vq-muted">{escape(where)}</span>'
        f'<span class="vq-space"></span>{cancel}</div>'
        f'<div class="vq-track" role="progressbar" aria-label="{escape(heading)}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{share:.0f}" data-unknown="{unknown}">'
        f'<i style="width:{share:.1f}%"></i></div>'
        f'<span class="vq-now">{escape(now) or "&nbsp;"}</span>{_way(run)}</div>'
    )


def _way(run: RunRecord) -> str:
    """The stages of a job that has several, in order, the present one marked."""
    names = stages(run.request)
    if len(names) < 3:
        return ""
    at = names.index(run.stage) if run.stage in names else -1
    items = ""
    for place, name in enumerate(names):
        state = "now" if place == at else "done" if place < at else "next"
        current = ' aria-current="step"' if place == at else ""
        items += f'<li data-at="{state}"{current}>{escape(stage(name))}</li>'
    return f'<ol class="vq-way" aria-label="Stages">{items}</ol>'


def stages(request: Request) -> tuple[str, ...]:
    """Returns the stages that a request goes through, in order."""
    if isinstance(request, PlanRequest):
        return ("record", "sensitivity", "distortion")
    if isinstance(request, BlameRequest):
        return ("record", "sensitivity", "blame", "repair")
    if not isinstance(request, CompressRequest):
        return ()
    recipe = request.recipe
    return (
        *(("record", "calibrate") if recipe.calibration is not None else ()),
        "encode",
        *(("finetune",) if recipe.finetune is not None else ()),
        *(("record",) if recipe.ranges is not None and recipe.calibration is None else ()),
        *(("ranges",) if recipe.ranges is not None else ()),
        "save",
    )


def fault(
    what: str,
    *,
    where: str = "",
    remedy: str = "",
    title: str = "That did not work",
    actions: str = "",
) -> str:
    """Returns the panel of a fault: what happened, where, what to do; `actions` is ready HTML."""
    place = f'<p class="vq-where">{escape(shorten(where, 400))}</p>' if where else ""
    step = f"<p>{escape(shorten(remedy, 400))}</p>" if remedy else ""
    words = shorten(what[:1].upper() + what[1:], 400)
    buttons = f'<div class="vq-actions">{actions}</div>' if actions else ""
    return (
        f'<div class="vq-fault" role="alert"><h3>{escape(title)}</h3><p>{escape(words)}</p>'
        f"{place}{step}{buttons}</div>"
    )


HELP = (
    '<dialog class="vq-help" aria-labelledby="vq-help-title"><h2 id="vq-help-title">Keys'
    " and first steps</h2>"
    "<dl><dt><kbd>1</kbd> – <kbd>6</kbd></dt><dd>Open a tab</dd>"
    "<dt><kbd>←</kbd> <kbd>→</kbd></dt><dd>Move the divider between the pictures</dd>"
    "<dt><kbd>Space</kbd></dt><dd>Swap the two pictures</dd>"
    "<dt><kbd>[</kbd> <kbd>]</kbd></dt><dd>Another compressed model</dd>"
    "<dt><kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd></dt><dd>Zoom the pictures, or the lens</dd>"
    "<dt><kbd>←</kbd> <kbd>=</kbd> <kbd>→</kbd> <kbd>↓</kbd></dt><dd>In a blind test: A, equal,"
    " B, both bad; <kbd>S</kbd> skips, <kbd>U</kbd> takes back</dd>"
    "<dt><kbd>Esc</kbd></dt><dd>Close this window</dd><dt><kbd>?</kbd></dt><dd>Open it</dd></dl>"
    "<h3>First steps</h3><p>1. <b>Compress</b>: say what matters to you and press the"
    " button. Your model stays"
    " as it is; a smaller copy is written beside it.</p><p>2. <b>Compare</b>: draw the"
    " same prompt from the same"
    " starting noise with both, and look.</p><p>3. <b>Inspect</b>: see what changed"
    " inside. <b>Blind</b> asks people, <b>Grid</b> draws many settings, <b>Runs</b> keeps"
    " everything you did.</p>"
    '<div class="vq-actions"><button type="button" class="vq-button"'
    " data-help-close>Close</button></div></dialog>"
)
