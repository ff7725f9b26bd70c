"""The page's named endpoints for programs (`gradio_client`): the same jobs, as JSON values.

`/estimate /compress /status /cancel /compare /runs`. Names and arguments are kept stable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.inputs import in_words
from vqdq.jobs.run import RunRecord
from vqdq.ui import compare, compress
from vqdq.ui.desk import DEFAULT_GOAL, Desk

F = TypeVar("F", bound=Callable[..., Any])


def build(desk: Desk) -> None:
    """Adds the endpoints to the page that is being built."""

    def estimate(recipe: str = DEFAULT_GOAL) -> dict[str, Any]:
        plan = desk.plan(desk.preset(recipe))
        cost = desk.estimate(plan)
        return {
            "recipe": plan.recipe.name,
            "reference_bytes": plan.reference_bytes,
            "predicted_bytes": plan.predicted_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "layers": len(plan.layers),
            "quantized_layers": len(plan.quantized),
            "activations": in_words(plan.recipe),
            "arithmetic": desk.arithmetic(plan.recipe),
            "estimated_seconds": cost.seconds,
            "estimated_memory_bytes": cost.memory_bytes,
        }

    def start_compression(recipe: str = DEFAULT_GOAL, name: str = "") -> str:
        return compress.submit(desk, desk.preset(recipe), name)

    def status(run_id: str = "") -> dict[str, Any]:
        if run_id:
            return summary(desk.workspace.run(run_id))
        active = desk.workspace.active()
        return {} if active is None else summary(active)

    def cancel(run_id: str) -> dict[str, Any]:
        desk.workspace.run(run_id)  # an unknown run is an error, not silence
        desk.workspace.cancel(run_id)
        return summary(desk.workspace.run(run_id))

    def start_comparison(
        prompt: str,
        variants: list[str],
        seed: int = 0,
        steps: int = compare.STEPS,
        guidance: float = compare.GUIDANCE,
    ) -> str:
        return compare.submit(desk, prompt, seed, variants, steps, guidance)

    def runs(limit: int = 50) -> list[dict[str, Any]]:
        return [summary(run) for run in desk.workspace.runs(limit=max(1, min(int(limit), 500)))]

    for function, name, what in (
        (estimate, "estimate", "Exact bytes, and estimated time and memory, of a recipe."),
        (start_compression, "compress", "Queues a compression; returns the run's id."),
        (status, "status", "State and progress of a run; of the active one without an id."),
        (cancel, "cancel", "Asks a run to stop; it does within two seconds."),
        (start_comparison, "compare", "Queues a comparison; returns the run's id."),
        (runs, "runs", "The newest runs first."),
    ):
        gr.api(_spoken(function), api_name=name, api_description=what)


def summary(run: RunRecord) -> dict[str, Any]:
    """Returns a run as JSON values."""
    return {
        "id": run.id,
        "kind": run.kind,
        "state": run.state,
        "request": run.request.to_json(),
        "created": run.created,
        "started": run.started,
        "finished": run.finished,
        "stage": run.stage,
        "done": run.done,
        "total": run.total,
        "message": run.message,
        "eta_seconds": run.eta_seconds,
        "seconds": run.seconds,
        "error": run.error,
        "folder": str(run.folder),
        "result": run.result,
    }


def _spoken(function: F) -> F:
    """The function with its faults in Gradio's own error, which travels to the caller whole."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call  # pyright: ignore[reportReturnType]
