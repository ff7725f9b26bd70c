"""`vqdq grid`: a picture for each pair of settings, with a labelled sheet and a table."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from vqdq.cli.checks import asking, check_models, new_path
from vqdq.cli.recipes import Stopped
from vqdq.cli.terminal import Output
from vqdq.errors import UserError
from vqdq.jobs import costs, grid_axes, grid_cost, grid_records, grid_sheet
from vqdq.jobs import grid as drawing
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.grid_cells import Drawer, Grid, expand, label
from vqdq.jobs.grid_cost import Cost
from vqdq.jobs.requests import Axis, GridRequest
from vqdq.jobs.run import read_json, write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.places import expanded
from vqdq.quantities import duration, size

FILE = "grid.json"


def run(options: argparse.Namespace, output: Output) -> int:
    """Draws a grid into a folder, or goes on with one; `--dry-run` says what it takes."""
    with asking():
        request = _request(options)
        grid = expand(request, drawing.preset)
    check_models(request.model, *_models(request), report=output.report)
    target = expanded(options.output).absolute()
    going_on = _is_mine(target, request)
    if not going_on:
        target = new_path(options.output)
    done = [key for key, row in grid_records.read(target).items() if not row["error"]]
    found = _cost(request, grid, done)
    if options.dry_run:
        output.result(_told(found), _lines(found, going_on))
        return 0
    with disk_faults(target):
        target.mkdir(exist_ok=True)
        write_json(target / FILE, {"request": request.to_json(), "finished": False})
    try:
        _draw(request, grid, target, output)
    except KeyboardInterrupt:
        raise Stopped(f"What is drawn is in {target}; the same command goes on.") from None
    rows = grid_records.read(target)
    values = _values(request, grid, target)
    lines = [
        str(target),
        f"  {len(grid.pictures)} pictures in {len(grid.cells)} cells, {duration(_spent(rows))} of"
        " drawing",
        *(f"  empty: {why}" for why in dict.fromkeys(cell.why for cell in grid.empty)),
        f"  {', '.join(values['sheets'])} shows them; grid.csv and grid.json hold the numbers.",
    ]
    output.result(values, lines)
    return 0


def _draw(request: GridRequest, grid: Grid, target: Path, output: Output) -> None:
    """Draws what is missing; the sheets and tables show what there is, also after a fault."""
    try:
        drawing.execute(request, target, report=output.report, cache=WarmPipelines())
    finally:
        rows = grid_records.read(target)
        if rows:
            for page in range(grid.shape[2]):
                grid_sheet.write_sheet(target / _sheet(grid, page), request, grid, rows, page)
            grid_sheet.write_table(target / "grid.csv", request, grid, rows)
            with disk_faults(target):
                write_json(target / FILE, _values(request, grid, target))


def _values(request: GridRequest, grid: Grid, target: Path) -> dict[str, Any]:
    """What `grid.json` and `--json` say."""
    rows = grid_records.read(target)
    cells = [
        {
            "place": list(cell.place),
            "labels": [
                label(side, side.values[at])
                for side, at in zip(grid.sides, cell.place, strict=True)
                if side is not None
            ],
            "picture": None if cell.picture is None else cell.picture.key,
            "why": cell.why,
        }
        for cell in grid.cells
    ]
    return {
        "request": request.to_json(),
        "finished": all(grid_records.is_done(rows.get(p.key), target) for p in grid.pictures),
        "output": str(target),
        "cells": cells,
        "pictures": [rows[p.key] for p in grid.pictures if p.key in rows],
        "sheets": [_sheet(grid, page) for page in range(grid.shape[2])],
    }


def _request(options: argparse.Namespace) -> GridRequest:
    """The request that the flags make."""
    prompts = _prompts(options)
    axes: list[Axis] = []
    for text in (options.columns, options.rows, options.pages):
        if text is None:
            continue
        if text == "prompt":
            if not prompts:
                raise UserError(
                    "has no values.", where="prompt", remedy="Add --prompts FILE, or prompt=a | b."
                )
            axes.append(Axis(name="prompt", values=prompts))
        else:
            axes.append(grid_axes.parse_axis(text))
    named = any(axis.name == "prompt" for axis in axes)
    if prompts and not named:
        if len(axes) == 3:
            raise UserError(
                "no direction is left for the prompts.",
                where="--prompts",
                remedy="Leave --rows or --pages out, or say --rows prompt.",
            )
        axes.append(Axis(name="prompt", values=prompts))
        named = True
    if not named and not options.prompt:
        raise UserError(
            "there is no prompt.",
            where="--prompt",
            remedy="Say what the pictures should show, or name --prompts FILE.",
        )
    return GridRequest(
        model=options.model,
        axes=tuple(axes),
        prompt="" if named else options.prompt,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        method=options.method,
        bits=options.bits,
    )


def _prompts(options: argparse.Namespace) -> tuple[str, ...]:
    """The prompts of `--prompts`: a built-in set, or a file as published, or a sample of either."""
    if options.prompts is None:
        if options.sample is not None:
            raise UserError(
                "there is no set to sample.", where="--sample", remedy="Add --prompts FILE."
            )
        return ()
    from vqdq.models import prompt_sets

    known = options.prompts in prompt_sets.built_in_names()
    read = prompt_sets.built_in_set if known else prompt_sets.read_prompt_set
    found = read(options.prompts)
    if options.sample is None:
        return tuple(prompt.text for prompt in found.prompts)
    chosen = prompt_sets.sample(
        found, options.sample, seed=options.sample_seed, by=options.sample_by
    )
    return tuple(prompt.text for prompt in chosen)


def _models(request: GridRequest) -> tuple[str, ...]:
    return tuple(
        str(value) for axis in request.axes if axis.name == "model" for value in axis.values
    )


def _is_mine(target: Path, request: GridRequest) -> bool:
    """Whether the folder holds the same grid, begun earlier.

    Raises:
        UserError: it holds another grid.
    """
    kept = read_json(target / FILE)
    if kept is None:
        return False
    if _digest(kept.get("request")) != _digest(request.to_json()):
        with asking():
            raise UserError(
                "holds another grid.",
                where=str(target),
                remedy="Name a new folder, or ask for the same grid to go on with it.",
            )
    return True


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _cost(request: GridRequest, grid: Grid, done: list[str]) -> Cost:
    from vqdq.models import compressor, pipelines
    from vqdq.models.copying import component_bytes
    from vqdq.models.sources import locate

    resolution = pipelines.describe(request.model).resolution
    pixels = max(resolution) if resolution else 0

    def plan(drawer: Drawer) -> Any:
        assert drawer.recipe is not None
        return compressor.plan(drawer.model, drawer.recipe)

    return grid_cost.cost(
        grid,
        plan=plan,
        paces={},
        reference=request.model,
        call_seconds=costs.call_seconds(pipelines.component(request.model), pixels),
        pixels=pixels,
        other_bytes=component_bytes(locate(request.model)),
        done=done,
    )


def _told(found: Cost) -> dict[str, Any]:
    return {
        "cells": found.cells,
        "empty": found.empty,
        "pictures": found.pictures,
        "estimated_draw_seconds": found.draw_seconds,
        "estimated_make_seconds": found.make_seconds,
        "estimated_seconds_source": found.source,
        "models_to_make": found.compressions,
        "made_bytes": found.made_bytes,
        "disk_bytes": found.disk_bytes,
        "problems": dict(found.problems),
    }


def _lines(found: Cost, going_on: bool) -> list[str]:
    left = " left" if going_on else ""
    lines = [
        f"{found.cells} cells, {found.pictures} pictures{left}, about"
        f" {duration(found.draw_seconds)} of drawing (estimated)",
    ]
    if found.compressions:
        lines.append(
            f"  {found.compressions} models to make, from the weights alone, about"
            f" {duration(found.make_seconds)} (estimated)"
        )
    lines.append(f"  {size(found.disk_bytes)} of disk (estimated)")
    if found.empty:
        lines.append(f"  {found.empty} cells without a picture")
    return [*lines, *(f"  ! {name}: {why}" for name, why in found.problems.items())]


def _spent(rows: dict[str, grid_records.GridRow]) -> float:
    return sum(row["seconds"] for row in rows.values())


def _sheet(grid: Grid, page: int) -> str:
    return "grid.png" if grid.shape[2] == 1 else f"grid-{page + 1}.png"
