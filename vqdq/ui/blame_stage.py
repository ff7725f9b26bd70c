"""The picture to blame layers for: which one it is, and the rectangle that a person draws on it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.requests import BlameRequest
from vqdq.jobs.run import RunRecord
from vqdq.quantities import roughly
from vqdq.ui.blame_look import BlameLook
from vqdq.ui.desk import Desk
from vqdq.ui.live import Session
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import chip, escape, file_url

CALLS, WORST = 6, 20
_SPARED = 0.5  # of a call, where a layer is put back: what differs is computed (`models.memo`)
_BACKWARD = 4.0  # calls that one call of the estimate takes: forward, backward, two kinds
_SETS = 8  # of repairs that are measured together
_OVERHEAD = 2.5  # decoding and exchanging layers, on the demo model and two cores


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A picture that was drawn by the reference and by compressed models.

    Attributes:
        run: of the recording or the comparison; prompt … guidance: what draws it again.
        reference: path of the picture; variants: name of a model -> path of its picture.
    """

    run: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    reference: Path
    variants: Mapping[str, Path]


def subject(desk: Desk, session: Session) -> Subject | None:
    """Returns the picture of the recording on display, else of the newest comparison, or None."""
    for kind in ("inspect", "compare"):
        for run in _candidates(desk, session, kind):
            found = _subject(desk, run)
            if found is not None:
                return found
    return None


def chosen_variant(desk: Desk, session: Session, shown: Subject | None) -> str:
    """Returns the compressed model to look into; "" when there is none."""
    known = [name for _, name in desk.variants()]
    asked = session.look(BlameLook).variant
    beside = [] if shown is None else [name for name in shown.variants if name in known]
    return asked if asked in known else next(iter((*beside, *known)), "")


def stage(desk: Desk, session: Session) -> tuple[str, str]:
    """Returns the signature and the markup of the picture, the choice of a region, the button.

    A region that is drawn does not change the signature: the script holds it until it is sent.
    """
    shown = subject(desk, session)
    variant = chosen_variant(desk, session, shown)
    if shown is None or not variant:
        return "", ""
    seconds = expected_seconds(desk, shown.steps)
    found = shown_run(desk, session)
    marked: tuple[float, ...] = ()
    if found is not None and isinstance(found.request, BlameRequest):
        same = (found.request.prompt, found.request.seed) == (shown.prompt, shown.seed)
        marked = found.request.region if same else ()
    key = f"{shown.run} {variant} {found.id if found else ''}"
    other = shown.variants.get(variant)
    panes = _pane(shown.reference, "FP16", 0, shown, first=other is None)
    if other is not None:
        panes += _pane(other, variant, 1 + list(shown.variants).index(variant), shown, first=True)
    region = ",".join(f"{value:.4f}" for value in marked)
    note = chip("estimated", "From the size of the model, for two cores; your earlier runs count.")
    return key, (
        f'<div class="vq-blame-stage" data-region="{region}">'
        '<div class="vq-picks" role="group" aria-label="Which part of the picture">'
        '<button type="button" class="vq-pick" data-where="whole" aria-pressed="true">Whole picture'
        '</button><button type="button" class="vq-pick" data-where="region" aria-pressed="false">'
        f'A region</button></div><div class="vq-blame-panes">{panes}</div>'
        '<p class="vq-muted vq-blame-words" role="status"></p>'
        '<div class="vq-actions"><button type="button" class="vq-button" data-act="blame"'
        f' data-region="{region}">Find the layers to blame</button>'
        f'<span class="vq-muted">about {roughly(seconds)} {note}</span></div></div>'
    )


def missing(desk: Desk, session: Session) -> str:
    """Returns what a search needs and is not there yet, with the way to it; "" for nothing."""
    if not desk.variants():
        return _nothing(
            "There is no compressed model yet",
            "Compress this model first: then this part finds the layers that cost its pictures"
            " most, and a recipe that mends them.",
            '<button type="button" class="vq-button" data-act="start">Open Compress</button>',
        )
    if subject(desk, session) is None:
        return _nothing(
            "There is no picture yet",
            "Press <b>Record</b> above, or draw a comparison. Then mark the part that went wrong.",
        )
    return ""


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the search on display: the chosen one, else the newest that was not given up."""
    if session.run("blame"):
        with contextlib.suppress(UserError):  # it was deleted: show the newest instead
            return desk.workspace.run(session.run("blame"))
    runs = desk.runs("blame", 20)
    return next((run for run in runs if run.state in ("queued", "running", "done")), None)


def region_in(text: str) -> tuple[float, ...]:
    """Returns the numbers of a region that the page sent; () for the whole picture.

    Raises:
        UserError: they are no numbers.
    """
    try:
        return tuple(round(float(part), 4) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(
            f"{text[:40]!r} is not a region.", where="region", remedy="Mark it again."
        ) from error


def expected_seconds(desk: Desk, steps: int) -> float:
    """Returns how long a search takes: as the last one of this model, else by its size."""
    for run in desk.runs("blame", 5):
        values = run.result or {}
        if run.state == "done" and values.get("model") == desk.model and values.get("seconds"):
            return float(values["seconds"])
    try:
        call = 2 * costs.call_seconds(desk.component, desk.pixels)
    except UserError:
        return 0.0
    calls = steps + _BACKWARD * min(10, steps) + 2 * CALLS * WORST * _SPARED + CALLS * _SETS
    return _OVERHEAD * calls * call


def _candidates(desk: Desk, session: Session, kind: str) -> list[RunRecord]:
    """The run on display, then the newest."""
    found: list[RunRecord] = []
    if session.run(kind):
        with contextlib.suppress(UserError):  # it was deleted
            found.append(desk.workspace.run(session.run(kind)))
    return [*found, *desk.workspace.runs(kind, 10)]


def _subject(desk: Desk, run: RunRecord) -> Subject | None:
    values: dict[str, Any] = run.result or {}
    if run.state != "done" or getattr(run.request, "model", "") != desk.model:
        return None
    try:
        return Subject(
            run=run.id,
            prompt=str(values["prompt"]),
            seed=int(values["seed"]),
            steps=int(values["steps"]),
            guidance=float(values["guidance"]),
            reference=run.folder / values["reference"]["image"],
            variants={
                str(each["variant"]): run.folder / each["image"] for each in values["variants"]
            },
        )
    except (KeyError, TypeError, ValueError):
        return None  # of an older version, which kept less


def _pane(path: Path, label: str, colour: int, shown: Subject, *, first: bool) -> str:
    """One picture; only one of them has the rectangle that the keyboard moves."""
    box = (
        '<button type="button" class="vq-blame-box" aria-label="The marked region"'
        ' aria-describedby="vq-blame-keys"></button>'
        if first
        else '<i class="vq-blame-box" aria-hidden="true"></i>'
    )
    keys = (
        '<span id="vq-blame-keys" hidden>Arrow keys move it, Shift and arrow keys size it,'
        " Escape takes the whole picture.</span>"
        if first
        else ""
    )
    return (
        f'<figure><div class="vq-blame-pane"><img src="{escape(file_url(path))}" draggable="false"'
        f' alt="{escape(f"{label}: {shown.prompt}")}">{box}</div>'
        f"<figcaption>{swatch(colour)}{escape(label)}</figcaption>{keys}</figure>"
    )


def _nothing(title: str, words: str, button: str = "") -> str:
    actions = f'<div class="vq-actions">{button}</div>' if button else ""
    return f'<div class="vq-nothing"><h3>{title}</h3><p>{words}</p>{actions}</div>'
