"""What is known of a grid's pictures: one line a picture in `cells.jsonl`, the last one counts.

The file is written as the grid is drawn, so that a page shows every picture when it comes, and a
grid that was stopped goes on where it was. A picture is done when its line says no error and its
PNG is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from vqdq.durable import append_line
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.grid_cells import Grid, Picture
from vqdq.jobs.results import Picture as Drawn
from vqdq.jobs.results import VerdictResult
from vqdq.places import inside

FILE = "cells.jsonl"


class Fault(TypedDict):
    """Why a picture was not drawn."""

    what: str
    where: str
    remedy: str


class GridRow(TypedDict):
    """One picture of a grid.

    Attributes:
        key: of `grid_cells.Picture`.
        drawer: key of the model that drew, as in `grid_cells.Drawer`.
        image: file name of the PNG; "" when it was not drawn, and `error` says why.
        label: the model that drew, for people.
        seconds: of drawing, without loading.
        bytes: of the denoiser's weight file; `bits_per_weight`: 16 for one that is not compressed.
        reference: file name of the reference's picture, or "" where the grid has none.
        psnr: dB against it; None for equal pictures and without one. `ssim`: None without one.
        verdict: of the judge; None when the picture cannot be judged.
    """

    key: str
    drawer: str
    image: str
    label: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    seconds: float
    peak_memory_bytes: int
    bytes: int
    bits_per_weight: float
    activations: str
    initial_latent_sha256: str
    reference: str
    psnr: float | None
    ssim: float | None
    verdict: VerdictResult | None
    verdict_reason: str | None
    error: Fault | None


def read(folder: Path) -> dict[str, GridRow]:
    """Returns the rows by key; a line that a kill cut short is as if it were not there."""
    found: dict[str, GridRow] = {}
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            values: object = json.loads(line)
        except (ValueError, RecursionError):  # a number may be too long, too
            continue
        if isinstance(values, dict) and GridRow.__required_keys__ <= cast(Any, values).keys():
            row = cast(GridRow, values)
            if isinstance(cast(object, row["key"]), str):
                found[row["key"]] = row
    return found


def drawn(picture: Picture, found: Drawn) -> GridRow:
    """Returns the row of a picture that was drawn, not yet measured against its reference."""
    return GridRow(
        key=picture.key,
        drawer=picture.drawer.key,
        image=found["image"],
        label=found["label"],
        prompt=picture.prompt,
        seed=picture.seed,
        steps=picture.steps,
        guidance=picture.guidance,
        seconds=found["seconds"],
        peak_memory_bytes=found["peak_memory_bytes"],
        bytes=found["bytes"],
        bits_per_weight=found["bits_per_weight"],
        activations=found["activations"],
        initial_latent_sha256=found["initial_latent_sha256"],
        reference="",
        psnr=None,
        ssim=None,
        verdict=found["verdict"],
        verdict_reason=found["verdict_reason"],
        error=None,
    )


def append(folder: Path, row: GridRow) -> None:
    """Adds one line.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = folder / FILE
    with disk_faults(path):
        append_line(path, json.dumps(row, ensure_ascii=False, allow_nan=False))


def is_done(row: GridRow | None, folder: Path) -> bool:
    """Returns whether a picture is drawn and its file is there."""
    if row is None or row["error"] is not None:
        return False
    try:
        return inside(folder, row["image"]).is_file()
    except UserError:  # damaged: it is drawn again
        return False


def failed(rows: Mapping[str, GridRow]) -> Sequence[GridRow]:
    """Returns the rows of pictures that could not be drawn."""
    return [row for row in rows.values() if row["error"] is not None]


def lost(row: GridRow, rows: Mapping[str, GridRow], grid: Grid) -> str:
    """Returns what the judge says of a picture in words, or "" when it shows what was asked.

    "alignment lost" is a picture that fails where the reference's of the same prompt, seed, steps
    and guidance does not.
    """
    verdict = row["verdict"]
    if verdict is None or verdict["passed"]:
        return ""
    picture = next((each for each in grid.pictures if each.key == row["key"]), None)
    twin = rows.get(picture.reference) if picture is not None else None
    if twin is None or twin["key"] == row["key"] or twin["verdict"] is None:
        return "not what was asked"
    return "alignment lost" if twin["verdict"]["passed"] else "not what was asked"
