"""The full-precision model as a source: of its layers' inputs, and of what fine-tuning learns.

It is loaded when it is first asked for, so a recipe that works from the weights alone never loads
it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vqdq import codecs
from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.codecs.base import InputStats
from vqdq.models.denoisers import denoiser
from vqdq.models.effects import step_weights
from vqdq.models.finetune import FinetuneResult, finetune
from vqdq.models.input_groups import input_groups, plan_waves
from vqdq.models.kept_calls import keep_batch, record_kept
from vqdq.models.prompts import prompts_for
from vqdq.models.trajectory import Trajectories, record
from vqdq.progress import Event, Report
from vqdq.recipe import Component, PlannedLayer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Far from the seeds that people type and that evaluation uses.
_CALIBRATION_SEED, _TRAINING_SEED, _HELD_OUT_SEED = 1_000_003, 2_000_003, 3_000_017
_SEED_STRIDE = 10_007
BATCH = 8
"""Prompts drawn together."""


class Teacher:
    """A full-precision pipeline, given or loaded at its first use.

    Args:
        reference: "demo", a folder or a hub id: decides the prompts.
        pipeline: the loaded model; None loads `reference`.
        calibration: a folder of `vqdq calibrate`, used instead of running the model.
        ranges: calls that `range_calls` will be asked for, or None.
    """

    def __init__(
        self,
        reference: str | Path,
        *,
        pipeline: DiffusionPipeline | None = None,
        calibration: str | Path | None = None,
        ranges: RangeParams | None = None,
    ) -> None:
        self._ranges = ranges
        self._range_calls: Trajectories | None = None
        self._reference = reference
        self._pipeline = pipeline
        self._calibration = None if calibration is None else Path(calibration)

    @classmethod
    def of(
        cls,
        pipeline: DiffusionPipeline,
        calibration: str | Path | None = None,
        ranges: RangeParams | None = None,
    ) -> Teacher:
        """Returns the teacher that a loaded pipeline is."""
        config: Any = pipeline.config
        name = config.get("_name_or_path") or "unnamed"
        return cls(name, pipeline=pipeline, calibration=calibration, ranges=ranges)

    def pipeline(self, report: Report) -> DiffusionPipeline:
        """Returns the full-precision pipeline."""
        if self._pipeline is None:
            from vqdq.models.pipelines import load

            self._pipeline = load(self._reference, report=report)
        return self._pipeline

    def calibration_calls(
        self, params: CalibrationParams, report: Report, *, keep: Path | None = None
    ) -> Trajectories:
        """Returns the recorded calls on the calibration prompts, kept in a folder or in memory."""
        made = self._trajectories(params, _CALIBRATION_SEED, params.prompts, report, keep=keep)
        if self._ranges is not None and _holds(params, self._ranges):
            self._range_calls = _first(made, self._ranges.prompts)
        return made

    def keep_calibration_batch(
        self, params: CalibrationParams, start: int, keep: Path, report: Report
    ) -> None:
        """Keeps in a folder what `calibration_calls` would record of the batch from `start` on.

        With the files of all batches in one folder, `calibration_calls` draws nothing.
        """
        seed = _CALIBRATION_SEED + _SEED_STRIDE * params.seed
        prompts = prompts_for(
            self._reference, params.prompts, seed=seed, prompt_file=params.prompt_file
        )
        keep_batch(
            keep,
            self.pipeline(report),
            prompts[start : start + BATCH],
            start,
            steps=params.steps,
            guidance=params.guidance,
            seed=seed,
        )

    def range_calls(self, report: Report) -> Trajectories:
        """Returns the recorded calls to collect input ranges on, recorded once.

        They are the first of the calibration's where those are the same bit for bit, so that a run
        that goes on after the calibration finds the same ranges.
        """
        if self._range_calls is None:
            params = self._ranges or RangeParams()
            self._range_calls = self._trajectories(
                params, _CALIBRATION_SEED, params.prompts, report
            )
        return self._range_calls

    def passes(
        self,
        layers: Sequence[PlannedLayer],
        component: Component,
        params: CalibrationParams | None,
        report: Report,
    ) -> Generator[tuple[Sequence[PlannedLayer], Mapping[str, InputStats]], None, None]:
        """Yields parts of `layers` with the statistics of their inputs, as memory allows.

        Layers whose codec works from the weight alone, and layers without statistics (grouped
        convolutions), come first and without.
        """
        asking = [layer for layer in layers if params is not None and _uses_hessian(layer)]
        if not asking or params is None:
            yield layers, {}
            return
        from vqdq.models.calibration import collect, open_calibration  # asks a teacher itself

        if self._calibration is not None:
            yield layers, open_calibration(self._calibration, component)
            return
        pipeline = self.pipeline(report)
        trajectories = self.calibration_calls(params, report)
        weights = None
        if params.weighting == "effect":
            weights = step_weights(pipeline, trajectories, report=report)
        module = denoiser(pipeline)[1]
        wanted = {layer.layer.name for layer in asking}
        groups = input_groups(module, trajectories.calls)
        waves = plan_waves(
            tuple(group for group in groups if wanted & set(group.layers)),
            int(params.memory_gb * 1e9),
        )
        covered = {name for wave in waves for group in wave.groups for name in group.layers}
        alone = [layer for layer in layers if layer.layer.name not in wanted & covered]
        if alone:
            yield alone, {}
        for wave in waves:
            inside = {name for group in wave.groups for name in group.layers}
            part = [layer for layer in asking if layer.layer.name in inside]
            names = tuple(layer.layer.name for layer in part)
            yield (
                part,
                collect(module, trajectories, names, params, report=report, weights=weights),
            )

    def tune(
        self,
        student: nn.Module,
        params: FinetuneParams,
        sampling: CalibrationParams,
        report: Report,
        *,
        checkpoint: Path | None = None,
    ) -> FinetuneResult:
        """Returns what `student` learns from this model; the student itself stays as it is.

        Args:
            sampling: its steps, guidance and prompt file decide the pictures to learn from.
        """

        def drawing(event: Event, /) -> None:
            text = f"draws what to learn from, {event.done} of {event.total}"
            report(Event(stage="finetune", done=0, total=params.steps, message=text))

        held_out = max(8, params.prompts // 8)
        shape = replace(sampling, seed=params.seed)
        train = self._trajectories(shape, _TRAINING_SEED, params.prompts, drawing)
        judge = self._trajectories(shape, _HELD_OUT_SEED, held_out, drawing)
        return finetune(student, train, judge, params, report=report, checkpoint=checkpoint)

    def _trajectories(
        self,
        params: CalibrationParams | RangeParams,
        base: int,
        count: int,
        report: Report,
        *,
        keep: Path | None = None,
    ) -> Trajectories:
        seed = base + _SEED_STRIDE * params.seed
        prompts = prompts_for(self._reference, count, seed=seed, prompt_file=params.prompt_file)
        make = record if keep is None else partial(record_kept, keep)
        return make(
            self.pipeline(report),
            prompts,
            steps=params.steps,
            guidance=params.guidance,
            seed=seed,
            batch_size=BATCH,
            report=report,
        )


def _holds(calibration: CalibrationParams, ranges: RangeParams) -> bool:
    """Whether the first calls of the calibration are those of the ranges, in the same batches."""
    whole = ranges.prompts % BATCH == 0 and ranges.prompts < calibration.prompts
    return (whole or ranges.prompts == calibration.prompts) and all(
        getattr(ranges, key) == getattr(calibration, key)
        for key in ("prompt_file", "steps", "guidance", "seed")
    )


def _first(made: Trajectories, prompts: int) -> Trajectories:
    """Returns the calls of the first prompts, whole batches of them."""
    return replace(
        made,
        prompts=made.prompts[:prompts],
        calls=tuple(call for call in made.calls if call.prompts[-1] < prompts),
        latents=made.latents[:prompts],
    )


def _uses_hessian(layer: PlannedLayer) -> bool:
    return layer.method is not None and codecs.get(layer.method).uses_hessian
