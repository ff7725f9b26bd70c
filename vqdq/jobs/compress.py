"""Compress a model; the same function serves the page and the command line."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vqdq.errors import UserError
from vqdq.jobs import arithmetic, inputs, models, published
from vqdq.jobs.eta import Stopwatch
from vqdq.jobs.faults import as_user_error
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.results import (
    ArithmeticResult,
    CompressResult,
    LayerRow,
    LearntResult,
    OtherRow,
)
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Report, silent

if TYPE_CHECKING:
    from vqdq.models.compressor import CompressionResult


def execute(
    request: CompressRequest,
    folder: Path | None = None,
    *,
    report: Report = silent,
    cache: WarmPipelines | None = None,
) -> CompressResult:
    """Returns what was made, after writing the model to `request.output`.

    A run that was stopped continues in `<output>.partial`, with the same bytes at the end; one that
    was stopped after its model had its name, with that model.

    Args:
        folder: of the run, for the note that tells it so; None keeps none.

    Raises:
        UserError: the model, the recipe or the output folder does not allow it.
    """
    if not request.output:
        raise UserError("no output folder is named.", where="output", remedy="Name a new folder.")
    result = None if folder is None else published.kept(folder, request)
    if result is None:
        result = _compressed(request, folder, report)
    else:
        models.discard(models.partial(Path(request.output)))  # killed before that was done
    result["arithmetic"] = _arithmetic(request, result, cache, report)
    return result


def _compressed(request: CompressRequest, folder: Path | None, report: Report) -> CompressResult:
    from vqdq.models.compressor import compress_folder  # heavy: diffusers

    watch = Stopwatch(report, time.perf_counter)

    def finished(made: CompressionResult, final: Path) -> None:
        if folder is not None:
            published.keep(folder, final, _result(request, made, watch.stop()))

    made = compress_folder(
        request.model,
        request.recipe,
        Path(request.output),
        calibration=request.calibration or None,
        report=watch,
        finished=finished,
    )
    return _result(request, made, watch.stop())


def _result(
    request: CompressRequest, result: CompressionResult, stages: dict[str, float]
) -> CompressResult:
    from vqdq.models.sources import locate  # heavy: diffusers

    return CompressResult(
        output=str(result.output),
        recipe=request.recipe.name,
        recipe_digest=request.recipe.digest,
        predicted_bytes=result.predicted_bytes,
        measured_bytes=result.measured_bytes,
        reference_bytes=result.plan.reference_bytes,
        bits_per_weight=result.bits_per_weight,
        seconds=result.seconds,
        peak_memory_bytes=result.peak_memory_bytes,
        calibrated=any(layer.output_error_db is not None for layer in result.layers),
        other_components=[
            OtherRow(
                component=other.component.name,
                measured_bytes=other.predicted_bytes,
                reference_bytes=other.reference_bytes,
                bits_per_weight=other.bits_per_weight,
            )
            for other in result.plan.others
        ],
        missing=list(locate(request.model).to_draw),
        learnt=None
        if result.learnt is None
        else cast(LearntResult, dataclasses.asdict(result.learnt)),
        activations=inputs.in_words(request.recipe),
        arithmetic=None,
        stages=stages,
        forecast=None if request.forecast is None else dict(request.forecast),
        layers=[cast(LayerRow, dataclasses.asdict(layer)) for layer in result.layers],
    )


def _arithmetic(
    request: CompressRequest, result: CompressResult, cache: WarmPipelines | None, report: Report
) -> ArithmeticResult | None:
    """How the layers of the new model are computed here; it is opened only if that is a question.

    The pipeline stays warm: what follows a compression is mostly a comparison.
    """
    activated = any(layer["activation"] is not None for layer in result["layers"])
    if not activated and request.recipe.attention is None:
        return None
    from vqdq.models.denoisers import denoiser  # heavy: diffusers

    try:
        opened = (cache or WarmPipelines()).get(request.output, report=report)
    except (UserError, MemoryError, RuntimeError, OSError) as error:
        if as_user_error(error, request.output) is None:
            raise
        return None  # the model is written; who opens it is told what is wrong
    return arithmetic.measured(denoiser(opened.pipeline)[1])
