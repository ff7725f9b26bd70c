"""What came out of a sweep, read from its receipts: a row a picture, a row a recipe."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.jobs import grid_records
from vqdq.jobs.grid_records import GridRow
from vqdq.jobs.results import Picture as Drawn
from vqdq.jobs.sweep_addresses import Wish
from vqdq.jobs.sweep_plan import SweepPlan
from vqdq.jobs.sweep_store import Store
from vqdq.metrics.medians import median_interval
from vqdq.metrics.proportions import Interval, wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A picture that is there.

    Attributes:
        row: as a grid's; `image` and `reference` are names of results, not of files.
        score: distances from the original by name; {} for an original.
        worker: who drew it.
    """

    wish: Wish
    row: GridRow
    score: Mapping[str, float | None]
    worker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One model or recipe over all its pictures.

    Attributes:
        model, recipe: their names; "" is the original.
        bytes: of the denoiser's weight file; `bits_per_weight`: true ones.
        pictures: that were compared; `seconds`: median of drawing one.
        measures: median with its interval by name; PSNR is inf for equal pictures.
        passed: share of pictures that show what was asked, where they can be judged.
    """

    model: str
    recipe: str
    bytes: int
    bits_per_weight: float
    pictures: int
    seconds: float
    measures: Mapping[str, Interval]
    passed: Interval | None


def read(store: Store, plan: SweepPlan) -> list[Found]:
    """Returns the pictures of a plan that are in the store, in the asked order."""
    wanted = {name for wish in plan.wishes for name in (wish.image, wish.score) if name}
    receipts = store.receipts(wanted & store.known())
    found: list[Found] = []
    for wish in plan.wishes:
        receipt = receipts.get(wish.image)
        if receipt is None:
            continue
        score: dict[str, Any] = receipts.get(wish.score, {}).get("score", {})
        row = _row(wish, receipt["picture"], score)
        worker = str(receipt.get("worker", ""))
        found.append(Found(wish=wish, row=row, score=score, worker=worker))
    return found


def summaries(found: Sequence[Found]) -> list[Summary]:
    """Returns a summary of each model and recipe, in the asked order."""
    groups: dict[str, list[Found]] = {}
    for each in found:
        groups.setdefault(each.row["drawer"], []).append(each)
    return [_summary(group) for group in groups.values()]


def pictures_csv(found: Sequence[Found]) -> str:
    """Returns all pictures as CSV, numbers in full; an equal picture has no PSNR."""
    names = [name for name in (found[-1].score if found else {}) if name != "identical"]
    head = (
        "model", "recipe", "prompt", "seed", "steps", "guidance", "bits_per_weight", "bytes",
        "seconds", "peak_memory_bytes", *names, "equal_to_original", "shows_what_was_asked",
        "initial_latent_sha256", "result", "worker",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    for each in found:
        row, verdict = each.row, each.row["verdict"]
        rows.append((
            _model(each), _recipe(each), row["prompt"], row["seed"], row["steps"], row["guidance"],
            row["bits_per_weight"], row["bytes"], row["seconds"], row["peak_memory_bytes"],
            *(each.score.get(name, "") for name in names), each.score.get("identical", ""),
            "" if verdict is None else verdict["passed"], row["initial_latent_sha256"],
            each.wish.image, each.worker,
        ))  # fmt: skip
    return _csv(head, rows)


def recipes_csv(rows: Sequence[Summary]) -> str:
    """Returns the summaries as CSV; intervals are of 95 % or as near as the count allows."""
    names = list(dict.fromkeys(name for row in rows for name in row.measures))
    head = ["model", "recipe", "bits_per_weight", "bytes", "pictures", "seconds"]
    for name in (*names, "passed"):
        head += [name, f"{name}_low", f"{name}_high"]
    lines: list[Sequence[Any]] = []
    for row in rows:
        ends: list[Any] = []
        for interval in (*(row.measures.get(name) for name in names), row.passed):
            blank = interval is None
            ends += ["", "", ""] if blank else [interval.value, interval.low, interval.high]
        lines.append(
            (row.model, row.recipe or "original", row.bits_per_weight, row.bytes, row.pictures,
             row.seconds, *ends)
        )  # fmt: skip
    return _csv(head, lines)


def to_json(row: Summary) -> dict[str, Any]:
    """Returns a summary as JSON values; null where JSON has no infinity."""

    def ends(interval: Interval | None) -> dict[str, float | None] | None:
        if interval is None:
            return None
        values = {"value": interval.value, "low": interval.low, "high": interval.high}
        return {name: each if math.isfinite(each) else None for name, each in values.items()}

    return {
        "model": row.model,
        "recipe": row.recipe or "original",
        "bits_per_weight": row.bits_per_weight,
        "bytes": row.bytes,
        "pictures": row.pictures,
        "seconds": row.seconds,
        "measures": {name: ends(each) for name, each in row.measures.items()},
        "passed": ends(row.passed),
    }


def grid_row(wish: Wish, store: Store, folder: Path) -> GridRow | None:
    """Returns a picture as the row of a grid, its file copied to `folder`; None without one."""
    receipt = store.receipt(wish.image)
    if receipt is None:
        return None
    scored = store.receipt(wish.score) if wish.score else None
    row = _row(wish, receipt["picture"], {} if scored is None else scored["score"])
    store.fetch(wish.image, folder / wish.picture.image)
    reference = f"{wish.picture.reference}.png" if scored is not None else ""
    row["image"], row["reference"] = wish.picture.image, reference
    return row


def _row(wish: Wish, found: Drawn, score: Mapping[str, Any]) -> GridRow:
    row = grid_records.drawn(wish.picture, found)
    row["image"] = wish.image
    if score:
        row["reference"] = wish.reference
        row["psnr"], row["ssim"] = score.get("psnr"), score.get("ssim")
    return row


def _summary(group: Sequence[Found]) -> Summary:
    first = group[0]
    scored = [each.score for each in group if each.score]
    names = [name for name in (scored[0] if scored else {}) if name != "identical"]
    judged = [v["passed"] for each in group if (v := each.row["verdict"]) is not None]
    return Summary(
        model=_model(first),
        recipe=_recipe(first),
        bytes=first.row["bytes"],
        bits_per_weight=first.row["bits_per_weight"],
        pictures=len(scored) or len(group),
        seconds=median_interval([each.row["seconds"] for each in group]).value,
        measures={name: median_interval(_values(scored, name)) for name in names},
        passed=wilson(sum(judged), len(judged)) if judged else None,
    )


def _values(scored: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    """A distance that JSON could not hold is that of equal pictures: no end of decibels."""
    return [math.inf if (value := each[name]) is None else float(value) for each in scored]


def _model(each: Found) -> str:
    drawer = each.wish.picture.drawer
    return Path(drawer.model).name or drawer.model


def _recipe(each: Found) -> str:
    recipe = each.wish.picture.drawer.recipe
    return "" if recipe is None else recipe.name


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_safe(cell) for cell in row] for row in rows)
    return text.getvalue()


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would compute is marked as text."""
    if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{cell}"
    return "" if cell is None else cell
