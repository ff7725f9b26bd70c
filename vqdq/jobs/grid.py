"""A grid of pictures, model by model; what is there already is not drawn again."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from vqdq.errors import UserError
from vqdq.jobs import grid_records as records
from vqdq.jobs import models
from vqdq.jobs.draw import draw
from vqdq.jobs.faults import as_user_error
from vqdq.jobs.grid_cells import Drawer, Grid, Picture, expand
from vqdq.jobs.grid_records import Fault, GridRow
from vqdq.jobs.requests import GenerateRequest, GridRequest
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from PIL.Image import Image

STAGE = "cells"
MODELS = "models"
"""Folder of the models that were made for this grid, inside the run's."""


class GridResult(TypedDict):
    """A finished grid; where a cell's picture is, says `grid_records.read` of the run's folder.

    Attributes:
        cells: of the grid; `empty`: those that cannot have a picture.
        pictures: different ones; `drawn`: in this run, `kept`: from before it was stopped.
        made: names of the models that were compressed for it.
    """

    cells: int
    empty: int
    pictures: int
    drawn: int
    kept: int
    made: list[str]
    rows: list[GridRow]
    seconds: float


def preset(name: str) -> Recipe:
    """Returns a shipped recipe.

    Raises:
        UserError: no such preset; the nearest is named.
    """
    from vqdq.models.sources import presets_folder  # heavy: diffusers

    return load_recipe(name, presets_folder())


def execute(
    request: GridRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> GridResult:
    """Returns what was drawn, after writing PNG files and `cells.jsonl` into `folder`.

    Raises:
        UserError: the request cannot be expanded, the disk is full, or some picture could not be
            drawn: then all others are, and doing it again draws only what is missing.
    """
    start = time.perf_counter()
    grid = expand(request, preset)
    rows = records.read(folder)
    done = {key for key, row in rows.items() if records.is_done(row, folder)}
    kept = len(done & {picture.key for picture in grid.pictures})
    work = _Work(grid=grid, folder=folder, report=report, cache=cache, rows=rows, finished=kept)
    missing = [picture for picture in grid.pictures if picture.key not in done]
    if request.engine == "ray":
        work.draw_on_cluster(missing)
    else:
        for drawer in grid.drawers:
            mine = [picture for picture in missing if picture.drawer == drawer]
            if mine:
                work.draw_all(drawer, mine)
    work.compare_rest()
    wrong = [rows[p.key] for p in grid.pictures if rows[p.key]["error"] is not None]
    if wrong:
        first = wrong[0]["error"]
        assert first is not None
        raise UserError(
            f"{len(wrong)} of {len(grid.pictures)} pictures could not be drawn. The first:"
            f" {first['what']}",
            where=first["where"],
            remedy=f"{first['remedy']} Try again draws only these.".strip(),
        )
    return GridResult(
        cells=len(grid.cells),
        empty=len(grid.empty),
        pictures=len(grid.pictures),
        drawn=len(grid.pictures) - kept,
        kept=kept,
        made=[]
        if request.engine == "ray"
        else [model_folder(folder, each).name for each in grid.drawers if each.compresses],
        rows=[rows[picture.key] for picture in grid.pictures],
        seconds=time.perf_counter() - start,
    )


def model_folder(folder: Path, drawer: Drawer) -> Path:
    """Returns where the model of a recipe is made, inside the run's folder."""
    assert drawer.recipe is not None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", drawer.recipe.name).strip(".-")[:48]
    return folder / MODELS / f"{name}-{drawer.recipe.digest[:8]}"


@dataclasses.dataclass(kw_only=True, slots=True)
class _Work:
    """One run of a grid; `rows` and `finished` grow as it goes."""

    grid: Grid
    folder: Path
    report: Report
    cache: WarmPipelines
    rows: dict[str, GridRow]
    finished: int

    def draw_all(self, drawer: Drawer, pictures: list[Picture]) -> None:
        """Draws the pictures of one model; a fault is written down and the next one is tried."""
        try:
            warm = self._open(drawer)
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            fault = _fault(error, drawer.model)
            for picture in pictures:
                self._keep(_failed(picture, fault))
            return
        for picture in pictures:
            try:
                row = self._drawn(warm, picture)
            except (UserError, OSError, MemoryError, RuntimeError) as error:
                row = _failed(picture, _fault(error, warm.label))
            self._keep(row)

    def draw_on_cluster(self, pictures: list[Picture]) -> None:
        """Draws the pictures of all models at once, on the computers of a cluster."""
        if not pictures:
            return
        from vqdq.jobs import grid_cluster  # heavy: ray

        def failed(picture: Picture, fault: UserError) -> None:
            self._keep(_failed(picture, fault))

        def counted(event: Event) -> None:  # pictures of the grid, not pieces of the cluster's work
            total = len(self.grid.pictures)
            mine = dataclasses.replace(event, done=min(self.finished, total), total=total)
            self.report(mine if event.stage == STAGE else event)

        grid_cluster.draw(
            pictures,
            self.folder,
            locate=self.cache.locate,
            keep=self._keep,
            failed=failed,
            report=counted,
        )

    def compare_rest(self) -> None:
        """Measures pictures whose reference came after them, as one that was tried again does."""
        for picture in self.grid.pictures:
            row = self.rows[picture.key]
            if row["error"] is None and not row["reference"]:
                measured = self._against(picture, row, None)
                if measured["reference"]:
                    self._write(measured)

    def _open(self, drawer: Drawer) -> Warm:
        if drawer.recipe is None:
            return self.cache.get(drawer.model, report=self.report)
        if drawer.made:
            try:
                return self.cache.get(drawer.made, report=self.report)
            except UserError:  # it was deleted meanwhile: the same recipe makes it again
                pass
        target = model_folder(self.folder, drawer)
        if (target / "model_index.json").is_file():
            models.discard(models.partial(target))  # stopped after the model had its name
        else:
            from vqdq.models.compressor import compress_folder  # heavy: diffusers

            target.parent.mkdir(exist_ok=True)
            compress_folder(drawer.model, drawer.recipe, target, report=self.report)

        def loading(event: Event) -> None:  # its name, not where it lies
            self.report(dataclasses.replace(event, message=target.name))

        # the picture carries the recipe; where this run lies is nobody's business
        return dataclasses.replace(
            self.cache.get(str(target), report=loading), reference=target.name
        )

    def _drawn(self, warm: Warm, picture: Picture) -> GridRow:
        total = len(self.grid.pictures)

        def on(event: Event) -> None:
            step = f"step {min(event.done + 1, event.total)} of {event.total}"
            words = f"{warm.label} · seed {picture.seed} · {step}"
            preview = None if event.done >= event.total else event.preview
            self.report(
                Event(
                    stage=STAGE,
                    done=self.finished,
                    total=total,
                    message=words,
                    preview=preview,
                )
            )

        request = GenerateRequest(
            model=picture.drawer.model,
            prompt=picture.prompt,
            seed=picture.seed,
            steps=picture.steps,
            guidance=picture.guidance,
        )
        found = draw(warm, request, self.folder / picture.image, report=on)
        return self._against(picture, records.drawn(picture, found.picture), found.image)

    def _against(self, picture: Picture, row: GridRow, image: Image | None) -> GridRow:
        """The row with its distance from the reference's picture, where that is drawn."""
        twin = self.rows.get(picture.reference)
        if picture.reference == picture.key or not records.is_done(twin, self.folder):
            return row
        from vqdq.metrics import images

        assert twin is not None
        mine = _opened(self.folder / row["image"]) if image is None else image.convert("RGB")
        other = _opened(self.folder / twin["image"])
        distance = images.compare(other, mine)
        measured = row.copy()
        measured["reference"] = twin["image"]
        measured["psnr"] = None if distance.identical else distance.psnr_db
        measured["ssim"] = distance.ssim
        return measured

    def _keep(self, row: GridRow) -> None:
        self._write(row)
        self.finished += 1
        shown = str(self.folder / row["image"]) if row["image"] else None
        total = len(self.grid.pictures)
        self.report(
            Event(
                stage=STAGE,
                done=min(self.finished, total),
                total=total,
                message=row["label"],
                preview=shown,
            )
        )

    def _write(self, row: GridRow) -> None:
        records.append(self.folder, row)
        self.rows[row["key"]] = row


def _opened(path: Path) -> Image:
    from PIL import Image as pil

    with pil.open(path) as image:
        return image.convert("RGB")


def _failed(picture: Picture, fault: UserError) -> GridRow:
    recipe = picture.drawer.recipe
    return GridRow(
        key=picture.key,
        drawer=picture.drawer.key,
        image="",
        label=picture.drawer.model if recipe is None else recipe.name,
        prompt=picture.prompt,
        seed=picture.seed,
        steps=picture.steps,
        guidance=picture.guidance,
        seconds=0.0,
        peak_memory_bytes=0,
        bytes=0,
        bits_per_weight=0.0,
        activations="",
        initial_latent_sha256="",
        reference="",
        psnr=None,
        ssim=None,
        verdict=None,
        verdict_reason=None,
        error=Fault(what=fault.what, where=fault.where, remedy=fault.remedy),
    )


def _fault(error: Exception, where: str) -> UserError:
    """The fault in plain words.

    Raises:
        Exception: one that nobody expects; it ends the run.
    """
    known = as_user_error(error, where)
    if known is None:
        raise error
    return known
