"""Calibration of quantized inputs: which values they take on the way from noise to picture.

As DGQ does (arXiv 2501.04304, section 5.1), ranges are collected on the compressed model: weights
packed and fine-tuned, inputs still as they come. The inputs are those of the full-precision model's
own way, so the calls that calibrate the weights serve here too. Smoothing is the exception: it
changes the weight that is encoded, so its ranges come first, from the full-precision model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn

from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ActivationQuantizer, InputRanges, finite
from vqdq.capture.ranges import RangeCollector
from vqdq.errors import UserError
from vqdq.layers.attention import (
    attach_attention_,
    attention_layout,
    attention_quantizers,
    seen_attention,
    stored_name,
    switch_attention_,
)
from vqdq.layers.inputs import PREFIX, SMOOTHING, noise_level_
from vqdq.layers.matrix import to_matrix
from vqdq.layers.processor import qkv_quantizer
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import quantize_inputs_, set_activations_
from vqdq.models.denoisers import denoiser
from vqdq.models.input_groups import watching
from vqdq.models.teacher import Teacher
from vqdq.models.trajectory import Call, replay
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan, PlannedLayer

_HALF = torch.finfo(torch.float16)
SMOOTH = PREFIX + SMOOTHING


def collect_ranges(
    module: nn.Module,
    layers: Sequence[str],
    calls: Sequence[Call],
    *,
    attention: AttentionParams | None = None,
    report: Report = silent,
    message: str = "",
) -> dict[str, InputRanges]:
    """Returns the extremes of the inputs of `layers` over recorded calls, made again.

    Those of a packed layer with a quantized input are taken as it is quantized: smoothed, rotated.

    Args:
        attention: also those of q, k and v that these settings round, by the names of their sites.
        report: stage "ranges", one unit a call; may raise `Cancelled`.

    Raises:
        UserError: an input that is NaN or infinite, a layer that no call runs, or a grouped
            convolution; the layer is named.
    """
    for name in layers:
        _refuse_groups(name, module.get_submodule(name))
    collector = RangeCollector()
    now = 0.0

    def see(name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        collector.add(name, now, _rows(layer, inputs))

    sites: dict[str, None] = {}

    def see_rows(site: str, rows: torch.Tensor) -> None:
        sites.setdefault(site)
        collector.add(site, now, rows)

    with ExitStack() as stack:
        stack.enter_context(watching(module, layers, see))
        if attention is not None:
            stack.enter_context(seen_attention(module, attention, see_rows))
        stack.enter_context(torch.no_grad())
        for done, call in enumerate(calls):
            report(Event(stage="ranges", done=done, total=len(calls), message=message))
            now = call.timestep
            replay(module, call)
    report(Event(stage="ranges", done=len(calls), total=len(calls), message=message))
    return {name: finite(collector.ranges(name), name) for name in (*layers, *sites)}


def smoothing_factors(
    plan: Plan, teacher: Teacher, read: Callable[[str], torch.Tensor | None], report: Report
) -> dict[str, torch.Tensor]:
    """Returns what each channel of a smoothed layer's input is divided by, float16 [channels].

    Args:
        read: gives a tensor of the full-precision denoiser by its key.

    Raises:
        UserError: see `collect_ranges`.
    """
    smoothed = [planned for planned in plan.activated if _quantizer(planned).smooths]
    if not smoothed:
        return {}
    names = [planned.layer.name for planned in smoothed]
    calls = teacher.range_calls(report).calls
    module = denoiser(teacher.pipeline(report))[1]
    ranges = collect_ranges(module, names, calls, report=report, message="before smoothing")
    factors: dict[str, torch.Tensor] = {}
    for planned in smoothed:
        name = planned.layer.name
        weight = read(f"{name}.weight")
        assert weight is not None
        matrix = to_matrix(weight.detach()).float().cpu()
        found = _quantizer(planned).smoothing(ranges[name], matrix, planned.layer.site)
        factors[name] = found.clamp(_HALF.smallest_normal, _HALF.max).half()
    return factors


def prepare_inputs_(
    student: nn.Module, plan: Plan, smoothing: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Gives packed layers the inputs of `plan`, switched off, every parameter but `smoothing` 0."""
    if not plan.activated:
        return
    stored: dict[str, dict[str, torch.Tensor]] = {}
    for planned in plan.activated:
        name = planned.layer.name
        place = student.get_submodule(name)
        assert isinstance(place, QuantizedLayer)
        device = next(iter(place.packed.tensors.values())).device
        stored[name] = {
            spec.name: torch.zeros(spec.shape, dtype=spec.dtype, device=device)
            for spec in planned.inputs
        }
        if smoothing is not None and name in smoothing:
            stored[name][SMOOTH].copy_(smoothing[name])
    inputs = {item.layer.name: (_quantizer(item), item.layer.site) for item in plan.activated}
    quantize_inputs_(student, inputs, stored)
    set_activations_(student, enabled=False)


def prepare_attention_(student: nn.Module, plan: Plan) -> None:
    """Gives a denoiser the quantized attention of `plan`, switched off, every parameter 0."""
    params = plan.recipe.attention
    if params is None:
        return
    device = next(student.parameters()).device
    empty = {
        spec.name: torch.zeros(spec.shape, dtype=spec.dtype, device=device)
        for spec in attention_layout(params, plan.attention)
    }
    attach_attention_(student, params, noise_level_(student), plan.attention, empty)
    switch_attention_(student, enabled=False)


def calibrate_inputs_(student: nn.Module, plan: Plan, teacher: Teacher, report: Report) -> None:
    """Fills in the parameters of prepared inputs and attention, and switches both on.

    Raises:
        UserError: see `collect_ranges`.
    """
    pending = [planned for planned in plan.activated if _quantizer(planned).calibrated]
    attention = plan.recipe.attention if _stores_attention(plan) else None
    if pending or attention is not None:
        calls = teacher.range_calls(report).calls
        names = [planned.layer.name for planned in pending]
        ranges = collect_ranges(student, names, calls, attention=attention, report=report)
        for planned in pending:
            layer = cast(QuantizedLayer, student.get_submodule(planned.layer.name))
            found = _quantizer(planned).calibrate(ranges[planned.layer.name], planned.layer.site)
            for key, tensor in found.items():
                layer.get_buffer(PREFIX + key).copy_(tensor)
            layer.release()
        if attention is not None:
            _fill_attention_(student, plan, attention, ranges)
    set_activations_(student, enabled=True)
    switch_attention_(student, enabled=True)


def _fill_attention_(
    student: nn.Module,
    plan: Plan,
    params: AttentionParams,
    ranges: Mapping[str, InputRanges],
) -> None:
    quantizer = qkv_quantizer(params)
    assert quantizer is not None
    for name, site in plan.attention.items():
        for key, tensor in quantizer.calibrate(ranges[name], site).items():
            student.get_buffer(stored_name(name, key)).copy_(tensor)
    for found in attention_quantizers(student).values():
        found.release()


def _stores_attention(plan: Plan) -> bool:
    params = plan.recipe.attention
    return params is not None and bool(attention_layout(params, plan.attention))


def input_tensors(student: nn.Module, plan: Plan) -> dict[str, torch.Tensor]:
    """Returns the parameters of every quantized input and of attention, by state-dict key."""
    params = plan.recipe.attention
    attention = () if params is None else attention_layout(params, plan.attention)
    return {spec.name: student.get_buffer(spec.name) for spec in attention} | {
        f"{planned.layer.name}.{spec.name}": student.get_submodule(planned.layer.name).get_buffer(
            spec.name
        )
        for planned in plan.activated
        for spec in planned.inputs
    }


def stores_parameters(plan: Plan) -> bool:
    """Whether quantized inputs or attention store anything beside the weights."""
    return _stores_attention(plan) or any(planned.inputs for planned in plan.activated)


def needs_calls(plan: Plan) -> bool:
    """Whether some input has parameters that calibration calls decide."""
    quantizers = [_quantizer(planned) for planned in plan.activated]
    inputs = any(quantizer.calibrated or quantizer.smooths for quantizer in quantizers)
    return inputs or _stores_attention(plan)


def _quantizer(planned: PlannedLayer) -> ActivationQuantizer[Any]:
    quantizer = planned.quantizer()
    assert quantizer is not None, planned.layer.name
    return quantizer


def _rows(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Returns a layer's input as rows [batch, positions, channels], as it is quantized."""
    if isinstance(layer, QuantizedLayer) and layer.input is not None:
        return layer.input.rows(layer, inputs)
    if isinstance(layer, nn.Conv2d):
        return inputs.flatten(2).transpose(1, 2)
    return inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])


def _refuse_groups(name: str, layer: nn.Module) -> None:
    if getattr(layer, "groups", 1) != 1:
        raise UserError(
            "is a convolution in groups, its input cannot be quantized.",
            where=name,
            remedy="Leave its input in 16 bits: add a rule for it without an activation.",
        )
