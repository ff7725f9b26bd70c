"""Bits for each layer under a target; the same function serves the page and the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import PlanRequest
from vqdq.jobs.results import PlannedRow, PlanResult
from vqdq.jobs.run import read_json, write_json
from vqdq.jobs.variants import variant
from vqdq.jobs.warm import WarmPipelines
from vqdq.params import Params
from vqdq.progress import Report, silent
from vqdq.recipe import Recipe

if TYPE_CHECKING:
    from vqdq.models.budget import Target, Targeted
    from vqdq.models.sensitivity import Sensitivity


def execute(
    request: PlanRequest,
    folder: Path | None = None,
    *,
    report: Report = silent,
    cache: WarmPipelines | None = None,
) -> PlanResult:
    """Returns the concrete recipe that meets the request's target, with its table of layers.

    Raises:
        UserError: the target cannot be met, a file that is no measurement of this model, or a
            fault of the model or of the recipe.
    """
    from vqdq.models.budget import recorded, targeted  # heavy: diffusers
    from vqdq.models.denoisers import denoiser
    from vqdq.models.sensitivity import measure

    del folder
    start = time.perf_counter()
    file = Path(request.sensitivity) if request.sensitivity else None
    identity = "" if file is None else fingerprint(request.model)
    kept = None if file is None else _kept(request, file, identity)
    pipeline = (cache or WarmPipelines()).get(request.model, report=report).pipeline
    if kept is None:
        calls = recorded(pipeline, request.model, report=report)
        kept = measure(denoiser(pipeline)[1], calls, _layers(request), report=report)
        if file is not None:  # at once: a job that is stopped later goes on from here
            with disk_faults(file):
                write_json(file, {"model": identity, **kept.to_json()})
    target = _target(request)
    found = targeted(pipeline, request.recipe, target, sensitivity=kept, report=report)
    return _result(request, found, time.perf_counter() - start)


def concrete(result: PlanResult) -> Recipe:
    """Returns the recipe of a finished plan: one rule for each layer."""
    return Recipe.from_json(result["recipe"], where="plan")


def fingerprint(model: str) -> str:
    """Returns what tells a model from another one, and from itself after a change.

    Raises:
        UserError: not a model that can be opened.
    """
    from vqdq.models import partial, sources  # heavy: diffusers

    source = sources.locate(model)
    return partial.fingerprint(source.weights(), source.config)


def _kept(request: PlanRequest, file: Path, identity: str) -> Sensitivity | None:
    """The measurement in `file`, or None when there is none or it lacks a layer."""
    from vqdq.models.sensitivity import Sensitivity

    if not file.exists():
        return None
    values = read_json(file) or {}
    found = Sensitivity.from_json(values, where=str(file))
    if values.get("model") != identity:
        raise UserError(
            "was measured on another model.",
            where=str(file),
            remedy="Name another file, or remove this one to measure again.",
        )
    return found if all(name in found.effects for name in _layers(request)) else None


def _layers(request: PlanRequest) -> list[str]:
    """The layers that get bits."""
    from vqdq.models import compressor

    plan = compressor.plan(request.model, request.recipe)
    return [item.layer.name for item in plan.quantized]


def _target(request: PlanRequest) -> Target:
    from vqdq.models import pipelines
    from vqdq.models.budget import Target

    if request.bits is not None:
        return Target(kind="average_bits", value=request.bits)
    if request.bytes is not None:
        return Target(kind="bytes", value=float(request.bytes))
    own = pipelines.describe(request.model).resolution
    return Target(
        kind="card",
        value=(request.card_bytes or 0) / 1e9,
        resolution=request.resolution or (max(own) if own else 0),
    )


def _result(request: PlanRequest, found: Targeted, seconds: float) -> PlanResult:
    recipe = variant(
        found.recipe, request.recipe.calibration, request.recipe.finetune
    )  # its name says what the other settings do
    effects = {row.name: row.effect for row in found.table}
    whole = sum(effects.values()) or 1.0
    rows = [
        PlannedRow(
            name=item.layer.name,
            method=item.method,
            settings=_words(item.params),
            bits_per_weight=item.bits_per_weight,
            bytes=item.storage.total_bytes,
            sensitivity=effects[item.layer.name] / whole if item.layer.name in effects else None,
        )
        for item in found.plan.layers
    ]
    return PlanResult(
        recipe=recipe.to_json(),
        predicted_bytes=found.predicted_bytes,
        reference_bytes=found.plan.reference_bytes,
        bits_per_weight=found.average_bits,
        predicted_sqnr_db=found.predicted_sqnr_db,
        quantized_layers=len(found.plan.quantized),
        layers=rows,
        seconds=seconds,
    )


def _words(params: Params | None) -> str:
    return "" if params is None else " ".join(f"{k}={v}" for k, v in params.to_json().items())
