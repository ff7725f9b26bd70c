"""The report of a grid: a table of pictures a page, with what each axis says."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from vqdq.jobs import grid as drawing
from vqdq.jobs import grid_records
from vqdq.jobs.grid_cells import Cell, Grid, expand, label
from vqdq.jobs.grid_records import GridRow
from vqdq.jobs.requests import GridRequest
from vqdq.jobs.run import RunRecord
from vqdq.places import inside
from vqdq.quantities import digits, duration, size
from vqdq.report.content import Content, passed
from vqdq.report.document import Album, facts, section, table
from vqdq.ui.wording import decibels


def content(run: RunRecord, request: GridRequest, album: Album) -> Content:
    """Returns the parts of the report.

    Raises:
        UserError: the request names something that is not there any more.
    """
    grid = expand(request, drawing.preset)
    rows = grid_records.read(run.folder)
    pages = "".join(_page(run, grid, rows, page, album) for page in range(grid.shape[2]))
    listed = [rows[picture.key] for picture in grid.pictures if picture.key in rows]
    return Content(
        title=run.title,
        subtitle=(
            f"{request.model} · {len(grid.pictures)} pictures in {len(grid.cells)} cells · seed"
            f" {request.seed} · {request.steps} steps · guidance {request.guidance:g}"
        ),
        sections=(
            section("Pictures", pages),
            section("Numbers", _numbers(listed)),
            section("Settings", facts({"Model": request.model, "Prompt": request.prompt})),
        ),
        rows=[_flat(row) for row in listed],
        values={"request": request.to_json(), **(run.result or {}), "pictures": listed},
    )


def _page(run: RunRecord, grid: Grid, rows: Mapping[str, GridRow], page: int, album: Album) -> str:
    across, down, deep = grid.sides
    columns, lines, _ = grid.shape
    heading = f"<h3>{escape(label(deep, deep.values[page]))}</h3>" if deep is not None else ""
    top = "".join(
        f'<th scope="col">{escape(label(across, across.values[x]) if across else "")}</th>'
        for x in range(columns)
    )
    body = ""
    for y in range(lines):
        name = escape(label(down, down.values[y])) if down is not None else ""
        cells = "".join(_cell(run, grid.at(x, y, page), rows, album) for x in range(columns))
        body += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    return (
        f'{heading}<div class="scroll" tabindex="0"><table class="grid"><thead><tr><td></td>{top}'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(run: RunRecord, cell: Cell, rows: Mapping[str, GridRow], album: Album) -> str:
    if cell.picture is None:
        return f"<td>{escape(cell.why)}</td>"
    row = rows.get(cell.picture.key)
    if row is None or row["error"] is not None:
        why = "not drawn" if row is None or row["error"] is None else row["error"]["what"]
        return f'<td class="bad">{escape(why)}</td>'
    told = f"{row['label']}, {row['prompt']}, seed {row['seed']}"
    numbers = [_psnr(row), passed(row)]
    return (
        f"<td>{album.image(inside(run.folder, row['image']), told)}"
        f"{escape(' · '.join(filter(None, numbers)))}</td>"
    )


def _psnr(row: GridRow) -> str:
    if not row["reference"]:
        return ""
    return decibels(float("inf") if row["psnr"] is None else row["psnr"])


def _numbers(rows: list[GridRow]) -> str:
    head = ("Model", "Prompt", "Seed", "Steps", "Guidance", "PSNR", "SSIM", "Time", "Size", "Judge")
    return table(
        head,
        [
            (
                row["label"],
                row["prompt"],
                row["seed"],
                row["steps"],
                f"{row['guidance']:g}",
                _psnr(row),
                digits(row["ssim"]) if row["reference"] else "",
                duration(row["seconds"]),
                size(row["bytes"]),
                passed(row),
            )
            for row in rows
        ],
    )


def _flat(row: GridRow) -> dict[str, object]:
    names = (
        "label", "prompt", "seed", "steps", "guidance", "psnr", "ssim", "seconds",
        "peak_memory_bytes", "bytes", "bits_per_weight", "image", "initial_latent_sha256",
    )  # fmt: skip
    verdict = row["verdict"]
    return {
        **{name: row[name] for name in names},
        "shows_what_was_asked": None if verdict is None else verdict["passed"],
        "error": None if row["error"] is None else row["error"]["what"],
    }
