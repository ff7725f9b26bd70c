"""The report of a comparison: pictures, numbers, the plot, the certificate, recipes, versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs import arithmetic, batch, frontier, provenance
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.run import RunRecord
from vqdq.metrics.medians import median_interval
from vqdq.places import inside
from vqdq.quantities import digits, duration, size
from vqdq.report.content import Content, certificate, passed, recipe_text
from vqdq.report.document import Album, facts, fold, plot, section, table, text
from vqdq.ui.wording import decibels
from vqdq.views import frontier as plots
from vqdq.views.style import PAGE

_MEASURES = (
    ("psnr", "PSNR"),
    ("ssim", "SSIM"),
    ("flip", "FLIP"),
    ("latent_cosine", "Latent cosine"),
)


def content(run: RunRecord, request: CompareRequest, album: Album) -> Content:
    """Returns the parts of the report."""
    result = run.result or {}
    sets = _sets(run, request, result)
    pictures = [(each, row) for each in sets for row in _rows(each)]
    shown = sorted(sets, key=_changed)
    many = len(sets) > 1
    drawn = "".join(
        (f"<h3>{escape(each['prompt'])} · seed {each['seed']}</h3>" if many else "")
        + _pictures(run.folder, each, album)
        for each in shown
    )
    title = run.name or (request.prompt if not many else f"{len(sets)} prompts and seeds")
    return Content(
        title=title,
        subtitle=(
            f"{request.model} and {len(request.variants)} compressed · seed {request.seed} ·"
            f" {request.steps} steps · guidance {request.guidance:g}"
        ),
        sections=(
            section("Pictures", drawn),
            section("Numbers", _numbers(sets, many=many)),
            section("Size and quality", _plot(run, sets)),
            section("Certificate", certificate(result.get("certificate") or {})),
            section("Recipes", _recipes(run.folder, sets)),
        ),
        rows=[_flat(each, row) for each, row in pictures],
        values={"request": request.to_json(), **result, "pictures": sets if many else []},
    )


def _sets(
    run: RunRecord, request: CompareRequest, result: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if request.is_batch:
        told = result.get("pictures") or batch.read(run.folder, request)
        return [dict(each) for each in told if each.get("reference")]
    names = ("reference", "variants", "floor")
    asked = {"prompt": request.prompt, "seed": request.seed}
    return [asked | {name: result.get(name) for name in names}]


def _rows(each: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in (each.get("reference"), *(each.get("variants") or ())) if row]


def _changed(each: Mapping[str, Any]) -> float:
    """The worst PSNR of a set: what changed most comes first."""
    found = [_psnr(row) for row in each.get("variants") or () if row]
    return min(found, default=math.inf)


def _psnr(row: Mapping[str, Any]) -> float:
    return math.inf if row.get("psnr") is None else float(row["psnr"])


def _pictures(folder: Path, each: Mapping[str, Any], album: Album) -> str:
    reference, *variants = _rows(each)
    figures = [_figure(folder, reference, album, "reference")]
    figures += [_figure(folder, row, album, "variant") for row in variants]
    return f'<div class="set">{"".join(figures)}</div>'


def _figure(folder: Path, row: Mapping[str, Any], album: Album, kind: str) -> str:
    label = str(row["label"])
    image = album.image(inside(folder, row["image"]), label)
    maps = "".join(
        f"<figure>{album.image(inside(folder, row[name]), f'{words}: {label}')}"
        f"<figcaption>{words}</figcaption></figure>"
        for name, words in (("error_map", "Absolute difference"), ("flip_map", "FLIP error"))
        if row.get(name)
    )
    more = f'<details class="maps"><summary>Difference</summary>{maps}</details>' if maps else ""
    return (
        f'<figure class="{kind}"><div class="frame">{image}</div>'
        f"<figcaption><b>{escape(label)}</b></figcaption>{facts(_facts(row))}{more}</figure>"
    )


def _facts(row: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {}
    if "psnr" in row:
        found["PSNR"] = decibels(_psnr(row))
        for name, words in _MEASURES[1:]:
            if row.get(name) is not None:
                found[words] = digits(row[name])
    found["Weights"] = size(row.get("bytes"))
    once = float(row.get("once_seconds") or 0.0)
    found["Time"] = duration(None if row.get("seconds") is None else row["seconds"] - once)
    if once:
        found["Once, at the first picture"] = duration(once)
    found["Memory"] = size(row.get("peak_memory_bytes"))
    if row.get("arithmetic"):
        found["Activations"] = row.get("activations")
        found["Layers"] = arithmetic.in_words(row["arithmetic"])
    found["Judge"] = passed(row)
    return found


def _numbers(sets: Sequence[Mapping[str, Any]], *, many: bool) -> str:
    """Medians with intervals for a batch, and every picture's numbers in a fold."""
    head = ("Model", "PSNR", "SSIM", "FLIP", "Latent cosine", "Time", "Memory", "Size", "n")
    labels: dict[str, list[Mapping[str, Any]]] = {}
    for each in sets:
        for row in _rows(each):
            labels.setdefault(str(row["label"]), []).append(row)
    body = table(head, [_median_row(label, rows) for label, rows in labels.items()])
    note = (
        '<p class="note">Medians over the sets with a 95 % interval between order statistics; below'
        " six sets the whole range.</p>"
        if many
        else ""
    )
    floors = [each["floor"] for each in sets if each.get("floor")]
    if floors:
        rows = [(f"Floor: {floor['dtype']}", *_apart(floor["rounding"])) for floor in floors[:1]]
        if floors[0].get("repeat"):
            rows.append(("Floor: drawn again", *_apart(floors[0]["repeat"])))
        body += table(("Full precision against itself", *(w for _, w in _MEASURES)), rows)
    if not many:
        return body
    lines = [
        (f"{each['prompt']} · seed {each['seed']}", row["label"], *_apart(row), passed(row))
        for each in sets
        for row in _rows(each)
    ]
    names = ("Set", "Model", *(words for _, words in _MEASURES), "Judge")
    return body + note + fold("Every picture", table(names, lines))


def _apart(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "psnr" not in row:
        return ("", "", "", "")
    return (decibels(_psnr(row)), *(digits(row.get(name)) for name, _ in _MEASURES[1:]))


def _median_row(label: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    cells: list[str] = [label]
    for name, _ in _MEASURES:
        known = [row for row in rows if name in row and (name == "psnr" or row[name] is not None)]
        values = [_psnr(row) if name == "psnr" else float(row[name]) for row in known]
        cells.append(_interval(values, "dB" if name == "psnr" else ""))
    for name, words in (("seconds", duration), ("peak_memory_bytes", size), ("bytes", size)):
        cells.append(words(median_interval([float(row[name]) for row in rows]).value))
    return (*cells, str(len(rows)))


def _interval(values: Sequence[float], unit: str) -> str:
    if not values:
        return "–"
    found = median_interval(values)
    middle = decibels(found.value) if unit == "dB" else digits(found.value)
    if len(values) == 1:
        return middle
    return f"{middle} ({digits(found.low)} – {digits(found.high)})"


def _plot(run: RunRecord, sets: Sequence[Mapping[str, Any]]) -> str:
    """Size against PSNR; nothing for a single variant, which needs no plot."""
    first = [row for row in sets[0].get("variants") or () if row] if sets else []
    if len(first) < 2:
        return ""
    models = [
        ModelEntry(
            name=str(row["variant"]),
            path=run.folder,
            created=-math.inf,
            title=str(row["label"]),
            measured_bytes=row["bytes"],
            reference_bytes=row["reference_bytes"],
        )
        for row in first
    ]
    found = frontier.frontier(
        models,
        [
            frontier.sample(run, row, (each["prompt"], each["seed"]), each["reference"])
            for each in sets
            for row in each["variants"]
            if row
        ],
        cost=frontier.COSTS[0],
        quality=frontier.QUALITIES[0],
        methods={model.name: model.name for model in models},
    )
    return plot(plots.frontier(found, PAGE))


def _recipes(folder: Path, sets: Sequence[Mapping[str, Any]]) -> str:
    """The recipe of each model, as its first picture carries it."""
    parts: list[str] = []
    for row in _rows(sets[0]) if sets else ():
        try:
            found = provenance.read(inside(folder, row["image"]))
        except UserError:
            continue  # drawn before pictures carried them
        if found.recipe is not None:
            summary = f"{row['label']} · {found.digest[:12]}"
            parts.append(fold(summary, text(recipe_text(found.recipe))))
    return "".join(parts)


def _flat(each: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """One picture as a line of the table."""
    names = ("variant", "label", "psnr", "ssim", "flip", "latent_cosine", "mean_error", "max_error")
    costs = ("seconds", "peak_memory_bytes", "bytes", "reference_bytes", "bits_per_weight")
    verdict = row.get("verdict") or {}
    return {
        "prompt": each["prompt"],
        "seed": each["seed"],
        **{name: row.get(name) for name in (*names, *costs)},
        "equal": "psnr" in row and row["psnr"] is None,
        "shows_what_was_asked": verdict.get("passed"),
        "image": row.get("image"),
        "initial_latent_sha256": row.get("initial_latent_sha256"),
    }
