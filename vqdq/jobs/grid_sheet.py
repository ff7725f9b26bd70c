"""A grid to keep: one labelled picture of a page, and a table of all its numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqdq.durable import write_text
from vqdq.jobs import run
from vqdq.jobs.draw import save_png
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.grid_cells import Cell, Grid, label
from vqdq.jobs.grid_records import GridRow, lost
from vqdq.jobs.requests import GridRequest
from vqdq.jobs.requests.grid import Axis
from vqdq.spreadsheet import cell as text_cell

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_GROUND, _INK, _MUTED, _EMPTY = "#ffffff", "#14181f", "#566070", "#eef1f5"
_GAP = 12
_SIZE, _SMALL = 15, 13
_LINES = 4  # of a label; what is longer ends in …
_HEADER = 176  # width of the row labels
_LEAST = 112  # width of a cell, so that its numbers fit
_CSV = (
    "column", "row", "page", "prompt", "seed", "steps", "guidance", "model", "bits_per_weight",
    "bytes", "seconds", "psnr_db", "ssim", "equal_to_reference", "judge", "image",
    "initial_latent_sha256", "not_drawn",
)  # fmt: skip


def write_sheet(
    path: Path, request: GridRequest, grid: Grid, rows: Mapping[str, GridRow], page: int = 0
) -> None:
    """Writes a page of the grid as a lossless PNG: title, labels, pictures at their own size.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    save_png(path, sheet(request, grid, rows, path.parent, page), request.to_json())


def sheet(
    request: GridRequest, grid: Grid, rows: Mapping[str, GridRow], folder: Path, page: int = 0
) -> Image:
    """Returns a page of the grid as a picture; `folder` holds the PNG files of `rows`."""
    from PIL import Image as pil
    from PIL import ImageDraw as pen

    columns, lines, _ = grid.shape
    cells = [[grid.at(column, line, page) for column in range(columns)] for line in range(lines)]
    opened = {key: _open(folder / row["image"]) for key, row in rows.items() if row["image"]}
    sizes = [image.size for image in opened.values()] or [(128, 128)]
    width, height = max(_LEAST, *(w for w, _ in sizes)), max(h for _, h in sizes)
    font, small = _font(_SIZE), _font(_SMALL)
    heads = _labels(grid.sides[0], font, width)
    left = _HEADER + _GAP if grid.sides[1] is not None else 0
    full = 2 * _GAP + left + columns * (width + _GAP) - _GAP
    full = max(full, 480)
    above = [*_title(request, grid, page), *_versions()]
    told = [part for text in above for part in _wrapped(text, small, full - 2 * _GAP, 3)]
    head = max((len(each) for each in heads), default=0) * (_SIZE + 4)
    top = _GAP + len(told) * (_SMALL + 6) + _GAP + head + (_GAP // 2 if head else 0)
    step = height + 2 * (_SMALL + 5) + _GAP
    image = pil.new("RGB", (full, top + lines * step + _GAP), _GROUND)
    draw = pen.Draw(image)
    _write(draw, told, (_GAP, _GAP), small, _MUTED, _SMALL + 6, first=_INK)
    for column, words in enumerate(heads):
        place = (_GAP + left + column * (width + _GAP), top - head - _GAP // 2)
        _write(draw, words, place, font, _INK, _SIZE + 4)
    for line, words in enumerate(_labels(grid.sides[1], font, _HEADER)):
        _write(draw, words, (_GAP, top + line * step), font, _INK, _SIZE + 4)
    for line, across in enumerate(cells):
        for column, cell in enumerate(across):
            x, y = _GAP + left + column * (width + _GAP), top + line * step
            row = rows.get(cell.picture.key) if cell.picture is not None else None
            if row is not None and row["image"]:
                image.paste(opened[row["key"]], (x, y))
            else:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_EMPTY)
                _write(draw, _wrapped(_absence(cell, row), small, width - 8, 6), (x + 4, y + 4),
                       small, _MUTED, _SMALL + 4)  # fmt: skip
            words = [] if row is None else caption(row, rows, grid)
            _write(draw, words, (x, y + height + 3), small, _MUTED, _SMALL + 4)
    return image


def caption(row: GridRow, rows: Mapping[str, GridRow], grid: Grid) -> list[str]:
    """Returns the two lines below a picture: distance and time, and what the judge found."""
    if row["error"] is not None:
        return []
    return [
        f"{distance(row)}{' · ' if distance(row) else ''}{row['seconds']:.2g} s",
        lost(row, rows, grid),
    ]


def distance(row: GridRow) -> str:
    """Returns the distance from the reference in words: "PSNR 34.1 dB", "equal", "" without one."""
    if not row["reference"]:
        return ""
    return "equal" if row["psnr"] is None else f"PSNR {row['psnr']:.1f} dB"


def table(request: GridRequest, grid: Grid, rows: Mapping[str, GridRow]) -> str:
    """Returns all cells as CSV, a line each; numbers in full."""
    del request
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_CSV)
    for cell in grid.cells:
        places = [
            "" if side is None else label(side, side.values[at])
            for side, at in zip(grid.sides, cell.place, strict=True)
        ]
        picture = cell.picture
        row = None if picture is None else rows.get(picture.key)
        if picture is None or row is None:
            why = cell.why or "not drawn yet"
            blank = [""] * (len(_CSV) - 4)
            writer.writerow([*map(text_cell, places), *blank, why])
            continue
        verdict, error = row["verdict"], row["error"]
        judged = "" if verdict is None else lost(row, rows, grid) or "as asked"
        writer.writerow(text_cell(value) for value in (
            *places, row["prompt"], row["seed"], row["steps"], row["guidance"], row["label"],
            row["bits_per_weight"], row["bytes"], row["seconds"], row["psnr"], row["ssim"],
            bool(row["reference"]) and row["psnr"] is None, judged, row["image"],
            row["initial_latent_sha256"], "" if error is None else error["what"],
        ))  # fmt: skip
    return text.getvalue()


def write_table(path: Path, request: GridRequest, grid: Grid, rows: Mapping[str, GridRow]) -> None:
    """Writes `table` to a UTF-8 file.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    with disk_faults(path):
        write_text(path, table(request, grid, rows))


def fixed(request: GridRequest) -> list[str]:
    """Returns what no axis changes, in words."""
    names = [axis.name for axis in request.axes]
    words = [] if "prompt" in names else [f"“{request.prompt}”"]
    words += [] if "seed" in names else [f"seed {request.seed}"]
    words += [] if "steps" in names else [f"{request.steps} steps"]
    words += [] if "guidance" in names else [f"guidance {request.guidance:g}"]
    if "bits" in names and "method" not in names:
        words.append(request.method)
    if "method" in names and "bits" not in names:
        words.append(f"{request.bits} bits")
    return words


def _title(request: GridRequest, grid: Grid, page: int) -> list[str]:
    side = grid.sides[2]
    name = f" · {label(side, side.values[page])}" if side is not None else ""
    return [
        f"{request.variant or request.model}: {request.title}{name}",
        " · ".join(fixed(request)),
    ]


def _versions() -> list[str]:
    known = run.versions()
    return [" · ".join(f"{name} {known[name]}" for name in ("vqdq", "torch", "diffusers"))]


def _absence(cell: Cell, row: GridRow | None) -> str:
    if cell.picture is None:
        return cell.why
    if row is None or row["error"] is None:
        return "Not drawn yet."
    return f"Not drawn: {row['error']['what']}"


def _labels(side: Axis | None, font: Font, width: int) -> list[list[str]]:
    if side is None:
        return []
    return [_wrapped(label(side, value), font, width, _LINES) for value in side.values]


def _wrapped(text: str, font: Font, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is wider is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    lines += [line] if line else []
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_cut(each, font, width) for each in lines]


def _cut(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _write(
    draw: ImageDraw,
    lines: Sequence[str],
    place: tuple[int, int],
    font: Font,
    colour: str,
    step: int,
    *,
    first: str | None = None,
) -> None:
    for at, line in enumerate(lines):
        ink = first if first is not None and at == 0 else colour
        draw.text((place[0], place[1] + at * step), line, fill=ink, font=font)


def _font(size: int) -> Font:
    from PIL import ImageFont as fonts

    return fonts.load_default(size)


def _open(path: Path) -> Image:
    from PIL import Image as pil

    with pil.open(path) as image:
        return image.convert("RGB")
