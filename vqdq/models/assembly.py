"""The finished folder, put together from the layers that are done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vqdq.codecs.base import Packed
from vqdq.durable import sync_folder, write_text
from vqdq.errors import UserError
from vqdq.models import checkpoint
from vqdq.models.card import card
from vqdq.models.checkpoint import LayerResult, Learnt, half
from vqdq.models.copying import copy_components
from vqdq.models.encoding import error_db
from vqdq.models.partial import BIAS, INPUTS, LEARNT, FinishedLayer, Partial
from vqdq.models.parts import Part, Reads
from vqdq.models.sources import Source
from vqdq.models.weight_shards import write_shards
from vqdq.models.weights import WeightFile
from vqdq.progress import Event, Report
from vqdq.recipe import METADATA, Plan, is_guard
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A component whose layers are done.

    Attributes:
        plan: of this component alone; `reads`: how its tensors are read; `partial`: where its
            finished layers lie; `layers`: what was measured, in the plan's order.
    """

    plan: Plan
    reads: Reads
    partial: Partial
    layers: tuple[LayerResult, ...]


def finished_work(plan: Plan, reads: Mapping[str, Reads], partial: Partial) -> list[Work]:
    """Returns the denoiser and the other components of `plan`, in this order."""
    found: list[Work] = []
    for each in (plan, *plan.others):
        name = each.component.name
        place = partial if each is plan else partial.part(name)
        layers = tuple(_layer_results(each, reads[name], place))
        found.append(Work(plan=each, reads=reads[name], partial=place, layers=layers))
    return found


def _layer_results(plan: Plan, reads: Reads, partial: Partial) -> list[LayerResult]:
    """Returns what happened to each layer, in the plan's order."""
    results: list[LayerResult] = []
    done = dict(_finished(plan, partial))
    for planned in plan.layers:
        name, key = planned.layer.name, f"{planned.layer.name}.weight"
        layer, quantizer = done.get(name), planned.quantizer()
        if layer is None:
            weight = reads[key]()
            error = error_db(weight, half(weight, key))
        else:
            error = layer.error_db
        results.append(
            LayerResult(
                name=name,
                method=planned.method,
                bits_per_weight=planned.storage.bits_per_weight,
                error_db=error,
                output_error_db=None if layer is None else layer.output_error_db,
                bytes=planned.storage.total_bytes,
                reference_bytes=2 * planned.layer.shape.count,
                seconds=0.0 if layer is None else layer.seconds,
                activation=planned.activation,
                activation_bits=None if quantizer is None else quantizer.bits,
                input_bytes=sum(spec.num_bytes for spec in planned.inputs),
            )
        )
    return results


def finished_layers(
    plan: Plan, partial: Partial
) -> tuple[dict[str, Packed], dict[str, torch.Tensor]]:
    """Returns every packed weight by layer, and every other tensor that changed by its key.

    Both as fine-tuning left them, once it is through.
    """
    planned = {item.layer.name: item for item in plan.quantized}
    done = _finished(plan, partial)
    packed = {name: layer.packed(planned[name]) for name, layer in done}
    changed = {f"{name}.bias": layer.weights.read(BIAS) for name, layer in done if layer.has_bias}
    learnt = partial.kept_file(LEARNT)
    if learnt is None:
        return packed, changed
    inner: set[str] = set()
    for name, layer in packed.items():
        inner |= {f"{name}.{key}" for key in layer.tensors}
        tensors = {key: learnt.read(f"{name}.{key}") for key in layer.tensors}
        packed[name] = replace(layer, tensors=tensors)
    changed |= {key: learnt.read(key) for key in learnt.tensors if key not in inner}
    return packed, changed


def write_final(
    source: Source,
    parts: Mapping[str, Part],
    work: Sequence[Work],
    learnt: Learnt | None,
    report: Report,
) -> int:
    """Puts the finished folder together in `final`; returns the size of the denoiser's weights.

    Args:
        parts: the components beside the denoiser that are compressed, by name.
        work: the denoiser, then those.
    """
    own = work[0]
    final = own.partial.final
    folder = final / own.plan.component.name
    folder.mkdir(parents=True)
    measured = _write_weights(own, folder / checkpoint.WEIGHTS)
    _write_config(folder, source.config, own.plan)
    report(Event(stage="save", done=1, total=3, message="other components"))
    copy_components(source, final, without=parts.keys())
    for other in work[1:]:
        part = parts[other.plan.component.name]
        place = final / part.name
        _write_weights(other, place / part.weight_name)
        copied = json.loads((place / "config.json").read_text(encoding="utf-8"))
        _write_config(place, copied, other.plan)
    facts = checkpoint.facts(source, own.plan, [each.layers for each in work], learnt)
    write_text(final / checkpoint.RECIPE, checkpoint.dump(own.plan.recipe.to_json()))
    write_text(final / checkpoint.FACTS, checkpoint.dump(facts))
    write_text(final / "README.md", card(source, own.plan, own.layers, learnt))
    report(Event(stage="save", done=2, total=3, message="checksums"))
    checkpoint.write_sums(final)
    for name, _, _ in os.walk(final):
        sync_folder(Path(name))
    return measured


def _write_weights(work: Work, path: Path) -> int:
    """Writes a component's weights, a file or shards; returns their size, which is the planned."""
    plan, partial, reads = work.plan, work.partial, work.reads
    origin: dict[str, tuple[WeightFile, str]] = {}
    wanted = {spec.name for spec in plan.tensors}
    for name, layer in _finished(plan, partial):
        for key in layer.weights.tensors:
            origin[f"{name}.{key}"] = (layer.weights, key)
    for stage in (LEARNT, INPUTS):
        if (made := partial.kept_file(stage)) is not None:
            origin |= {key: (made, key) for key in made.tensors}
    assert origin.keys() <= wanted

    def read(spec: TensorSpec) -> torch.Tensor:
        if spec.name in origin:
            file, key = origin[spec.name]
            return file.read(key)
        if is_guard(spec):
            return torch.empty(spec.shape, dtype=spec.dtype)
        return half(reads[spec.name](), spec.name)

    measured = write_shards(path, plan.tensors, METADATA, read)
    if measured != plan.predicted_bytes:
        raise UserError(
            f"the weights have {measured} bytes, {plan.predicted_bytes} were predicted.",
            where=str(path.parent),
            remedy="This is a fault of the program: report it with the recipe.",
        )
    return measured


def _write_config(folder: Path, config: Mapping[str, Any], plan: Plan) -> None:
    values = {**config, "quantization_config": checkpoint.quantization_config(plan)}
    write_text(folder / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def _finished(plan: Plan, partial: Partial) -> list[tuple[str, FinishedLayer]]:
    found: list[tuple[str, FinishedLayer]] = []
    for number, planned in enumerate(plan.layers):
        if planned.method is not None:
            layer = partial.finished(number, planned)
            assert layer is not None, planned.layer.name
            found.append((planned.layer.name, layer))
    return found
