"""The report of a sweep: what each recipe costs and keeps, as a plot, a table and sheets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vqdq.jobs import grid_sheet
from vqdq.jobs.frontier import COSTS, QUALITIES, Frontier, Point, scale, with_front
from vqdq.jobs.grid_cells import expand
from vqdq.jobs.grid_records import GridRow
from vqdq.jobs.requests import Axis, GridRequest
from vqdq.jobs.requests.grid import ORIGINAL
from vqdq.jobs.sweep_file import Sweep
from vqdq.jobs.sweep_run import Written
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_table import Found, Summary
from vqdq.metrics.proportions import Interval
from vqdq.quantities import digits, duration, size
from vqdq.report.document import Album, document, facts, plot, section, table
from vqdq.views import frontier as drawing
from vqdq.views.style import LIGHT, PAGE

REPORT = "report.html"
_PROMPTS, _RECIPES = 6, 8
"""On a sheet: rows and columns; of more prompts the first are shown, of more recipes all."""


def write(store: Store, sweep: Sweep, written: Written) -> list[str]:
    """Returns the names of the figures, sheets and the HTML file, after writing them."""
    names: list[str] = []
    album = Album()
    pictures, plots = "", ""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number, model in enumerate(sweep.models):
            mine = [f for f in written.found if f.wish.picture.drawer.model == model]
            suffix = f"-{number + 1}" if len(sweep.models) > 1 else ""
            rows = [row for row in written.rows if row.model == (Path(model).name or model)]
            found = plotted(rows, sweep)
            if found.drawn:
                plots += plot(drawing.frontier(found, PAGE))
                for kind, content in _files(found):
                    store.write(f"frontier{suffix}.{kind}", content)
                    names.append(f"frontier{suffix}.{kind}")
            for page, sheet in enumerate(_sheets(store, sweep, model, mine, folder)):
                name = f"sheet{suffix}-{page + 1}.png"
                store.write(name, sheet.read_bytes())
                pictures += album.image(sheet, f"Pictures of {Path(model).name}, {page + 1}")
                names.append(name)
    asked = {
        "Models": ", ".join(Path(model).name or model for model in sweep.models),
        "Prompts": len(sweep.prompts),
        "Seeds": ", ".join(map(str, sweep.seeds)),
        "Steps": sweep.steps,
        "Guidance": f"{sweep.guidance:g}",
        "Not made": "; ".join(written.values["problems"].values()),
    }
    page = document(
        sweep.name or "Sweep",
        f"{len(written.found):,} of {sweep.count:,} pictures",
        (
            section("Size and quality", plots),
            section("Recipes", _table(written.rows)),
            section("Pictures", pictures),
            section("Settings", facts(asked)),
        ),
        album=album,
    )
    store.write(REPORT, page.encode())
    return [*names, REPORT]


def plotted(rows: Sequence[Summary], sweep: Sweep) -> Frontier:
    """Returns the recipes of one model as points: bytes across, the first metric up."""
    quality = scale(QUALITIES, sweep.metrics[0] if sweep.metrics else "psnr")
    methods = {recipe.name: _method(recipe.rules) for recipe in sweep.recipes}
    points = [
        Point(
            name=row.recipe,
            label=row.recipe,
            method=methods[row.recipe],
            cost=row.bytes / 1e6,
            quality=row.measures.get(quality.name),
            count=row.pictures,
        )
        for row in rows
        if row.recipe
    ]
    original = next((row for row in rows if not row.recipe), None)
    return Frontier(
        cost=COSTS[0],
        quality=quality,
        points=with_front(points, quality),
        reference=None
        if original is None
        else Point(name="", label="FP16", method="", cost=original.bytes / 1e6, quality=None),
    )


def _method(rules: Sequence[object]) -> str:
    methods = [method for rule in rules if (method := getattr(rule, "method", None))]
    return str(methods[-1]) if methods else ""


def _files(found: Frontier) -> Iterator[tuple[str, bytes]]:
    view = drawing.frontier(found, LIGHT)
    yield "png", view.png()
    yield "svg", view.svg_file()
    yield "csv", view.data.to_csv().encode()


def _sheets(
    store: Store, sweep: Sweep, model: str, found: Sequence[Found], folder: Path
) -> Iterator[Path]:
    """Yields sheets of the first prompts with the first seed: the grid's own, recipes across."""
    rows = {each.wish.picture.key: each for each in found}
    known = {recipe.name: recipe for recipe in sweep.recipes}
    for start in range(0, max(1, len(sweep.recipes)), _RECIPES):
        names = [recipe.name for recipe in sweep.recipes[start : start + _RECIPES]]
        request = GridRequest(
            model=model,
            axes=(
                Axis(name="recipe", values=(ORIGINAL, *names)),
                Axis(name="prompt", values=sweep.prompts[:_PROMPTS]),
            ),
            seed=sweep.seeds[0],
            steps=sweep.steps,
            guidance=sweep.guidance,
        ).with_made({known[name].digest: name for name in names})
        grid = expand(request, known.__getitem__)
        shown: dict[str, GridRow] = {}
        for picture in grid.pictures:
            if (each := rows.get(picture.key)) is not None:
                row = each.row.copy()
                row["image"] = picture.image
                store.fetch(each.wish.image, folder / picture.image)
                shown[picture.key] = row
        if shown:
            path = folder / f"sheet-{start}.png"
            grid_sheet.write_sheet(path, request, grid, shown)
            yield path


def _table(rows: Sequence[Summary]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.measures))
    head = ("Recipe", "Model", "Bits", "Size", "Time", "Pictures", *map(str.upper, names), "Judge")
    return table(
        head,
        [
            (
                row.recipe or "Original",
                row.model,
                f"{row.bits_per_weight:.3g}",
                size(row.bytes),
                duration(row.seconds),
                row.pictures,
                *(_ends(row.measures.get(name)) for name in names),
                "" if row.passed is None else f"{100 * row.passed.value:.0f} %",
            )
            for row in rows
        ],
    )


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.value == float("inf"):
        return "equal"
    if interval.low == interval.high:  # one picture has no interval
        return digits(interval.value)
    return f"{digits(interval.value)} ({digits(interval.low)}–{digits(interval.high)})"
