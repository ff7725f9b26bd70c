"""Compression of a model: from a folder to a folder, layer by layer and resumable, or in memory.

Both ways encode the same matrices with the same generators, so their results are equal bit for bit.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.matrix import to_matrix, weight_matrix
from vqdq.layers.quantized import pack
from vqdq.models import checkpoint
from vqdq.models.card import card
from vqdq.models.checkpoint import LayerResult, half
from vqdq.models.copying import component_bytes, copy_components
from vqdq.models.denoisers import denoiser
from vqdq.models.encoding import encode_layer, error_db, within
from vqdq.models.hub import VqdqConfig, attach_
from vqdq.models.memory import peak_bytes, reset_peak
from vqdq.models.partial import FULL, Partial, fingerprint, open_partial, refuse_existing, version
from vqdq.models.pipelines import component, source_component
from vqdq.models.sources import Source, locate, presets_folder
from vqdq.models.weights import WeightFile, sync_folder, write_text, write_weights
from vqdq.progress import Event, Report, silent
from vqdq.recipe import METADATA, Plan, Recipe, load_recipe, resolve
from vqdq.tensors import TensorSpec

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
        seconds: wall time of this run; `peak_memory_bytes`: most resident memory of this process.
    """

    output: Path
    plan: Plan
    layers: tuple[LayerResult, ...]
    predicted_bytes: int
    measured_bytes: int
    bits_per_weight: float
    seconds: float
    peak_memory_bytes: int


def plan(model: str | Path | DiffusionPipeline, recipe: Recipe | str | Path) -> Plan:
    """Returns what `recipe` would do to the denoiser of `model`: exact layers and bytes, no work.

    Raises:
        UserError: a fault of the model or of the recipe; the model is compressed already.
    """
    ready = as_recipe(recipe)
    if not isinstance(model, str | Path):
        _refuse_packed(denoiser(model)[1])
        return resolve(ready, component(model))
    source = locate(model)
    _refuse_compressed(source.is_quantized, str(source.folder))
    return resolve(ready, source_component(source))


def as_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Returns a recipe, a preset by its name, or the recipe in a JSON file."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, presets_folder())


def compress_folder(
    model: str | Path, recipe: Recipe, output: str | Path, *, report: Report = silent
) -> CompressionResult:
    """Compresses the denoiser of a model into a new diffusers folder.

    Finished layers are kept in `<output>.partial/`: the same call after an interruption goes on
    from there and writes the same bytes. The output appears by one rename, complete, or not at
    all.

    Args:
        model: "demo", a folder or a hub id.
        output: must not exist yet.
        report: stages "encode" (layer k of n) and "save"; may raise `Cancelled`.

    Raises:
        UserError: a fault of the model, the recipe or the disk; finished layers are kept.
    """
    started = time.perf_counter()
    reset_peak()
    target = Path(output).expanduser().absolute()
    refuse_existing(target)
    report(Event(stage="plan", message=str(model)))
    source = locate(model)
    _refuse_compressed(source.is_quantized, str(source.folder))
    plan = resolve(recipe, source_component(source))
    source.check()
    files = source.weights()
    state = {
        "recipe": recipe.digest,
        "model": fingerprint(files, source.config),
        "version": version(),
    }
    needed = _needed_bytes(plan, source)
    with _full_disk(target, needed), open_partial(target, state) as partial:
        _require_space(partial, needed)
        by_key = {key: file for file in files for key in file.tensors}
        _require_finite(plan, by_key)
        layers = _encode_layers(plan, by_key, partial, report)
        report(Event(stage="save", done=0, total=3, message="weights"))
        measured = _write_final(source, plan, layers, by_key, partial, report)
        report(Event(stage="save", done=3, total=3, message=target.name))
        partial.publish(target)
    return CompressionResult(
        output=target,
        plan=plan,
        layers=tuple(layers),
        predicted_bytes=plan.predicted_bytes,
        measured_bytes=measured,
        bits_per_weight=plan.bits_per_weight,
        seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_bytes(),
    )


def compress(
    pipeline: DiffusionPipeline, recipe: Recipe | str | Path, *, report: Report = silent
) -> DiffusionPipeline:
    """Returns a new pipeline with a compressed denoiser; the other components are shared.

    The pipeline that is passed stays as it was. What is kept is rounded to 16 bits, so that the
    result equals the one that is loaded from the disk, bit for bit.

    Raises:
        UserError: a fault of the recipe or of the weights (the layer is named).
    """
    name, module = denoiser(pipeline)
    ready = plan(pipeline, recipe)
    memo: dict[int, Any] = {}
    chosen = ready.quantized
    for done, planned in enumerate(chosen):
        key = planned.layer.name
        layer = module.get_submodule(key)
        inner = within(report, done, len(chosen), key)
        inner(Event(stage="encode"))
        packed, _, _ = encode_layer(weight_matrix(layer)[0], planned, ready.recipe.seed, inner)
        # A copy, because its bias is shared with the layer and is rounded below.
        place = layer.get_parameter("weight").device
        memo[id(layer)] = copy.deepcopy(pack(layer, packed)).to(place)
    report(Event(stage="encode", done=len(chosen), total=len(chosen)))
    twin = copy.deepcopy(module, memo)  # packed layers stand in for the dense ones
    stored = {f"{p.layer.name}.{spec.name}" for p in chosen for spec in p.storage.tensors}
    for key, tensor in twin.state_dict().items():
        if key not in stored:
            tensor.copy_(half(tensor, key))
    attach_(twin, VqdqConfig(**checkpoint.quantization_config(ready)))
    return _with_denoiser(pipeline, name, twin)


def _encode_layers(
    plan: Plan, files: dict[str, WeightFile], partial: Partial, report: Report
) -> list[LayerResult]:
    results: list[LayerResult] = []
    total, done = len(plan.quantized), 0
    for number, planned in enumerate(plan.layers):
        name, storage = planned.layer.name, planned.storage
        key = f"{name}.weight"
        error: float | None = None
        seconds = 0.0
        if planned.method is not None:
            report(Event(stage="encode", done=done, total=total, message=name))
            finished = partial.finished(number, planned)
            if finished is not None:
                error, seconds = finished.error_db, finished.seconds
            else:
                matrix = to_matrix(files[key].read(key))
                inner = within(report, done, total, name)
                packed, error, seconds = encode_layer(matrix, planned, plan.recipe.seed, inner)
                partial.keep(number, name, packed, error_db=error, seconds=seconds)
            done += 1
        else:
            weight = files[key].read(key)
            error = error_db(weight, half(weight, key))
        results.append(
            LayerResult(
                name=name,
                method=planned.method,
                bits_per_weight=storage.bits_per_weight,
                error_db=error,
                bytes=storage.total_bytes,
                reference_bytes=2 * planned.layer.shape.count,
                seconds=seconds,
            )
        )
    report(Event(stage="encode", done=total, total=total))
    return results


def _write_final(
    source: Source,
    plan: Plan,
    layers: list[LayerResult],
    files: dict[str, WeightFile],
    partial: Partial,
    report: Report,
) -> int:
    """Puts the finished folder together in `partial.final`; returns the size of the weight file."""
    final = partial.final
    folder = final / plan.component.name
    folder.mkdir(parents=True)
    origin: dict[str, tuple[WeightFile, str]] = {}
    for number, planned in enumerate(plan.layers):
        if planned.method is not None:
            finished = partial.finished(number, planned)
            assert finished is not None
            for spec in planned.storage.tensors:
                origin[f"{planned.layer.name}.{spec.name}"] = (finished.weights, spec.name)

    def read(spec: TensorSpec) -> torch.Tensor:
        if spec.name in origin:
            file, key = origin[spec.name]
            return file.read(key)
        return half(files[spec.name].read(spec.name), spec.name)

    measured = write_weights(folder / checkpoint.WEIGHTS, plan.tensors, METADATA, read)
    if measured != plan.predicted_bytes:
        raise UserError(
            f"the weight file has {measured} bytes, {plan.predicted_bytes} were predicted.",
            where=str(folder),
            remedy="This is a fault of the program: report it with the recipe.",
        )
    config = {**source.config, "quantization_config": checkpoint.quantization_config(plan)}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    report(Event(stage="save", done=1, total=3, message="other components"))
    copy_components(source, final)
    facts = checkpoint.facts(plan, layers, base_model=source.name)
    write_text(final / checkpoint.RECIPE, checkpoint.dump(plan.recipe.to_json()))
    write_text(final / checkpoint.FACTS, checkpoint.dump(facts))
    write_text(final / "README.md", card(source, plan, layers))
    report(Event(stage="save", done=2, total=3, message="checksums"))
    checkpoint.write_sums(final)
    for name, _, _ in os.walk(final):
        sync_folder(Path(name))
    return measured


def _with_denoiser(pipeline: DiffusionPipeline, name: str, module: nn.Module) -> DiffusionPipeline:
    given = cast(Any, pipeline)
    parts = {**given.components, name: module}
    # A scheduler counts its steps: two pipelines that take turns must not share one.
    parts["scheduler"] = copy.deepcopy(given.scheduler)
    settings = {
        key: value
        for key, value in given.config.items()
        if key not in parts and not key.startswith("_")
    }
    twin = type(given)(**parts, **settings)
    twin.register_to_config(_name_or_path=given.config.get("_name_or_path"))
    twin.set_progress_bar_config(**getattr(given, "_progress_bar_config", {}))
    return cast("DiffusionPipeline", twin)


def _refuse_compressed(compressed: bool, where: str) -> None:
    if compressed:
        raise UserError(
            "is compressed already.", where=where, remedy="Compress the model it was made from."
        )


def _refuse_packed(module: nn.Module) -> None:
    compressed = bool(getattr(module, "is_quantized", False))
    _refuse_compressed(compressed, type(module).__name__)


def _require_finite(plan: Plan, files: dict[str, WeightFile]) -> None:
    """Raises `UserError` early for a kept tensor that 16 bits cannot hold."""
    for spec in plan.tensors:
        if spec.name in files:
            half(files[spec.name].read(spec.name), spec.name)


def _needed_bytes(plan: Plan, source: Source) -> int:
    """Returns what the work takes on the disk: each packed layer, then the whole final folder."""
    packed = sum(planned.storage.total_bytes for planned in plan.quantized)
    return packed + plan.predicted_bytes + component_bytes(source)


def _require_space(partial: Partial, needed: int) -> None:
    """Raises `UserError` before any work when the disk cannot hold what is still to be written."""
    done = sum(item.stat().st_size for item in (partial.folder / "layers").iterdir())
    free = shutil.disk_usage(partial.folder).free
    if free < needed - done:
        raise UserError(
            f"the disk has {free:,} bytes free, {needed - done:,} are needed.",
            where=str(partial.folder),
            remedy="Free space or choose another disk; finished layers are kept.",
        )


@contextmanager
def _full_disk(output: Path, needed: int) -> Generator[None, None, None]:
    """Turns "no space left" into a `UserError` that says what is needed and what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full; the work takes {needed:,} bytes in all.",
            where=str(output),
            remedy="Free space and start again: finished layers are kept in "
            f"{output.with_name(output.name + '.partial')}.",
        ) from error
