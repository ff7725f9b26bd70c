"""`vqdq inspect`: what goes into the layers and where words are looked at, as figures and data."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqdq.cli.checks import asking, check_models, new_path
from vqdq.cli.terminal import Output, table
from vqdq.durable import publish
from vqdq.errors import UserError
from vqdq.jobs import inspect as inspecting
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.inspected import Inspected, opened
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.results import InspectResult
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Event
from vqdq.quantities import duration

FIGURES = "figures"


def run(options: argparse.Namespace, output: Output) -> int:
    """Records one picture with each model, and writes figures and data into a new folder."""
    with asking():
        steps = options.steps
        if options.step is not None and not 1 <= options.step <= steps:
            raise UserError(
                f"there is no step {options.step}.", where="step", remedy=f"1 to {steps}."
            )
        request = InspectRequest(
            model=options.model,
            variants=tuple(options.variants),
            prompt=options.prompt,
            seed=options.seed,
            steps=steps,
            guidance=options.guidance,
            layer=options.layer,
            step=steps // 2 if options.step is None else options.step - 1,
        )
    target = new_path(options.output)
    check_models(options.model, *options.variants, report=output.report)
    with asking():
        inspecting.matching(options.layer, _layers(options.model))
    part = target.with_name(f".{target.name}.part")
    with disk_faults(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        result = inspecting.execute(request, part, report=output.report, cache=WarmPipelines())
        models = opened(
            part, result, [_scores(name) for name in (options.model, *options.variants)]
        )
        layers = result["layers"] or [result["layer"]]
        drawn = _draw(models, layers, result["step"], part / FIGURES, options, output)
        report = {"request": request.to_json(), **result, "figures": drawn}
        with disk_faults(target):
            write_json(part / "report.json", report)
            publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    lines = [str(target), *_table(models, result), *_words(result, len(drawn))]
    output.result(report | {"output": str(target)}, lines)
    return 0


def _draw(
    models: Sequence[Inspected],
    layers: Sequence[str],
    step: int,
    folder: Path,
    options: argparse.Namespace,
    output: Output,
) -> list[str]:
    """Writes every figure as PNG, SVG and CSV; returns their names."""
    from vqdq.views import catalogue, style  # heavy: matplotlib

    half = options.half
    found = catalogue.figures(
        models, style.DARK if options.dark else style.LIGHT, layers=layers, step=step, half=half
    )
    names: list[str] = []
    for done, (name, draw) in enumerate(found.items()):
        output.report(Event(stage="figures", done=done, total=len(found), message=name))
        view = draw()
        if view is None:
            continue
        path = folder / name
        with disk_faults(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.png").write_bytes(view.png())
            path.with_name(f"{path.name}.svg").write_bytes(view.svg_file())
            path.with_name(f"{path.name}.csv").write_text(view.data.to_csv(), encoding="utf-8")
        names.append(name)
    for index, model in enumerate(models):
        if model.shown:
            names.append(_strip(model, folder, index))
    output.report(Event(stage="figures", done=len(found), total=len(found)))
    return names


def _strip(model: Inspected, folder: Path, index: int) -> str:
    """Writes the previews as one picture: the reference above the variant, a column a step."""
    import numpy as np
    from PIL import Image

    name = f"previews-variant-{index}"
    rows = [np.concatenate(list(way), axis=1) for way in model.previews]
    with disk_faults(folder):
        Image.fromarray(np.concatenate(rows, axis=0)).save(folder / f"{name}.png")
    return name


def _layers(model: str) -> tuple[str, ...]:
    """The names of a model's layers, without its weights."""
    from vqdq import capture
    from vqdq.models import sources
    from vqdq.models.denoisers import skeleton

    source = sources.locate(model)
    return capture.watchable(skeleton(source.config, where=str(source.folder)))


def _scores(model: str) -> Any:
    """How a compressed folder's recipe rounds attention scores; None where it does not."""
    from vqdq.recipe import load_recipe

    folder = Path(model)
    path = folder / "recipe.json"
    if not path.is_file():
        return None
    found = load_recipe(path, folder).attention
    return found if found is not None and found.scores != "off" else None


def _table(models: Sequence[Inspected], result: InspectResult) -> list[str]:
    """One line a model: what stands out, and how far the variant strays."""
    import numpy as np

    rows = [("  model", "worst layer output", "SQNR at the end", "recorded in")]
    for model, part in zip(models, (result["reference"], *result["variants"]), strict=True):
        errors = model.activity.scalars.paired_sqnr_db[-1]
        worst = end = ""
        if np.isfinite(errors).any():
            layer, step = np.unravel_index(int(np.nanargmin(errors)), errors.shape)
            worst = f"{errors[layer, step]:.1f} dB, {model.activity.layers[layer]}, step {step + 1}"
        if model.errors is not None:
            last = float(model.errors.free_sqnr_db[-1])
            end = "equal" if np.isinf(last) else f"{last:.1f} dB"
        rows.append(("  " + model.label, worst, end, duration(part["seconds"])))
    return table(rows)


def _words(result: InspectResult, figures: int) -> list[str]:
    lines: list[str] = []
    plain = result["reference"]["plain_seconds"]
    if plain:
        factor = result["reference"]["seconds"] / plain
        lines.append(f"  Recording took {factor:.2g} × a plain drawing (estimated).")
    if result["matched"] > len(result["layers"]):
        lines.append(
            f"  {result['matched']} layers match; the first {len(result['layers'])} are shown."
        )
    if not result["layers"]:
        lines.append(f"  No layer was named; shown is {result['layer']}, which stands out.")
    lines += [f"  {why}" for why in _reasons(result)]
    return [*lines, f"  {figures} figures as PNG, SVG and CSV in {FIGURES}/; records as .npz."]


def _reasons(result: InspectResult) -> list[str]:
    parts: list[Mapping[str, Any]] = [result["reference"], *result["variants"]]
    names = ("attention_reason", "trajectory_reason")
    return list(dict.fromkeys(part[name] for part in parts for name in names if part[name]))
