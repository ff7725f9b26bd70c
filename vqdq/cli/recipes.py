"""The commands around a recipe: what it would give, its calibration, and the compression itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vqdq import also
from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.cli import inputs as input_words
from vqdq.cli import modes as mode_words
from vqdq.cli.checks import asking, check_models, in_a_folder, new_path
from vqdq.cli.terminal import Output, table
from vqdq.errors import UserError
from vqdq.jobs import arithmetic, compress, costs, inputs
from vqdq.jobs import plan as planning
from vqdq.jobs.requests import CompressRequest, PlanRequest
from vqdq.jobs.results import CompressResult, PlanResult
from vqdq.jobs.run import read_json, write_json
from vqdq.jobs.variants import require_calibration, variant
from vqdq.params import describe
from vqdq.places import expanded
from vqdq.quantities import duration, size

if TYPE_CHECKING:
    from vqdq.recipe import Plan, Recipe

_VERBS = {"ranges": "find ranges"}  # other stages are verbs already
ESTIMATED = "Estimated from a computer with two cores."


class Stopped(KeyboardInterrupt):
    """Ctrl-C with something to say."""


def plan(options: argparse.Namespace, output: Output) -> int:
    """Says what a recipe makes of a model; with a target, which bits each layer gets."""
    if options.save:
        in_a_folder(_absolute(options.save))
    ready, found = _resolved(options, output)
    shares = None if found is None else {row["name"]: row["sensitivity"] for row in found["layers"]}
    recipe = ready.recipe
    seconds = _seconds(options.model, ready)
    estimates = mode_words.estimates(ready, options.cache)
    rows = [
        {
            "name": item.layer.name,
            "method": item.method,
            "settings": None if item.params is None else item.params.to_json(),
            "bits_per_weight": item.bits_per_weight,
            "bytes": item.storage.total_bytes,
            "sensitivity": None if shares is None else shares[item.layer.name],
            **input_words.of_layer(item),
        }
        for item in ready.layers
    ]
    values = {
        "model": options.model,
        "component": ready.component.name,
        "recipe": recipe.to_json(),
        "recipe_digest": recipe.digest,
        "predicted_bytes": ready.predicted_bytes,
        "reference_bytes": ready.reference_bytes,
        "bits_per_weight": ready.bits_per_weight,
        "model_bits_per_weight": ready.model_bits_per_weight,
        "other_components": also.other_values(ready),
        "total_bytes": ready.total_bytes,
        "quantized_layers": len(ready.quantized),
        "calibration": _calibration_words(ready, options.calibration),
        "activations": inputs.in_words(recipe),
        "activated_layers": len(ready.activated),
        "arithmetic": arithmetic.expected(ready),
        "estimated_seconds": seconds,
        "estimated_seconds_source": ESTIMATED,
        "modes": mode_words.values(estimates),
        "layers": rows,
    }
    if found is not None:
        values["average_bits"] = found["bits_per_weight"]
        values["predicted_sqnr_db"] = found["predicted_sqnr_db"]
    lines = [
        f"{options.model}, {ready.component.name}, with {recipe.name}",
        f"  {len(ready.quantized)} of {len(ready.layers)} layers, "
        f"{ready.bits_per_weight:.3f} bits a weight in them, "
        f"{ready.model_bits_per_weight:.3f} over everything",
        f"  {size(ready.predicted_bytes)} instead of {size(ready.reference_bytes)}"
        f" ({ready.predicted_bytes:,} bytes)",
        *_others(ready),
        f"  {values['calibration']}",
        *input_words.of_plan(ready),
        "  about "
        + ", ".join(f"{duration(value)} to {_VERBS.get(k, k)}" for k, value in seconds.items())
        + " (estimated)",
        *mode_words.lines(estimates),
    ]
    if found is not None:
        lines.append(
            f"  {found['bits_per_weight']:.3f} bits on average, those in 16 bits among them; about"
            f" {found['predicted_sqnr_db']:.1f} dB in the noise prediction (estimated)"
        )
    if options.layers or shares is not None:
        lines += ["", *_layer_table(ready, shares)]
    if options.save:
        path = _absolute(options.save)
        write_json(path, recipe.to_json())
        values["saved"] = str(path)
        lines += ["", f"{path} holds this recipe."]
    output.result(values, lines)
    return 0


def run_compress(options: argparse.Namespace, output: Output) -> int:
    """Compresses into a new folder."""
    target = new_path(options.output)
    ready, _ = _resolved(options, output)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).strip(".-")[:64] or "model"
    with asking():
        request = CompressRequest(
            model=options.model,
            recipe=ready.recipe,
            name=name,
            output=str(target),
            calibration=options.calibration or "",
        )
    partial = target.with_name(f"{target.name}.partial")
    try:
        result: CompressResult = compress.execute(request, report=output.report)
    except KeyboardInterrupt:
        if partial.exists():
            raise Stopped(f"Finished layers are in {partial}; the same command goes on.") from None
        raise
    lines = [
        f"{result['output']}",
        f"  {size(result['measured_bytes'])} instead of {size(result['reference_bytes'])}, "
        f"{result['bits_per_weight']:.3f} bits a weight"
        + (", calibrated" if result["calibrated"] else ""),
    ]
    lines += [
        f"  {other['component']}: {size(other['measured_bytes'])} instead of "
        f"{size(other['reference_bytes'])}, {other['bits_per_weight']:.3f} bits a weight"
        for other in result.get("other_components", [])
    ]
    learnt = result["learnt"]
    if learnt is not None:
        lines.append(
            f"  fine-tuned {learnt['steps']} steps: {learnt['before_db']:.1f} dB before, "
            f"{learnt['after_db']:.1f} dB after, on held-out prompts"
        )
    if result["arithmetic"] is not None:
        lines.append(f"  {result['activations']}")
        lines.append(f"  {arithmetic.in_words(result['arithmetic'])}")
    lines.append(
        f"  {duration(result['seconds'])}, at most {size(result['peak_memory_bytes'])} of memory"
    )
    if lacking := result.get("missing"):
        folders = " and ".join(f"{name}/" for name in lacking)
        lines.append(
            f"  Missing to draw: {', '.join(lacking)}. Copy {folders} of a model of the same family"
            " into it, or name one with --base when you compress."
        )
    output.result(cast(dict[str, Any], result), lines)
    return 0


def calibrate(options: argparse.Namespace, output: Output) -> int:
    """Runs the full-precision model on prompts and keeps what its layers saw."""
    from vqdq.models.calibration import calibrate_folder

    with asking():
        given = vars(options)
        named = {info.name: given[info.name] for info in describe(CalibrationParams)}
        chosen = {name: value for name, value in named.items() if value is not None}
        params = CalibrationParams.from_json(chosen, where="calibrate")
    target = new_path(options.output)
    check_models(options.model, report=output.report)
    partial = target.with_name(f"{target.name}.partial")
    try:
        found = calibrate_folder(options.model, params, target, report=output.report)
    except KeyboardInterrupt:
        if partial.exists():
            raise Stopped(f"What is done is in {partial}; the same command goes on.") from None
        raise
    values = asdict(found) | {"output": str(found.output), "settings": params.to_json()}
    lines = [
        str(found.output),
        f"  {found.layers} layers with {found.groups} different inputs, {found.plan}",
        f"  {found.tokens:,} sampled inputs in {size(found.bytes)}, {duration(found.seconds)}",
        f"  vqdq compress {options.model} --recipe … --calibration {options.output} uses it.",
    ]
    output.result(values, lines)
    return 0


def _resolved(options: argparse.Namespace, output: Output) -> tuple[Plan, PlanResult | None]:
    """The plan and, for a target, how it was found.

    A damaged model is a failure, everything else wrong use.
    """
    from vqdq.models import compressor, pipelines, sources

    with asking():
        recipe = also.also(compressor.as_recipe(options.recipe), options.also)
        recipe = input_words.applied(options, _asked_recipe(options, recipe))
        sources.locate(options.model, report=output.report)
    pipelines.component(options.model)
    with asking():
        ready = compressor.plan(options.model, recipe)
        require_calibration(ready)
        input_words.check_fragile(options, ready)
        request = _target(options, recipe)
    if options.keep_fragile is not None:
        recipe = input_words.protected(options, recipe, output)
        ready = compressor.plan(options.model, recipe)
        request = _target(options, recipe)
    if request is None:
        return ready, None
    found: PlanResult = planning.execute(request, report=output.report)
    return compressor.plan(options.model, planning.concrete(found)), found


def _asked_recipe(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe with what the flags add to it."""
    calibration, finetune = recipe.calibration, recipe.finetune
    if options.calibrate is not None:
        calibration = calibration or CalibrationParams()
        if options.calibrate > 0:
            calibration = replace(calibration, prompts=options.calibrate)
    if options.calibration:
        if options.calibrate is not None:
            raise UserError(
                "the calibration is there already.",
                where="--calibrate",
                remedy="Leave --calibrate or --calibration out.",
            )
        calibration = _settings_of(options.calibration)
    if options.finetune is not None:
        finetune = finetune or FinetuneParams()
        if options.finetune > 0:
            finetune = replace(finetune, steps=options.finetune)
    if (calibration, finetune) == (recipe.calibration, recipe.finetune):
        return recipe
    return variant(recipe, calibration, finetune)


def _settings_of(folder: str) -> CalibrationParams:
    """The settings that a folder of `vqdq calibrate` was made with."""
    from vqdq.models.calibration import open_calibration

    open_calibration(folder)  # says what is wrong with it
    values = read_json(expanded(folder) / "calibration.json") or {}
    return CalibrationParams.from_json(values.get("params", {}), where=folder)


def _target(options: argparse.Namespace, recipe: Recipe) -> PlanRequest | None:
    """What the flags ask to reach, or None."""
    card, pixels = options.card or (None, 0)
    given = (options.target_bits, options.target_bytes, card)
    if all(value is None for value in given):
        if options.sensitivity:
            raise UserError(
                "a sensitivity file serves a target only.",
                where="--sensitivity",
                remedy="Add --target-bits, --target-bytes or --card.",
            )
        return None
    file = _absolute(options.sensitivity) if options.sensitivity else None
    if file is not None:
        in_a_folder(file)
    return PlanRequest(
        model=options.model,
        recipe=recipe,
        bits=options.target_bits,
        bytes=options.target_bytes,
        card_bytes=card,
        resolution=pixels,
        sensitivity=str(file or ""),
    )


def _others(ready: Plan) -> list[str]:
    """The lines about the components beside the denoiser, and what all weigh together."""
    if not ready.others:
        return []
    lines = [
        f"  {other.component.name}: {len(other.quantized)} of {len(other.layers)} layers, "
        f"{other.bits_per_weight:.3f} bits a weight in them; {size(other.predicted_bytes)} instead "
        f"of {size(other.reference_bytes)} ({other.predicted_bytes:,} bytes)"
        for other in ready.others
    ]
    return [*lines, f"  together {size(ready.total_bytes)} ({ready.total_bytes:,} bytes)"]


def _layer_table(ready: Plan, shares: Mapping[str, float | None] | None) -> list[str]:
    cells: list[tuple[str, ...]] = []
    for item in ready.layers:
        share = None if shares is None else shares[item.layer.name]
        row = (
            item.layer.name,
            item.method or "16-bit",
            f"{item.bits_per_weight:.3f}",
            size(item.storage.total_bytes),
            *((input_words.in_a_word(item),) if ready.activated else ()),
        )
        part = "" if share is None else f"{100 * share:.2f} %"
        cells.append(row if shares is None else (*row, part))
    head = ("layer", "method", "bits", "size", *(("input",) if ready.activated else ()))
    return table([head if shares is None else (*head, "sensitivity"), *cells])


def _calibration_words(ready: Plan, folder: str | None) -> str:
    """What calibration will do, before it is done: at most these passes and this memory."""
    from vqdq import codecs
    from vqdq.models.input_groups import InputGroup, plan_waves, waves_in_words

    params = ready.recipe.calibration
    if params is None:
        return "no calibration: works from the weights alone"
    if folder:
        return f"calibrated by {folder}"
    groups = [
        InputGroup(
            layers=(item.layer.name,),
            kind=item.layer.kind,
            in_features=item.layer.shape.in_features,
        )
        for item in ready.quantized
        if codecs.get(item.method or "").uses_hessian
    ]
    words = waves_in_words(plan_waves(groups, round(params.memory_gb * 1e9)))
    return f"calibration on {params.prompts} prompts, {params.steps} steps: {words}, or less"


def _seconds(model: str, ready: Plan) -> dict[str, float]:
    """Estimated seconds of each stage, in order."""
    from vqdq.models import pipelines

    resolution = pipelines.describe(model).resolution
    return costs.stages(ready, max(resolution) if resolution else 0)


def _absolute(name: str) -> Path:
    return expanded(name).absolute()
