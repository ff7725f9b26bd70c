"""The layers of a component through their codecs, kept as they finish."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from vqdq import codecs
from vqdq.codecs.base import InputStats
from vqdq.kernels.backend import searches_on_card
from vqdq.layers.matrix import to_matrix
from vqdq.models.checkpoint import half, require_numbers
from vqdq.models.encoding import EncodedLayer, LayerJob, encode_layers, within
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
    """Yields `layers` encoded, in the order in which their statistics come; equal ones together
    where their search runs on a card (`batches`).

    Args:
        read: gives a tensor of the component by its key, None when there is none.
        teacher: gives the statistics; None for a component that works from its weights alone.
    """
    calibration = plan.recipe.calibration
    total = len(plan.quantized)
    done = total - len(layers)
    work = _work(plan.quantized)
    finished = work - _work(layers)
    corrected = calibration is not None and calibration.bias_correction
    most = max((planned.layer.shape.count for planned in plan.quantized), default=0)
    for part, stats in _passes(plan, layers, teacher, report):

        def job(planned: PlannedLayer, stats: Mapping[str, InputStats] = stats) -> LayerJob:
            name = planned.layer.name
            weight = read(f"{name}.weight")
            assert weight is not None
            return LayerJob(
                planned=planned,
                matrix=to_matrix(weight.detach()),
                stats=stats.get(name),
                bias=read(f"{name}.bias") if corrected else None,
                smoothing=smoothing.get(name),
            )

        for batch in batches(part, stats, most):
            name, more = batch[0].layer.name, len(batch) - 1
            words = f"{name} and {more} like it" if more else name
            at = Event(stage="encode", done=done, total=total, share=finished / work, message=words)
            report(at)
            told = within(report, at)
            jobs = (job(planned) for planned in batch)
            yield from zip(batch, encode_layers([*jobs], plan.recipe.seed, told), strict=True)
            done += len(batch)
            finished += _work(batch)


def batches(
    layers: Sequence[PlannedLayer], stats: Mapping[str, InputStats], most: int
) -> Generator[list[PlannedLayer], None, None]:
    """Yields all layers, those together that are encoded together.

    They have the same shape, method and settings, and all a Hessian or none. On a processor each
    comes alone: all its cores search one layer, and more would only take more memory. Where the
    search runs on a card a batch has no more weights than the largest layer of the model, so that
    it takes no more memory either.

    Args:
        most: weights of that layer.
    """
    waiting: dict[Hashable, list[PlannedLayer]] = {}
    for planned in layers:
        shape, known = planned.layer.shape, stats.get(planned.layer.name)
        assert planned.method is not None
        search = codecs.get(planned.method).batched_search
        if not search or not searches_on_card(search):
            yield [planned]
            continue
        has_hessian = known is not None and known.hessian is not None
        batch = waiting.setdefault((planned.method, planned.params, shape, has_hessian), [])
        batch.append(planned)
        if (len(batch) + 1) * shape.count > most:
            yield list(batch)
            batch.clear()
    yield from (batch for batch in waiting.values() if batch)


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
    report(Event(stage="encode", done=total, total=total, share=1.0))


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


def _work(layers: Iterable[PlannedLayer]) -> int:
    """Returns the weights of the layers: encoding takes about as long for each."""
    return sum(planned.layer.shape.count for planned in layers)


def counted(report: Report, plans: Sequence[Plan], place: int) -> Report:
    """Returns a report whose stage "encode" counts the layers of all components.

    Args:
        plans: of the components, in their order; place: of the one that reports.
    """
    layers = [len(plan.quantized) for plan in plans]
    works = [_work(plan.quantized) for plan in plans]

    def inner(event: Event, /) -> None:
        if event.stage == "encode":
            share = event.share
            if share is not None and sum(works):
                share = (sum(works[:place]) + share * works[place]) / sum(works)
            done = sum(layers[:place]) + event.done
            event = replace(event, done=done, total=sum(layers), share=share)
        report(event)

    return inner


def _passes(
    plan: Plan, layers: Sequence[PlannedLayer], teacher: Teacher | None, report: Report
) -> Iterable[tuple[Sequence[PlannedLayer], Mapping[str, InputStats]]]:
    if teacher is None:
        return [(layers, {})]
    return teacher.passes(layers, plan.component, plan.recipe.calibration, report)
