"""Compression of a model: from a folder to a folder, layer by layer and resumable, or in memory.

Both ways encode the same matrices with the same generators, so their results are equal bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial as bound
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from vqdq.calibration import CalibrationParams, RangeParams
from vqdq.codecs.base import Packed
from vqdq.durable import sha256
from vqdq.models import checkpoint
from vqdq.models.assembly import finished_layers, finished_work, write_final
from vqdq.models.checkpoint import MOST_DB, LayerResult, Learnt
from vqdq.models.denoisers import denoiser
from vqdq.models.hub import attach_
from vqdq.models.input_ranges import (
    calibrate_inputs_,
    input_tensors,
    needs_calls,
    smoothing_factors,
    stores_parameters,
)
from vqdq.models.layerwise import counted, encode_missing, encoded, reader, require_finite
from vqdq.models.memory import peak_bytes, reset_peak
from vqdq.models.others import other_students
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.partial import (
    INPUTS,
    LEARNT,
    SMOOTHING,
    Partial,
    fingerprint,
    open_partial,
    refuse_existing,
    version,
)
from vqdq.models.parts import Part, Reads, asked, others_of, part_component, refuse_compressed
from vqdq.models.pipelines import component, source_component
from vqdq.models.sources import Source, locate, presets_folder
from vqdq.models.space import full_disk, needed_bytes, require_space
from vqdq.models.students import student, with_denoiser
from vqdq.models.teacher import Teacher
from vqdq.places import expanded
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan, Recipe, load_recipe, resolve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionResult:
    """What came out; `predicted_bytes` and `measured_bytes` are equal, or an error was raised.

    Attributes:
        output: the folder.
        plan: what was planned; `layers`: what was measured, in the plan's order.
        predicted_bytes, measured_bytes: of the denoiser's weight file.
        bits_per_weight: true bits over the packed layers.
        learnt: what fine-tuning did, or None.
        seconds: wall time of this run; `peak_memory_bytes`: most resident memory of this process.
    """

    output: Path
    plan: Plan
    layers: tuple[LayerResult, ...]
    predicted_bytes: int
    measured_bytes: int
    bits_per_weight: float
    learnt: Learnt | None
    seconds: float
    peak_memory_bytes: int


def plan(model: str | Path | DiffusionPipeline, recipe: Recipe | str | Path) -> Plan:
    """Returns what `recipe` would do to the denoiser of `model`: exact layers and bytes, no work.

    Raises:
        UserError: a fault of the model or of the recipe; the model is compressed already.
    """
    ready = as_recipe(recipe)
    if not isinstance(model, str | Path):
        name, module = denoiser(model)
        _refuse_packed(module)
        others = others_of(model, ready, name).values()
        return resolve(ready, component(model), [inner.component for inner in others])
    return _of_folder(locate(model), ready)[0]


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Returns a recipe, a preset by its name, or the recipe in a JSON file."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, presets_folder())


def compress_folder(
    model: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    calibration: str | Path | None = None,
    report: Report = silent,
    finished: Callable[[CompressionResult, Path], None] | None = None,
) -> CompressionResult:
    """Compresses the denoiser of a model into a new diffusers folder.

    Finished layers are kept in `<output>.partial/`: the same call after an interruption goes on
    from there and writes the same bytes. The output appears by one rename, complete, or not at
    all.

    Args:
        model: "demo", a folder or a hub id.
        output: must not exist yet.
        calibration: a folder of `vqdq calibrate`, instead of running the model on prompts here.
        report: stages "record", "calibrate", "encode" (layer k of n), "finetune", "ranges" and
            "save", as far as the recipe asks for them; may raise `Cancelled`.
        finished: is told what came out, and the folder that is about to become the output.

    Raises:
        UserError: a fault of the model, the recipe or the disk; finished layers are kept.
    """
    started = time.perf_counter()
    reset_peak()
    target = expanded(output).absolute()
    refuse_existing(target)
    report(Event(stage="plan", message=str(model)))
    source = locate(model, report=report)
    plan, others = _of_folder(source, recipe)
    source.check()
    files = source.weights()
    state = {
        "recipe": recipe.digest,
        "model": fingerprint(files, source.config),
        "version": version(),
        **_fingerprints(others),
    }
    if calibration is not None:
        state["calibration"] = sha256(Path(calibration) / "calibration.json")
    teacher = Teacher(model, calibration=calibration, ranges=ranges_of(plan))
    needed = needed_bytes(plan, source)
    with full_disk(target, needed), open_partial(target, state) as partial:
        require_space(partial, needed)
        own: Reads = {key: bound(file.read, key) for file in files for key in file.tensors}
        reads = {plan.component.name: own, **{name: read for name, (_, read) in others.items()}}
        for each in (plan, *plan.others):
            require_finite(each, reads[each.component.name])
        smoothing = _smoothing(plan, own, partial, teacher, report)
        _encode(plan, reads, partial, teacher, smoothing, report)
        learnt = _learn(plan, partial, teacher, smoothing, report)
        _calibrate(plan, partial, teacher, smoothing, report)
        work = finished_work(plan, reads, partial)
        report(Event(stage="save", done=0, total=3, message="weights"))
        parts = {name: part for name, (part, _) in others.items()}
        measured = write_final(source, parts, work, learnt, report)
        report(Event(stage="save", done=3, total=3, message=target.name))
        result = CompressionResult(
            output=target,
            plan=plan,
            layers=work[0].layers,
            predicted_bytes=plan.predicted_bytes,
            measured_bytes=measured,
            bits_per_weight=plan.bits_per_weight,
            learnt=learnt,
            seconds=time.perf_counter() - started,
            peak_memory_bytes=peak_bytes(),
        )
        if finished is not None:
            finished(result, partial.final)
        partial.publish(target)
    return result


def compress(
    pipeline: DiffusionPipeline,
    recipe: Recipe | str | Path,
    *,
    calibration: str | Path | None = None,
    report: Report = silent,
) -> DiffusionPipeline:
    """Returns a new pipeline with a compressed denoiser, and what else the recipe speaks of.

    The components that are kept are shared.

    The pipeline that is passed stays as it was, and is what a recipe calibrates on and learns
    from. What is kept is rounded to 16 bits, so that the result equals the one that is loaded from
    the disk, bit for bit.

    Args:
        calibration: a folder of `vqdq calibrate` of this model, instead of running it here.

    Raises:
        UserError: a fault of the recipe or of the weights (the layer is named).
    """
    name, module = denoiser(pipeline)
    ready = plan(pipeline, recipe)
    teacher = Teacher.of(pipeline, calibration, ranges=ranges_of(ready))
    state = module.state_dict()
    packed: dict[str, Packed] = {}
    changed: dict[str, torch.Tensor] = {}
    chosen = ready.quantized

    def read(key: str) -> torch.Tensor | None:
        return state[key].cpu() if key in state else None

    smoothing = smoothing_factors(ready, teacher, read, report)
    for planned, layer in encoded(ready, chosen, read, teacher, smoothing, report):
        packed[planned.layer.name] = layer.packed
        if layer.bias is not None:
            changed[f"{planned.layer.name}.bias"] = layer.bias
    report(Event(stage="encode", done=len(chosen), total=len(chosen), share=1.0))
    twin = student(module, ready, packed, changed, smoothing)
    if ready.recipe.finetune is not None:
        learnt = teacher.tune(twin, ready.recipe.finetune, _sampling(ready), report)
        changed |= learnt.tensors
        twin = student(module, ready, learnt.packed, changed, smoothing)
    calibrate_inputs_(twin, ready, teacher, report)
    attach_(twin, VqdqConfig(**checkpoint.quantization_config(ready)))
    return with_denoiser(pipeline, name, twin, other_students(pipeline, ready, report))


def _of_folder(source: Source, recipe: Recipe) -> tuple[Plan, dict[str, tuple[Part, Reads]]]:
    """Returns the plan of a folder, and the other components that it compresses."""
    refuse_compressed(source.is_quantized, str(source.folder), source.config)
    found = {name: (part, part_component(part)) for name, part in asked(source, recipe).items()}
    plan = resolve(recipe, source_component(source), [made[0] for _, made in found.values()])
    return plan, {name: (part, made[1]) for name, (part, made) in found.items()}


def _fingerprints(others: Mapping[str, tuple[Part, Reads]]) -> dict[str, str]:
    return {
        f"model's {name}": fingerprint(part.weights(), part.config)
        for name, (part, _) in others.items()
    }


def _encode(
    plan: Plan,
    reads: Mapping[str, Reads],
    partial: Partial,
    teacher: Teacher,
    smoothing: Mapping[str, torch.Tensor],
    report: Report,
) -> None:
    """Encodes what is missing of every component, the denoiser first."""
    plans = (plan, *plan.others)
    for place, each in enumerate(plans):
        name, told = each.component.name, counted(report, plans, place)
        if each is plan:
            encode_missing(plan, reads[name], partial, teacher, smoothing, told)
        else:
            encode_missing(each, reads[name], partial.part(name), None, {}, told)


def _smoothing(
    plan: Plan,
    reads: Reads,
    partial: Partial,
    teacher: Teacher,
    report: Report,
) -> Mapping[str, torch.Tensor]:
    """Returns the factors of smoothed inputs by layer, as an earlier run kept them or made anew."""
    found = partial.kept_file(SMOOTHING)
    if found is not None:
        return {name: found.read(name) for name in found.tensors}
    factors = smoothing_factors(plan, teacher, reader(reads), report)
    if factors:
        partial.keep_file(SMOOTHING, factors, {})
    return factors


def _learn(
    plan: Plan,
    partial: Partial,
    teacher: Teacher,
    smoothing: Mapping[str, torch.Tensor],
    report: Report,
) -> Learnt | None:
    """Fine-tunes the encoded layers and keeps what changed; None when the recipe does not ask."""
    params = plan.recipe.finetune
    if params is None:
        return None
    found = partial.kept_file(LEARNT)
    if found is None:
        module = denoiser(teacher.pipeline(report))[1]
        twin = student(module, plan, *finished_layers(plan, partial), smoothing)
        result = teacher.tune(twin, params, _sampling(plan), report, checkpoint=partial.learning)
        tensors = dict(result.tensors)
        for name, layer in result.packed.items():
            tensors |= {f"{name}.{key}": value for key, value in layer.tensors.items()}
        learnt = Learnt(
            before_db=min(result.before, MOST_DB),
            after_db=min(result.after, MOST_DB),
            steps=result.steps,
        )
        facts = {key: repr(value) for key, value in asdict(learnt).items()}
        found = partial.keep_file(LEARNT, tensors, facts)
    facts = found.metadata
    return Learnt(
        before_db=float(facts["before_db"]),
        after_db=float(facts["after_db"]),
        steps=int(facts["steps"]),
    )


def _calibrate(
    plan: Plan,
    partial: Partial,
    teacher: Teacher,
    smoothing: Mapping[str, torch.Tensor],
    report: Report,
) -> None:
    """Keeps the parameters of every quantized input, unless an earlier run did."""
    if not stores_parameters(plan) or partial.kept_file(INPUTS) is not None:
        return
    module = denoiser(teacher.pipeline(report))[1]
    twin = student(module, plan, *finished_layers(plan, partial), smoothing)
    calibrate_inputs_(twin, plan, teacher, report)
    partial.keep_file(INPUTS, input_tensors(twin, plan), {})


def ranges_of(plan: Plan) -> RangeParams | None:
    """Returns how input ranges are collected; None when no input needs them."""
    return (plan.recipe.ranges or RangeParams()) if needs_calls(plan) else None


def _sampling(plan: Plan) -> CalibrationParams:
    return plan.recipe.calibration or CalibrationParams()


def _refuse_packed(module: nn.Module) -> None:
    compressed = bool(getattr(module, "is_quantized", False))
    refuse_compressed(compressed, type(module).__name__)
