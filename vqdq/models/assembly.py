"""The finished folder, put together from the layers that are done."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
from vqdq.models.sources import Source
from vqdq.models.weights import WeightFile, write_weights
from vqdq.progress import Event, Report
from vqdq.recipe import METADATA, Plan
from vqdq.tensors import TensorSpec


def layer_results(
    plan: Plan, files: Mapping[str, WeightFile], partial: Partial
) -> list[LayerResult]:
    """Returns what happened to each layer, in the plan's order."""
    results: list[LayerResult] = []
    done = dict(_finished(plan, partial))
    for planned in plan.layers:
        name, key = planned.layer.name, f"{planned.layer.name}.weight"
        layer, quantizer = done.get(name), planned.quantizer()
        if layer is None:
            weight = files[key].read(key)
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
    plan: Plan,
    layers: Sequence[LayerResult],
    files: Mapping[str, WeightFile],
    partial: Partial,
    learnt: Learnt | None,
    report: Report,
) -> int:
    """Puts the finished folder together in `partial.final`; returns the size of the weight file."""
    final = partial.final
    folder = final / plan.component.name
    folder.mkdir(parents=True)
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
    facts = checkpoint.facts(source, plan, layers, learnt)
    write_text(final / checkpoint.RECIPE, checkpoint.dump(plan.recipe.to_json()))
    write_text(final / checkpoint.FACTS, checkpoint.dump(facts))
    write_text(final / "README.md", card(source, plan, layers, learnt))
    report(Event(stage="save", done=2, total=3, message="checksums"))
    checkpoint.write_sums(final)
    for name, _, _ in os.walk(final):
        sync_folder(Path(name))
    return measured


def _finished(plan: Plan, partial: Partial) -> list[tuple[str, FinishedLayer]]:
    found: list[tuple[str, FinishedLayer]] = []
    for number, planned in enumerate(plan.layers):
        if planned.method is not None:
            layer = partial.finished(number, planned)
            assert layer is not None, planned.layer.name
            found.append((planned.layer.name, layer))
    return found
