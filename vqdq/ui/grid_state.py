"""What the Grid tab reads from the workspace: the grid on display, what one will cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs import costs, grid_cost, grid_records
from vqdq.jobs.grid_cells import Grid, Picture, expand
from vqdq.jobs.grid_cost import Cost
from vqdq.jobs.requests import GridRequest
from vqdq.jobs.run import RunRecord, read_json
from vqdq.models.copying import component_bytes
from vqdq.models.sources import locate
from vqdq.recipe import Recipe
from vqdq.ui.desk import Desk
from vqdq.ui.grid_table import Shown
from vqdq.ui.live import Session

HISTORY = 12  # runs whose pictures tell how long one takes
DREW = ("grid", "compare", "generate")


def submit(desk: Desk, request: GridRequest) -> str:
    """Returns the id of a queued grid; models that were made with its recipes are used.

    Raises:
        UserError: what is wrong with the request; no cell can have a picture.
    """
    ready = request.with_made(made_models(desk))
    expand(ready, desk.preset)
    return desk.workspace.submit(ready)


def made_models(desk: Desk) -> dict[str, str]:
    """Returns the compressed models of the one on the desk, by the digest of their recipe."""
    found: dict[str, str] = {}
    for entry in reversed(desk.workspace.models()):
        if entry.model == desk.model:
            path = entry.path / "recipe.json"
            digest = _digest(path, path.stat().st_mtime_ns) if path.is_file() else ""
            if digest:
                found[digest] = entry.name
    return found


def cost_of(desk: Desk, request: GridRequest, done: Sequence[str] = ()) -> Cost:
    """Returns what a grid takes, from this workspace's own pictures where there are any.

    Raises:
        UserError: a fault of the request or of the model.
    """
    ready = request.with_made(made_models(desk)) if not request.made else request
    history = [
        run
        for kind in DREW
        for run in desk.workspace.runs(kind, limit=HISTORY)
        if run.state == "done"
    ]
    return grid_cost.cost(
        expand(ready, desk.preset),
        plan=lambda drawer: desk.plan(_recipe(drawer.recipe)),
        paces=grid_cost.paces_of(history),
        reference=desk.model,
        call_seconds=costs.call_seconds(desk.component, desk.pixels),
        pixels=desk.pixels,
        other_bytes=_other_bytes(desk.model),
        done=done,
    )


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the grid on display: the chosen one, else the newest."""
    if session.run("grid"):
        try:
            return desk.workspace.run(session.run("grid"))
        except UserError:
            pass  # it was deleted: show the newest instead
    return next(iter(desk.runs("grid", 1)), None)


def shown(desk: Desk, session: Session) -> Shown | None:
    """Returns the grid on display with its pictures; None without one, or with a fault in it."""
    run = shown_run(desk, session)
    if run is None or not isinstance(run.request, GridRequest):
        return None
    try:
        grid = _grid(desk, run.request)
    except UserError:
        return None  # its preset is gone: the status says what became of the run
    path = run.folder / grid_records.FILE
    stamp = path.stat() if path.is_file() else None
    rows = _rows(run.folder, stamp.st_mtime_ns if stamp else 0, stamp.st_size if stamp else 0)
    at_work = run.state in ("queued", "running")
    return Shown(
        run=run.id,
        request=run.request,
        grid=grid,
        rows=rows,
        folder=run.folder,
        at_work=at_work,
    )


def picture_of(shown: Shown, key: str) -> Picture | None:
    """Returns the picture with that key; None when the grid has none."""
    return next((picture for picture in shown.grid.pictures if picture.key == key), None)


def variant_of(desk: Desk, shown: Shown, key: str) -> str:
    """Returns the compressed model of the workspace that draws a cell; "" where there is none."""
    picture = picture_of(shown, key)
    if picture is None:
        return ""
    drawer = picture.drawer
    recipe = drawer.recipe
    name = drawer.model if recipe is None else made_models(desk).get(recipe.digest, drawer.made)
    return name if name in {name for _, name in desk.variants()} else ""


@lru_cache(maxsize=16)
def _grid(desk: Desk, request: GridRequest) -> Grid:
    return expand(request, desk.preset)


@lru_cache(maxsize=8)
def _rows(folder: Path, changed: int, length: int) -> dict[str, grid_records.GridRow]:
    del changed, length  # parts of the key: a file that grew is read again
    return grid_records.read(folder)


@lru_cache(maxsize=64)
def _digest(path: Path, changed: int) -> str:
    del changed
    values = read_json(path)
    try:
        return Recipe.from_json(values).digest if values else ""
    except UserError:
        return ""  # of another version of the program


@lru_cache(maxsize=4)
def _other_bytes(model: str) -> int:
    return component_bytes(locate(model))


def _recipe(recipe: Recipe | None) -> Recipe:
    assert recipe is not None
    return recipe
