"""The layers of a component through their codecs, one at a time, kept as they finish."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from vqdq.codecs.base import InputStats
from vqdq.layers.matrix import to_matrix
from vqdq.models.checkpoint import half, require_numbers
from vqdq.models.encoding import EncodedLayer, encode_layer, within
from vqdq.models.partial import Partial
from vqdq.models.parts import Reads
from vqdq.models.teacher import Teacher
from vqdq.progress import Event, Report
from vqdq.recipe import Plan, PlannedLayer, is_guard

Read = Callable[[str], torch.Tensor | None]


def encoded(
    plan: Plan,
    layers: Sequence[PlannedLayer],
    read: Read,
    teacher: Teacher | None,
    smoothing: Mapping[str, torch.Tensor],
    report: Report,
) -> Generator[tuple[PlannedLayer, EncodedLayer], None, None]:
    """Yields `layers` encoded, in the order in which their statistics come.

    Args:
        read: gives a tensor of the component by its key, None when there is none.
        teacher: gives the statistics; None for a component that works from its weights alone.
    """
    calibration = plan.recipe.calibration
    total = len(plan.quantized)
    done = total - len(layers)
    for part, stats in _passes(plan, layers, teacher, report):
        for planned in part:
            name = planned.layer.name
            report(Event(stage="encode", done=done, total=total, message=name))
            weight = read(f"{name}.weight")
            assert weight is not None
            corrected = calibration is not None and calibration.bias_correction
            yield (
                planned,
                encode_layer(
                    to_matrix(weight.detach()),
                    planned,
                    plan.recipe.seed,
                    within(report, done, total, name),
                    stats=stats.get(name),
                    bias=read(f"{name}.bias") if corrected else None,
                    smoothing=smoothing.get(name),
                ),
            )
            done += 1


def encode_missing(
    plan: Plan,
    reads: Reads,
    partial: Partial,
    teacher: Teacher | None,
    smoothing: Mapping[str, torch.Tensor],
    report: Report,
) -> None:
    """Encodes and keeps every layer that an earlier run has not finished."""
    numbers = {planned.layer.name: number for number, planned in enumerate(plan.layers)}
    pending = [
        planned
        for planned in plan.quantized
        if partial.finished(numbers[planned.layer.name], planned) is None
    ]
    if pending:
        for planned, layer in encoded(plan, pending, reader(reads), teacher, smoothing, report):
            name = planned.layer.name
            partial.keep(numbers[name], name, layer)
    total = len(plan.quantized)
    report(Event(stage="encode", done=total, total=total))


def reader(reads: Reads) -> Read:
    """Returns what gives a tensor by its key, None when there is none."""
    return lambda key: reads[key]() if key in reads else None


def require_finite(plan: Plan, reads: Reads) -> None:
    """Raises `UserError` early, for values that are no numbers or that 16 bits cannot hold.

    Reads every tensor once, which is seconds; the layer that is found bad would be met in hours.
    """
    for spec in plan.tensors:
        if spec.name in reads and not is_guard(spec):
            half(reads[spec.name](), spec.name)
    for planned in plan.quantized:
        if (key := f"{planned.layer.name}.weight") in reads:
            require_numbers(reads[key](), key)


def counted(report: Report, before: int, total: int) -> Report:
    """Returns a report whose stage "encode" counts the layers of all components.

    Args:
        before: layers of the components that came earlier; total: of all.
    """

    def inner(event: Event, /) -> None:
        if event.stage == "encode":
            event = replace(event, done=before + event.done, total=total)
        report(event)

    return inner


def _passes(
    plan: Plan, layers: Sequence[PlannedLayer], teacher: Teacher | None, report: Report
) -> Iterable[tuple[Sequence[PlannedLayer], Mapping[str, InputStats]]]:
    if teacher is None:
        return [(layers, {})]
    return teacher.passes(layers, plan.component, plan.recipe.calibration, report)
