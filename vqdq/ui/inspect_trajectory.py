"""The way from noise to picture: error by step of every variant, and what each step looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqdq.durable import atomic
from vqdq.jobs.faults import disk_faults
from vqdq.models.following import Following
from vqdq.ui.inspect_figures import Plot, figure
from vqdq.ui.inspection import Capture
from vqdq.ui.look import Look
from vqdq.ui.theme import variant_colour
from vqdq.ui.wording import escape, file_url
from vqdq.views import trajectory
from vqdq.views.style import Style, View


def section(capture: Capture, look: Look, *, narrow: bool) -> str:
    """Returns the errors of all variants in one plot, and the previews of all models."""
    if len(capture.sides) == 1:
        return (
            '<p class="vq-muted">Only FP16 was recorded. Choose a compressed model beside it to see'
            " at which step it strays.</p>"
        )
    plotted = figure(capture, ERRORS, look, narrow=narrow)
    if not plotted:
        reasons = filter(None, (side.why_not("trajectory") for side in capture.sides[1:]))
        reason = next(reasons, "The way of the latents was not recorded.")
        return f'<p class="vq-muted">{escape(reason)}</p>'
    return (
        '<p class="vq-muted vq-lead">Teacher-forced, a variant predicts from the latents of FP16;'
        f" free-running, from its own.</p>{plotted}{_previews(capture)}"
    )


def _previews(capture: Capture) -> str:
    """What the latents are after each step, one row a model; a picture file holds a whole row."""
    ways = [side.following for side in capture.sides[1:]]
    first = next((way for way in ways if way is not None and way.shown), None)
    if first is None:
        return ""
    rows = [_row(capture, 0, "FP16", first, 0)]
    for index, (side, way) in enumerate(zip(capture.sides[1:], ways, strict=True), start=1):
        if way is not None and way.shown:
            place = way.labels.index(side.label) if side.label in way.labels else 1
            rows.append(_row(capture, index, side.label, way, place))
    how = "decoded" if first.previewed == "decoded" else "colours estimated from the latents"
    return (
        '<h3>The picture on its way</h3><p class="vq-muted">After step '
        f"{first.shown[0] + 1} to {first.shown[-1] + 1}, {how}.</p>{''.join(rows)}"
    )


def _row(capture: Capture, index: int, label: str, way: Following, place: int) -> str:
    url = file_url(_sprite(capture, index, way.previews[place]))
    last = max(len(way.shown) - 1, 1)
    cells = "".join(
        f'<span class="vq-step" style="--at:{100 * at / last:.4f}%" title="{escape(label)} after'
        f' step {step + 1}"></span>'
        for at, step in enumerate(way.shown)
    )
    colour = variant_colour(index)
    return (
        '<div class="vq-way-row"><span class="vq-way-name">'
        f'<i class="vq-swatch" style="background:{colour}"></i>{escape(label)}'
        f' <a class="vq-file" href="{escape(url)}" download="previews-{index}.png"'
        f' aria-label="Pictures of {escape(label)} as PNG">PNG</a></span>'
        f'<div class="vq-steps" role="img" aria-label="{escape(label)} after each of'
        f' {len(way.shown)} steps" style="--sprite:url(&quot;{escape(url)}&quot;);'
        f'--count:{len(way.shown)}">{cells}</div></div>'
    )


def _sprite(capture: Capture, index: int, pictures: npt.NDArray[np.uint8]) -> Path:
    """Pictures [shown, h, w, 3] side by side, as a file in the run's folder; written once."""
    path = capture.folder / "figures" / f"previews-{index}.png"
    if not path.is_file():
        with disk_faults(path):
            path.parent.mkdir(exist_ok=True)
            with atomic(path) as file:
                Image.fromarray(np.concatenate(list(pictures), axis=1)).save(file, format="png")
    return path


def _errors(capture: Capture, look: Look, style: Style) -> View | None:
    del look
    found = [side.trajectory for side in capture.sides[1:]]
    records = [record for record in found if record is not None]
    return trajectory.trajectory(records, style) if records else None


ERRORS = Plot(name="trajectory", title="Error along the steps", draw=_errors, reads=())
PLOTS = (ERRORS,)
