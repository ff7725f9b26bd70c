"""What a compression is expected to take, kept with its run, to be held against what it took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import psutil

from vqdq.errors import UserError
from vqdq.jobs import costs, pace
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.store import Workspace
from vqdq.recipe import Plan, Recipe

PROGRAM_BYTES = 650_000_000  # of the worker before it works, where none is running to be asked
RECENT = 30  # finished compressions that are learnt from


class Forecast(TypedDict):
    """What was expected before it began.

    Attributes:
        bytes: of all weight files that are written; exact.
        memory_bytes: at most, of the process.
        stages: seconds of each stage, in their order.
        source: where the seconds come from: "measured" on this computer, "runs" of it, or
            "constants" of another one.
    """

    bytes: int
    memory_bytes: int
    stages: dict[str, float]
    source: str


def forecast(
    workspace: Workspace,
    plan: Plan,
    *,
    model: str,
    pixels: int,
    parameters: int,
    copied_bytes: int,
    resolved: Callable[[Recipe], Plan],
) -> Forecast:
    """Returns what compressing by `plan` is expected to take on this computer.

    Args:
        pixels: side of a picture; 0 when it is not known.
        parameters: of all components of the model.
        copied_bytes: of the files of components that stay as they are.
        resolved: gives the plans of earlier runs of this model.
    """
    paces = measured(workspace.path)
    done = [run for run in workspace.runs("compress", limit=RECENT) if run.state == "done"]
    rates = _rates(done)
    stages = costs.stages(plan, pixels, rates, paces, copied_bytes=copied_bytes)
    own = [run for run in done if getattr(run.request, "model", "") == model]
    took = {
        name: seconds * _slower(own, name, pixels, paces, copied_bytes, resolved)
        for name, seconds in stages.items()
    }
    methods = {layer.method or "" for each in (plan, *plan.others) for layer in each.quantized}
    known = all(paces.of(layer) is not None for layer in plan.quantized)
    source = "measured" if known else "runs" if methods <= rates.keys() else "constants"
    return Forecast(
        bytes=plan.predicted_bytes + sum(each.predicted_bytes for each in plan.others),
        memory_bytes=costs.memory_bytes(plan, program_bytes(workspace), parameters),
        stages=took,
        source=source,
    )


def program_bytes(workspace: Workspace) -> int:
    """Returns the resident memory of the worker as it is now, or what it usually is."""
    known = workspace.worker()
    if known is None:
        return PROGRAM_BYTES
    pid, born, _ = known
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - born) > 1e-3:
            return PROGRAM_BYTES
        return max(int(process.memory_info().rss), PROGRAM_BYTES)  # less, and it is still starting
    except psutil.Error:
        return PROGRAM_BYTES


def measured(workspace: Path) -> pace.Paces:
    """Returns the paces that were measured in a workspace; read again when the file is another."""
    path = workspace / pace.FILE
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        return pace.Paces()
    return _read(workspace, stamp)


@lru_cache(maxsize=4)
def _read(workspace: Path, stamp: int) -> pace.Paces:
    del stamp
    return pace.read(workspace)


def _slower(
    history: Sequence[RunRecord],
    stage: str,
    pixels: int,
    paces: pace.Paces,
    copied_bytes: int,
    resolved: Callable[[Recipe], Plan],
) -> float:
    """How many times longer than estimated this stage took here: the median of earlier runs.

    Encoding without a measured pace has weights a second of its own in `_rates`.
    """
    if stage == "encode" and not paces.known:
        return 1.0
    found: list[float] = []
    for run in history:
        request = run.request
        if not isinstance(request, CompressRequest):
            continue
        try:
            plan = resolved(request.recipe)
            stages = costs.stages(plan, pixels, None, paces, copied_bytes=copied_bytes)
        except UserError:
            continue  # of another version of the model
        expected, spent = stages.get(stage), _stage_seconds(run.folder).get(stage)
        if expected and spent:
            found.append(spent / expected)
    return statistics.median(found) if found else 1.0


def _rates(history: Sequence[RunRecord]) -> Mapping[str, float]:
    """Weights a second by method, the median of finished compressions without calibration."""
    found: dict[str, list[float]] = {}
    for run in history:
        request = run.request
        if not isinstance(request, CompressRequest) or request.recipe.calibration is not None:
            continue
        layers: Any = (run.result or {}).get("layers", ())
        for layer in layers:
            seconds, bits, size = (
                layer.get(key) for key in ("seconds", "bits_per_weight", "bytes")
            )
            if layer.get("method") and seconds and bits and size:
                found.setdefault(layer["method"], []).append(8 * size / bits / seconds)
    return {method: statistics.median(rates) for method, rates in found.items()}


@lru_cache(maxsize=64)
def _stage_seconds(folder: Path) -> dict[str, float]:
    """Of a finished run, so it is read once."""
    return costs.stage_seconds(folder)
