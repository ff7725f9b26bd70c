"""Plans for a target: from what a person aims at to a measured plan, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from vqdq.jobs.plan import concrete
from vqdq.jobs.requests import PlanRequest
from vqdq.jobs.results import PlannedRow, PlanResult
from vqdq.jobs.run import RunRecord
from vqdq.quantities import digits, size
from vqdq.recipe import Recipe
from vqdq.ui.desk import Desk
from vqdq.ui.settings import Aim, Wish
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import chip, count, escape

WIDEST = 8.0  # bits that fill a bar
RECENT = 40
FIRST_ROWS = 8


def request_of(desk: Desk, wish: Wish) -> PlanRequest:
    """Returns what the worker is asked for; the measurement is kept for the next target.

    Raises:
        UserError: the aim is out of range.
    """
    aim = wish.aim or Aim(bits=16.0)
    return PlanRequest(
        model=desk.model,
        recipe=wish.recipe,
        bits=aim.bits,
        bytes=aim.bytes,
        sensitivity=str(desk.sensitivity_file),
    )


def recipe_for(desk: Desk, wish: Wish) -> Recipe | None:
    """Returns the recipe that serves `wish`: its own, or the planned one; None: not planned yet.

    Raises:
        UserError: the aim is out of range.
    """
    if wish.aim is None:
        return wish.recipe
    asked = request_of(desk, wish)
    for run in desk.workspace.runs("plan", limit=RECENT):
        if run.state == "done" and run.result and _same(run.request, asked):
            return concrete(cast(PlanResult, run.result))
    return None


def table(run: RunRecord) -> str:
    """Returns the bits of a finished plan: all layers at a glance, then those that matter most."""
    result = cast(PlanResult, run.result or {})
    packed = [row for row in result["layers"] if row["method"]]
    first = sorted(packed, key=lambda row: -(row["sensitivity"] or 0.0))
    most = max((row["bits_per_weight"] for row in packed), default=1.0)
    bars = "".join(
        f'<i style="height:{_height(row["bits_per_weight"], most):.0f}%"'
        f' title="{escape(row["name"])}: {digits(row["bits_per_weight"])} bits"></i>'
        for row in packed
    )
    how = "Its part of the change in the prediction when every layer has the same relative error."
    rest = (
        f'<details class="vq-more"><summary>All {count(len(packed), "layer")}, in the order they'
        f" run</summary>{_table(packed)}</details>"
    )
    return (
        '<section class="vq-layers vq-plan"><h2>Bits of each layer</h2>'
        f'<div class="vq-strip" role="img" aria-label="Bits of {len(packed)} layers, in the order'
        f' they run: see the table below">{bars}</div>'
        f"<h3>What matters most {chip('measured', how)}</h3>"
        f"{_table(first[:FIRST_ROWS])}{rest if len(packed) > FIRST_ROWS else ''}</section>"
    )


def _table(rows: Sequence[PlannedRow]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Layer", "Matters", "Bits", "Size"))
    return (
        '<div class="vq-scroll" tabindex="0" role="region" aria-label="Planned layers">'
        f'<table class="vq-numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div>"
    )


def _height(bits: float, most: float) -> float:
    return max(0.0, min(100.0, 100 * bits / most))


def _row(row: PlannedRow) -> str:
    bits = row["bits_per_weight"]
    part = row["sensitivity"]
    return (
        f'<tr><th scope="row">{swatch(1)}<span class="vq-code">{escape(row["name"])}</span></th>'
        f"<td>{'–' if part is None else digits(100 * part, '%')}</td>"
        f"<td>{digits(bits)}"
        f'<i class="vq-error" style="--share:{_height(bits, WIDEST):.0f}%" aria-hidden="true"></i>'
        "</td>"
        f"<td>{size(row['bytes'])}</td></tr>"
    )


def _same(request: Any, asked: PlanRequest) -> bool:
    if not isinstance(request, PlanRequest):
        return False
    return (request.model, request.bits, request.bytes, request.recipe.digest) == (
        asked.model,
        asked.bits,
        asked.bytes,
        asked.recipe.digest,
    )
