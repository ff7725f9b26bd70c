"""Which layer broke it: every packed layer put back alone, and every one alone in the reference.

Both directions are measured on recorded calls of the reference, so a number is what one layer does
to the noise prediction at those noise levels. They differ where errors of layers are alike or hide
each other: put back, a layer is judged among the errors of the others; alone, without them. What is
changed is swapped by name and is back afterwards, whatever happened.

Measured on the demo model in 4 bits by plain rounding, one core: 129 layers both ways on 6 calls
take 45 s of CPU time. With the estimate first and 20 layers measured it is 10 s, and the worst five
are the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import candidates
from vqdq.models.blame_report import BlameReport, Floats
from vqdq.models.checkpoint import half
from vqdq.models.denoisers import denoiser
from vqdq.models.fragility import input_costs
from vqdq.models.memo import exchanged, remembering
from vqdq.models.prompts import prompts_for
from vqdq.models.region import Judge
from vqdq.models.sensitivity import measure, spread_calls
from vqdq.models.trajectory import Call, Trajectories, record, replay
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_PROMPTS, _STEPS, _GUIDANCE, _SEED = 2, 20, 3.0, 5_000_011
_ESTIMATING = 10  # calls of the estimate
_STRANGE = 0.8  # relative error of a weight that has next to nothing of the other one
_SAME = 1e-3  # energies that differ by less are of one measurement, on other kernels perhaps


def blame(
    reference: DiffusionPipeline,
    variant: DiffusionPipeline,
    trajectories: Trajectories | None = None,
    *,
    prompts: Sequence[str] = (),
    calls: int = 6,
    worst: int | None = None,
    mask: torch.Tensor | None = None,
    keep: Path | None = None,
    report: Report = silent,
) -> BlameReport:
    """Returns what each packed layer of `variant` costs; both models come back as they were.

    Args:
        reference: full precision; `variant`: what was made of it.
        trajectories: calls of the reference; None draws `prompts` (2 of the model's own kind when
            there are none) in 20 steps at guidance 3.
        calls: how many of them are used, spread over steps and prompts.
        worst: measure only that many layers, those of the highest estimate; the others keep the
            estimate alone. None measures all and estimates nothing.
        mask: of a region of the picture, see `region.region_weights`; measured beside the whole.
        keep: a file in which every finished part is kept. A later call with the same models, calls
            and mask goes on from there; one of other work is not taken.
        report: stages "record", "sensitivity" and "protect" (the estimate), and "blame", one unit
            for each layer, call and direction; may raise `Cancelled`.

    Raises:
        UserError: the variant has no packed layer, is of another model, predicts NaN, or predicts
            what the reference does.
    """
    modules = _Models(reference=denoiser(reference)[1], variant=denoiser(variant)[1])
    if trajectories is None:
        config: Any = reference.config
        named = config.get("_name_or_path") or "unnamed"
        ready = tuple(prompts) or prompts_for(named, _PROMPTS, seed=_SEED)
        trajectories = record(
            reference,
            ready,
            steps=_STEPS,
            guidance=_GUIDANCE,
            seed=_SEED,
            batch_size=1,
            report=report,
        )
    return blamed(
        modules.reference,
        modules.variant,
        trajectories,
        calls=calls,
        worst=worst,
        mask=mask,
        keep=keep,
        report=report,
    )


def blamed(
    reference: nn.Module,
    variant: nn.Module,
    trajectories: Trajectories,
    *,
    calls: int = 6,
    worst: int | None = None,
    mask: torch.Tensor | None = None,
    keep: Path | None = None,
    report: Report = silent,
) -> BlameReport:
    """Returns what `blame` returns, of two denoisers."""
    chosen = spread_calls(trajectories, calls)
    judge = Judge.of(trajectories, chosen[0], mask)
    models = _Models(reference=reference, variant=variant)
    names = models.names(chosen[0])
    found = _empty(models, names, chosen, judge)
    measured = tuple(range(len(names)))
    if worst is not None:
        estimate = _estimated(models, names, trajectories, judge.weights, report)
        found = replace(found, estimate=estimate)
        measured = found.ranked("estimate")[: max(1, worst)]
        measured = tuple(sorted(measured))
    if keep is not None and keep.is_file():
        found = _resumed(found, keep)
    rounded = [place for place in measured if found.activations[place]]
    total = len(chosen) * (2 * len(measured) + len(rounded))
    progress = _Progress(report=report, total=total, names=names)
    try:
        with torch.no_grad():
            for number, call in enumerate(chosen):
                _measure(models, found, number, call, judge, measured, progress)
                if keep is not None:
                    found.save(keep)
    finally:
        if keep is not None and np.isfinite(found.error).any():
            found.save(keep)
    report(Event(stage="blame", done=total, total=total))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """The two denoisers, one layer of which is exchanged at a time."""

    reference: nn.Module
    variant: nn.Module

    def names(self, call: Call) -> tuple[str, ...]:
        """Returns the packed layers of the variant as the reference executes them."""
        packed = {
            name: layer.packed.shape
            for name, layer in self.variant.named_modules()
            if isinstance(layer, QuantizedLayer)
        }
        if not packed:
            raise UserError(
                "has no packed layer, so there is none to blame.",
                where="variant",
                remedy="Choose a compressed model.",
            )
        with torch.no_grad():
            known = {
                layer.name: layer.shape
                for layer in candidates(self.reference, lambda: replay(self.reference, call))
            }
        for name, shape in packed.items():
            if known.get(name) != shape:
                raise UserError(
                    "the reference has no such layer of this shape.",
                    where=name,
                    remedy="Compare a variant with the very model that it was made from.",
                )
        return tuple(name for name in known if name in packed)

    def packed(self, name: str) -> QuantizedLayer:
        layer = self.variant.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        return layer

    def restored(self, name: str) -> nn.Module:
        """Returns a layer of the reference rounded to 16 bits, as a recipe keeps it."""
        return halved(self.reference.get_submodule(name), name)


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Counts, and says which layer."""

    report: Report
    total: int
    names: tuple[str, ...]
    done: int = 0

    def next(self, place: int, what: str) -> None:
        name = f"layer {place + 1} of {len(self.names)}, {what}: {self.names[place]}"
        self.report(Event(stage="blame", done=self.done, total=self.total, message=name))
        self.done += 1


def halved(layer: nn.Module, name: str) -> nn.Module:
    """Returns a copy of a dense layer with every value rounded to float16."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            parameter.copy_(half(parameter.detach(), f"{name}.{key}"))
    return twin


def _measure(
    models: _Models,
    found: BlameReport,
    number: int,
    call: Call,
    judge: Judge,
    places: Sequence[int],
    progress: _Progress,
) -> None:
    """Writes what one call tells into the arrays of `found`; what is there already stays."""
    names = found.names
    with remembering(models.variant) as memo:
        # Also when nothing is left to do: it tells the variant's layers the noise level, which
        # those that are lent to the reference below go by.
        memo.begin()
        error = np.array(judge.error(models.variant, call))
        _refuse_useless(float(error[0]))
        if not np.allclose(found.error[:, number], error, rtol=_SAME, atol=0):
            for kept in (found.repaired, found.unrounded, found.alone):
                kept[:, number] = np.nan  # of another variant or region
        found.error[:, number] = error
        for place in places:
            name, layer = names[place], models.packed(names[place])
            progress.next(place, "put back")
            memo.change([name])
            if np.isnan(found.repaired[0, number, place]):
                with exchanged(models.variant, {name: models.restored(name)}):
                    found.repaired[:, number, place] = judge.error(models.variant, call)
            if not found.activations[place]:
                continue
            progress.next(place, "input put back")
            if np.isnan(found.unrounded[0, number, place]):
                found.unrounded[:, number, place] = _unrounded(layer, models, call, judge)
    with remembering(models.reference) as memo:
        memo.begin()
        replay(models.reference, call)
        for place in places:
            name = names[place]
            progress.next(place, "alone")
            if np.isnan(found.alone[0, number, place]):
                memo.change([name])
                with exchanged(models.reference, {name: models.packed(name)}):
                    found.alone[:, number, place] = judge.error(models.reference, call)


def _unrounded(layer: QuantizedLayer, models: _Models, call: Call, judge: Judge) -> list[float]:
    """Returns the error of the variant while one layer takes its input as it comes."""
    given = layer.input
    assert given is not None
    before = given.enabled
    try:
        given.enabled = False
        return judge.error(models.variant, call)
    finally:
        given.enabled = before


def _empty(
    models: _Models, names: tuple[str, ...], calls: Sequence[Call], judge: Judge
) -> BlameReport:
    """Returns a report without any measurement."""
    layers = [models.packed(name) for name in names]
    shape = (judge.areas, len(calls), len(names))
    signal = np.array([judge.energies(call.output, call) for call in calls]).T
    if not np.isfinite(signal).all() or not (signal[0] > 0).all():
        raise UserError(
            "the reference's predictions are zero or not finite.",
            where="reference",
            remedy="Check that the model draws pictures in 32 bits.",
        )
    relative = np.array([_relative(models, name) for name in names])
    if float(np.median(relative)) > _STRANGE:
        raise UserError(
            "its weights have nothing in common with the reference's.",
            where="variant",
            remedy="Compare a variant with the very model that it was made from.",
        )
    activations = ["" if (given := layer.input) is None else given.quantizer.name
                   for layer in layers]  # fmt: skip
    return BlameReport(
        names=names,
        methods=tuple(layer.packed.codec for layer in layers),
        activations=tuple(activations),
        weights=tuple(layer.packed.shape.count for layer in layers),
        bytes=tuple(_bytes(layer) for layer in layers),
        relative_error=relative,
        estimate=np.full(len(names), np.nan),
        steps=tuple(call.step for call in calls),
        timesteps=tuple(call.timestep for call in calls),
        prompts=tuple(call.prompts[0] for call in calls),
        signal=signal,
        error=np.full(shape[:2], np.nan),
        repaired=np.full(shape, np.nan),
        unrounded=np.full(shape, np.nan),
        alone=np.full(shape, np.nan),
        context={},
    )


def _bytes(layer: QuantizedLayer) -> int:
    """Returns everything that is stored for a layer's weight and input."""
    return sum(layer.get_buffer(name).nbytes for name in layer.packed_names)


def _relative(models: _Models, name: str, shares: Sequence[float] = ()) -> float:
    """Returns ‖W − Ŵ‖² / ‖W‖²; with shares of the rows, Σ share ‖W_r − Ŵ_r‖² / ‖W_r‖²."""
    original = models.reference.get_submodule(name).get_parameter("weight").detach().double()
    lost = original - models.packed(name).dense(torch.float32).to(original)
    power = original.flatten(1).square().sum(dim=1)  # [out]
    weights = torch.tensor(shares).to(power) if shares else power
    relative = lost.flatten(1).square().sum(dim=1) / power.clamp(min=1e-300)
    total = float(weights.sum())
    return float((weights * relative).sum()) / total if total else 0.0


def _estimated(
    models: _Models,
    names: tuple[str, ...],
    trajectories: Trajectories,
    places: torch.Tensor | None,
    report: Report,
) -> Floats:
    """Returns the loss of every layer to first order: of its weight, and of its rounded input.

    Args:
        places: weights of the places of a prediction where a region was marked.
    """
    effects = measure(
        models.reference, trajectories, names, calls=_ESTIMATING, weights=places, report=report
    ).effects
    weights = [effects[name].guided * _relative(models, name, effects[name].rows) for name in names]
    inputs: Mapping[str, Any] = {}
    if any(models.packed(name).input is not None for name in names):
        calls = spread_calls(trajectories, _ESTIMATING)
        inputs = input_costs(
            models.variant, calls, trajectories.guidance, weights=places, report=report
        )
    rounded = [inputs[name].guided if name in inputs else 0.0 for name in names]
    return np.array(weights) + np.array(rounded)


def _resumed(found: BlameReport, path: Path) -> BlameReport:
    """Returns the kept measurements where they are of the same layers and calls, else `found`."""
    kept = BlameReport.load(path)
    facts = ("names", "methods", "activations", "bytes", "steps", "prompts", "areas")
    if any(getattr(kept, key) != getattr(found, key) for key in facts):
        return found
    same = all(
        np.allclose(getattr(kept, key), getattr(found, key), rtol=_SAME, atol=0)
        for key in ("signal", "relative_error")
    )
    return replace(kept, estimate=found.estimate) if same else found


def _refuse_useless(error: float) -> None:
    if not math.isfinite(error):
        raise UserError(
            "predicts NaN or infinite values.",
            where="variant",
            remedy="Look for the layer before it that overflows, or draw in 32 bits.",
        )
    if error == 0:
        raise UserError(
            "predicts exactly what the reference does: there is nothing to blame.",
            where="variant",
            remedy="Choose a variant with more compression.",
        )
