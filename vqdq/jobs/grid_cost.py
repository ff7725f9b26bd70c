"""What a grid will take before it starts: pictures, time, models to make, disk. Estimates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.grid_cells import Drawer, Grid
from vqdq.jobs.requests import CompareRequest, GenerateRequest, GridRequest
from vqdq.jobs.run import RunRecord
from vqdq.recipe import Plan

_DECODE_SECONDS = 0.15  # of a picture of 16 x 16 latents, and its judge: the embedded model
_OPEN_SECONDS = 1.0  # of a model
_PNG_SHARE = 0.35  # of the raw bytes; flat pictures take less, photographs up to 0.6
_PIXELS = 512  # of a model that does not say its size


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Median seconds of a step of one model, from `pictures` of earlier runs."""

    step_seconds: float
    pictures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a grid takes.

    Attributes:
        cells: of the grid; `empty`: those without a picture; `pictures`: different ones to draw.
        draw_seconds, make_seconds: estimated; `source`: what the first goes by, in words.
        compressions: models to make; `made_bytes`: their folders.
        disk_bytes: those and the pictures.
        problems: why a recipe does not fit the model, by its name.
    """

    cells: int
    empty: int
    pictures: int
    draw_seconds: float
    make_seconds: float
    source: str
    compressions: int
    made_bytes: int
    disk_bytes: int
    problems: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Making and drawing together."""
        return self.draw_seconds + self.make_seconds


def cost(
    grid: Grid,
    *,
    plan: Callable[[Drawer], Plan],
    paces: Mapping[str, Pace],
    reference: str,
    call_seconds: float,
    pixels: int = 0,
    other_bytes: int = 0,
    done: Sequence[str] = (),
) -> Cost:
    """Returns what `grid` takes.

    Args:
        plan: of a drawer with a recipe; raises `UserError` where it does not fit.
        paces: measured, by `Drawer.key` or a model's reference; see `paces_of`.
        reference: the model whose pace serves where a drawer has none of its own.
        call_seconds: of one call of the denoiser, where nothing was measured; `costs.call_seconds`.
        pixels: side of a picture; 0 when it is not known.
        other_bytes: of what a compressed model's folder holds beside the denoiser.
        done: keys of pictures that are drawn already.
    """
    left = [picture for picture in grid.pictures if picture.key not in done]
    make, made, compressions = 0.0, 0, 0
    problems: dict[str, str] = {}
    drawers = {picture.drawer.key: picture.drawer for picture in left}
    for drawer in drawers.values():
        if drawer.recipe is None or not drawer.compresses:
            continue
        try:
            found = plan(drawer)
        except UserError as error:
            problems[drawer.recipe.name] = str(error)
            continue
        compressions += 1
        make += sum(costs.stages(found, pixels, copied_bytes=other_bytes).values())
        made += found.predicted_bytes + other_bytes
    draw, used = _OPEN_SECONDS * len(drawers), set[str]()
    side = pixels or _PIXELS
    for picture in left:
        names = (picture.drawer.key, picture.drawer.made, reference)
        name = next((each for each in names if each in paces), "")
        if name:
            draw += picture.steps * paces[name].step_seconds
        else:
            calls = picture.steps * (2 if picture.guidance > 1 else 1)
            draw += calls * call_seconds + _DECODE_SECONDS * (side / 128) ** 2
        used.add(name)
    return Cost(
        cells=len(grid.cells),
        empty=len(grid.empty),
        pictures=len(left),
        draw_seconds=draw,
        make_seconds=make,
        source=_source(used, paces),
        compressions=compressions,
        made_bytes=made,
        disk_bytes=made + round(len(left) * 3 * side**2 * _PNG_SHARE),
        problems=problems,
    )


def paces_of(runs: Sequence[RunRecord]) -> dict[str, Pace]:
    """Returns the pace of each model that drew in finished runs, by its reference."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, seconds, steps in _drawn(run):
            if seconds > 0 and steps > 0:
                found.setdefault(name, []).append(seconds / steps)
    return {
        name: Pace(step_seconds=statistics.median(each), pictures=len(each))
        for name, each in found.items()
    }


def _drawn(run: RunRecord) -> list[tuple[str, float, int]]:
    """(model, seconds, steps) of each picture of a run."""
    values, request = run.result or {}, run.request
    if isinstance(request, GridRequest):
        rows: list[dict[str, Any]] = values.get("rows", [])
        return [(row.get("drawer", ""), row["seconds"], row["steps"]) for row in rows]
    if isinstance(request, GenerateRequest):
        return [(request.model, values.get("seconds", 0.0), request.steps)]
    if isinstance(request, CompareRequest) and isinstance(values.get("reference"), dict):
        pictures: list[dict[str, Any]] = [values["reference"], *values.get("variants", ())]
        return [(each["variant"], each["seconds"], request.steps) for each in pictures]
    return []


def _source(used: set[str], paces: Mapping[str, Pace]) -> str:
    count = sum(paces[name].pictures for name in used if name)
    if "" not in used:
        return f"Estimated from {count:,} earlier picture{'' if count == 1 else 's'} here."
    size = "the model's size and the steps"
    return f"Estimated from {size}{f' and {count:,} earlier pictures' if count else ''}."
