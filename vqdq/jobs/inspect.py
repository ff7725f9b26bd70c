"""Look inside: what goes into each layer, where the words are looked at, and where a variant errs.

The order is that of a person's questions: pictures and numbers of every layer, then each layer's
error on the same inputs, then the way from noise to picture, then the weights. Every record is
written as soon as it is whole. The reference's calls are made again once: the same replays give
each layer's error and the variant's teacher-forced predictions.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vqdq import capture
from vqdq.errors import UserError
from vqdq.jobs import recording
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.recording import Recorded
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.results import InspectResult
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.params import nearest
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from vqdq.models.trajectory import Call

MAX_LAYERS = 20
"""Layers recorded in detail at every step."""
MAX_PAIRED = 25
"""Steps at which the layers of two models are compared: evenly many of more, and the last."""


def execute(
    request: InspectRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> InspectResult:
    """Returns the names of the records, after writing them and the pictures into `folder`.

    The chosen layers are recorded in detail at every step. In a small model every other layer is,
    too, at the chosen step, so that another layer can be looked at without drawing again.

    Args:
        report: stages "draw" (steps of all models), "pair" (steps of all variants), "follow",
            "weights" (layers); may raise `Cancelled`, and what was written stays.

    Raises:
        UserError: no such layer, a variant of another model, a model that cannot be opened, or a
            full disk.
    """
    from vqdq.models.first_call import first_call

    start = time.perf_counter()
    stages = _Stages()
    base = cache.get(request.model, report=report)
    names = capture.watchable(_denoiser(base))
    matched = matching(request.layer, names)
    layers = matched[:MAX_LAYERS]
    for name in request.variants:
        check_variant(_denoiser(base), cache.get(name, report=report))
    first = first_call(base.pipeline, request.prompt, guidance=request.guidance)
    stages.end("load")

    total = request.steps * (1 + len(request.variants))
    reference = recording.record(
        base, request, folder, "reference", layers=layers, first=first,
        report=_share(report, 0, total),
    )  # fmt: skip
    reference.found["plain_seconds"] = recording.plain_seconds(reference, _denoiser(base))
    _save(reference, folder)
    stages.end("draw")
    paired = paired_steps(len(reference.calls), request.step)
    others: list[tuple[Recorded, dict[int, torch.Tensor]]] = []
    for number, name in enumerate(request.variants, start=1):
        warm = cache.get(name, report=report)
        recorded = recording.record(
            warm, request, folder, f"variant-{number}", layers=layers, first=first,
            report=_share(report, number * request.steps, total),
        )  # fmt: skip
        stages.end("draw")
        found, led = _paired(
            recorded, reference.calls, base, warm, paired, guided=first.doubled,
            report=_share(report, (number - 1) * len(paired), len(request.variants) * len(paired)),
        )  # fmt: skip
        _save(found, folder)
        others.append((found, led))
        stages.end("pair")
    for number, (recorded, led) in enumerate(others, start=1):
        part = _share(report, number - 1, len(others))
        _follow(request, base, reference, recorded, led, folder, number, part)
    stages.end("follow")
    for number, (recorded, _) in enumerate(others, start=1):
        warm = cache.get(request.variants[number - 1], report=report)
        _weigh(base, warm, recorded, folder, number, len(others), report)
    stages.end("weights")
    chosen = layers[0] if layers else outstanding(others[0][0] if others else reference, request)
    return InspectResult(
        prompt=request.prompt,
        seed=request.seed,
        layer=chosen,
        layers=list(layers),
        matched=len(matched),
        step=request.step,
        steps=request.steps,
        guidance=request.guidance,
        reference=reference.found,
        variants=[recorded.found for recorded, _ in others],
        paired_steps=list(paired) if others else [],
        seconds=time.perf_counter() - start,
        stages=stages.seconds,
    )


def matching(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the layers that a full name, a pattern ("down*attn2.*") or a part of a name means.

    "" means none: one is chosen when all is recorded.

    Raises:
        UserError: it matches none.
    """
    if not pattern:
        return ()
    if pattern in names:
        return (pattern,)
    found = tuple(name for name in names if fnmatch.fnmatchcase(name, pattern))
    found = found or tuple(name for name in names if pattern in name)
    if not found:
        raise UserError(
            f'the model has no such layer: "{pattern}".',
            where="layer",
            remedy=nearest(pattern, names, "layer"),
        )
    return found


def check_variant(reference: nn.Module, warm: Warm) -> None:
    """Raises `UserError` unless the reference's watched layers are in the variant, as large."""
    mine, theirs = dict(reference.named_modules()), dict(_denoiser(warm).named_modules())
    for name in capture.watchable(reference):
        if name not in theirs:
            what = f"it has no layer {name}."
        elif _width(mine[name]) != _width(theirs[name]):
            what = (
                f"{name} has {_width(theirs[name])} inputs and outputs, not {_width(mine[name])}."
            )
        else:
            continue
        raise UserError(
            f"this is a variant of another model: {what}",
            where=warm.reference,
            remedy="Choose one that was made of the reference.",
        )


def paired_steps(steps: int, chosen: int) -> tuple[int, ...]:
    """Returns the steps at which layers are compared: all, or evenly many and the chosen one."""
    if steps <= MAX_PAIRED:
        return tuple(range(steps))
    even = np.linspace(0, steps - 1, MAX_PAIRED - 1).round().astype(int).tolist()
    return tuple(sorted({*even, min(chosen, steps - 1)}))


def outstanding(recorded: Recorded, request: InspectRequest) -> str:
    """Returns the layer to look at first: of the worst output, else of the largest outliers."""
    scalars = recorded.activations.scalars
    step = min(request.step, scalars.absmax.shape[2] - 1)
    errors = scalars.paired_sqnr_db[-1, :, step]
    if np.isfinite(errors).any():
        return recorded.activations.layers[int(np.nanargmin(errors))]
    return recorded.activations.layers[int(np.nanargmax(scalars.peak_ratio[-1, :, step]))]


def _paired(
    recorded: Recorded,
    calls: Sequence[Call],
    base: Warm,
    warm: Warm,
    steps: Sequence[int],
    *,
    guided: bool,
    report: Report,
) -> tuple[Recorded, dict[int, torch.Tensor]]:
    """Returns the record with each layer's error on the same inputs, and the led predictions."""
    from vqdq.models.trajectory import replay

    mine, theirs = _denoiser(base), _denoiser(warm)
    pairing = capture.Pairing(mine, theirs, recorded.activations.layers, guided=guided)
    led: dict[int, torch.Tensor] = {}
    for done, step in enumerate(steps):
        report(Event(stage="pair", done=done, total=len(steps), message=warm.label))
        call = calls[step]

        def variant(step: int = step, call: Call = call) -> None:
            led[step] = replay(theirs, call).detach().cpu()

        def reference(call: Call = call) -> None:
            replay(mine, call)

        pairing.add(step, reference, variant)
    report(Event(stage="pair", done=len(steps), total=len(steps), message=warm.label))
    record = recorded.activations
    paired = record.paired(*pairing.energies(record))
    return dataclasses.replace(recorded, activations=paired), led


def _follow(
    request: InspectRequest,
    base: Warm,
    reference: Recorded,
    recorded: Recorded,
    led: dict[int, torch.Tensor],
    folder: Path,
    number: int,
    report: Report,
) -> None:
    """Writes the way of a variant beside the reference's, or says why there is none."""
    from vqdq.models import following

    report(Event(stage="follow", done=0, total=1, message=recorded.found["label"]))
    label = recorded.found["label"]
    guidance, seed = request.guidance, request.seed
    try:
        following.check_sampler(base.pipeline, reference.calls, reference.turns, guidance)
    except UserError as error:
        recorded.found["trajectory_reason"] = str(error)
        return
    errors = following.astray(
        label, reference.calls, reference.turns, recorded.turns, led, guidance=guidance, seed=seed
    )
    ways = {"reference": reference.turns, label: recorded.turns}
    found = following.together(
        base.pipeline, ways, (errors,), prompts=(request.prompt,), guidance=guidance, seed=seed
    )
    name = f"variant-{number}-trajectory.npz"
    with disk_faults(folder):
        found.save(folder / name)
    recorded.found["trajectory"] = name
    report(Event(stage="follow", done=1, total=1, message=label))


def _weigh(
    base: Warm,
    warm: Warm,
    recorded: Recorded,
    folder: Path,
    number: int,
    variants: int,
    report: Report,
) -> None:
    """Writes the weights of a variant beside the reference's."""

    def each(layer: int, layers: int, name: str) -> None:
        done = (number - 1) * layers + layer
        report(Event(stage="weights", done=done, total=variants * layers, message=name))

    found = capture.weight_records(_denoiser(base), _denoiser(warm), each=each)
    name = f"variant-{number}-weights.npz"
    with disk_faults(folder):
        found.save(folder / name)
    recorded.found["weights"] = name


def _save(recorded: Recorded, folder: Path) -> None:
    with disk_faults(folder):
        recorded.activations.save(folder / recorded.found["activations"])


def _denoiser(warm: Warm) -> nn.Module:
    from vqdq.models.denoisers import denoiser

    return denoiser(warm.pipeline)[1]


def _width(layer: nn.Module) -> tuple[int, ...]:
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size")
    found = [getattr(layer, name) for name in names if hasattr(layer, name)]
    return tuple(int(x) for each in found for x in (each if isinstance(each, tuple) else (each,)))


def _share(report: Report, done: int, total: int) -> Report:
    """The units of one model as a share of all models': one bar, one ETA."""

    def on(event: Event) -> None:
        report(dataclasses.replace(event, done=done + event.done, total=total))

    return on


class _Stages:
    """Seconds by stage, each added up when it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
