"""Look inside: what goes into each layer, where the words are looked at, and where a variant errs.

The order is that of a person's questions: pictures and numbers of every layer, then each layer's
error on the same inputs, then the way from noise to picture, then the weights. Every record is
written as soon as it is whole. The reference's calls are made again once: the same replays give
each layer's error and the variant's teacher-forced predictions.
"""

from __future__ import annotations

import dataclasses
import difflib
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
from vqdq.jobs.recording import Recorded
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.results import InspectResult
from vqdq.jobs.shelf import Shelf
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from vqdq.models.first_call import FirstCall
    from vqdq.models.trajectory import Call

Led = dict[int, torch.Tensor]
"""By step, what a variant's denoiser gives for the reference's calls."""
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
    matched = matching(request.layer, capture.watchable(_denoiser(base)))
    for name in request.variants:
        check_variant(_denoiser(base), cache.get(name, report=report))
    first = first_call(base.pipeline, request.prompt, guidance=request.guidance)
    stages.end("load")
    with Shelf(folder) as shelf:
        inspection = _Inspection(
            request=request,
            folder=folder,
            shelf=shelf,
            layers=matched[:MAX_LAYERS],
            first=first,
            base=base,
            cache=cache,
            report=report,
        )
        reference = inspection.drawn(base, 0)
        reference.found["plain_seconds"] = recording.plain_seconds(reference, _denoiser(base))
        shelf.put(reference.found["activations"], reference.activations.save)
        stages.end("draw")
        paired = paired_steps(len(reference.calls), request.step)
        others: list[tuple[Recorded, Led]] = []
        for number, name in enumerate(request.variants, start=1):
            recorded = inspection.drawn(cache.get(name, report=report), number)
            stages.end("draw")
            others.append(inspection.paired(recorded, reference.calls, paired, number))
            stages.end("pair")
        for number, (recorded, led) in enumerate(others, start=1):
            inspection.follow(reference, recorded, led, number)
        stages.end("follow")
        for number, (recorded, _) in enumerate(others, start=1):
            inspection.weigh(recorded, number)
        stages.end("weights")
    stages.end("save")
    chosen = matched or (outstanding(others[0][0] if others else reference, request.step),)
    return InspectResult(
        prompt=request.prompt,
        seed=request.seed,
        layer=chosen[0],
        layers=list(matched[:MAX_LAYERS]),
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
            remedy=_near(pattern, names),
        )
    return found


def _near(pattern: str, names: Sequence[str]) -> str:
    """The layers whose names are most like a pattern's, whole or in their last parts."""
    plain = pattern.replace("*", "")
    tails = {".".join(name.split(".")[-2:]): name for name in reversed(names)}
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    close += [tails[tail] for tail in difflib.get_close_matches(plain, tails, n=3, cutoff=0.5)]
    known = list(dict.fromkeys(close or names))[:3]
    return f"{'The nearest' if close else 'It has'}: {', '.join(known)}."


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


def outstanding(recorded: Recorded, step: int) -> str:
    """Returns the layer to look at first: of the worst output, else of the largest outliers."""
    scalars = recorded.activations.scalars
    step = min(step, scalars.absmax.shape[2] - 1)
    errors = scalars.paired_sqnr_db[-1, :, step]
    if np.isfinite(errors).any():
        return recorded.activations.layers[int(np.nanargmin(errors))]
    return recorded.activations.layers[int(np.nanargmax(scalars.peak_ratio[-1, :, step]))]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Inspection:
    """What every part of one inspection needs."""

    request: InspectRequest
    folder: Path
    shelf: Shelf
    layers: tuple[str, ...]
    first: FirstCall
    base: Warm
    cache: WarmPipelines
    report: Report

    def drawn(self, warm: Warm, number: int) -> Recorded:
        """Returns the recorded drawing of a model; 0 is the reference."""
        count = 1 + len(self.request.variants)
        return recording.record(
            warm,
            self.request,
            self.folder,
            f"variant-{number}" if number else "reference",
            layers=self.layers,
            first=self.first,
            report=_share(self.report, number * self.request.steps, count * self.request.steps),
        )

    def paired(
        self, recorded: Recorded, calls: Sequence[Call], steps: Sequence[int], number: int
    ) -> tuple[Recorded, Led]:
        """Returns the record with each layer's error on the same inputs, and what it predicted."""
        from vqdq.models.trajectory import replay

        variants = self.request.variants
        warm = self.cache.get(variants[number - 1], report=self.report)
        report = _share(self.report, (number - 1) * len(steps), len(variants) * len(steps))
        mine, theirs = _denoiser(self.base), _denoiser(warm)
        layers = recorded.activations.layers
        pairing = capture.Pairing(mine, theirs, layers, guided=self.first.doubled)
        led: Led = {}
        for done, step in enumerate(steps):
            report(Event(stage="pair", done=done, message=warm.label))

            def variant(step: int = step) -> None:
                led[step] = replay(theirs, calls[step]).detach().cpu()

            pairing.add(step, lambda step=step: replay(mine, calls[step]), variant)
        report(Event(stage="pair", done=len(steps), message=warm.label))
        record = recorded.activations
        record = record.paired(*pairing.energies(record))
        self.shelf.put(recorded.found["activations"], record.save)
        return dataclasses.replace(recorded, activations=record), led

    def follow(self, reference: Recorded, recorded: Recorded, led: Led, number: int) -> None:
        """Writes the way of a variant beside the reference's, or says why there is none."""
        from vqdq.models import following

        guidance, seed = self.request.guidance, self.request.seed
        label, count = recorded.found["label"], len(self.request.variants)
        self.report(Event(stage="follow", done=number - 1, total=count, message=label))
        calls, own = reference.calls, reference.turns
        try:
            following.check_sampler(self.base.pipeline, calls, own, guidance)
        except UserError as error:
            recorded.found["trajectory_reason"] = str(error)
            return
        errors = following.astray(
            label, calls, own, recorded.turns, led, guidance=guidance, seed=seed
        )
        ways = {"reference": own, label: recorded.turns}

        def save(path: Path) -> None:  # decodes the previews, beside what comes next
            following.together(
                self.base.pipeline,
                ways,
                (errors,),
                prompts=(self.request.prompt,),
                guidance=guidance,
                seed=seed,
            ).save(path)

        recorded.found["trajectory"] = self.shelf.put(f"variant-{number}-trajectory.npz", save)
        self.report(Event(stage="follow", done=number, total=count, message=label))

    def weigh(self, recorded: Recorded, number: int) -> None:
        """Writes the weights of a variant beside the reference's."""
        variants = self.request.variants
        warm = self.cache.get(variants[number - 1], report=self.report)

        def each(layer: int, layers: int, name: str) -> None:
            done, total = (number - 1) * layers + layer, len(variants) * layers
            self.report(Event(stage="weights", done=done, total=total, message=name))

        found = capture.weight_records(_denoiser(self.base), _denoiser(warm), each=each)
        recorded.found["weights"] = self.shelf.put(f"variant-{number}-weights.npz", found.save)


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
