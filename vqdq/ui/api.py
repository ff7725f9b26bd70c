"""The page's named endpoints for programs (`gradio_client`): the same jobs, as JSON values.

What is started returns the id of its run at once. Only one run works at a time: a later one is
queued, and `/status` says its place. Names and arguments are kept stable; docstrings are what
`view_api` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import getdoc
from typing import Any, TypeVar

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.inputs import in_words
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.run import RunRecord
from vqdq.report import bundle
from vqdq.ui import blind, compare, compress, settings, targets
from vqdq.ui.desk import DEFAULT_GOAL, Desk
from vqdq.ui.settings import Aim, Wish
from vqdq.ui.wording import file_url

F = TypeVar("F", bound=Callable[..., Any])


def build(desk: Desk) -> None:
    """Adds the endpoints to the page that is being built."""

    def estimate(recipe: str = DEFAULT_GOAL) -> dict[str, Any]:
        """Exact bytes, and estimated time and memory, of a recipe. Starts nothing.

        recipe: name of a preset, such as trellis-3bit.
        """
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

    def plan(recipe: str = DEFAULT_GOAL, bits: float = 0, megabytes: float = 0) -> str:
        """Finds the bits of each layer for a target, after measuring the layers; returns the run.

        recipe: its method is offered at every size. bits or megabytes: the target, one of them:
        the average over the compressed layers, or the size of the weight file.
        """
        if bool(bits) == bool(megabytes):
            raise UserError(
                "names no target, or two.", where="plan", remedy="Give bits or megabytes."
            )
        aim = Aim(bits=float(bits)) if bits else Aim(bytes=round(1e6 * megabytes))
        wish = Wish(recipe=desk.preset(recipe), aim=aim)
        return desk.workspace.submit(targets.request_of(desk, wish))

    def start_compression(recipe: str = DEFAULT_GOAL, name: str = "") -> str:
        """Queues a compression of the model on the desk; returns the run.

        recipe: name of a preset. name: of the new model; "" chooses a free one.
        """
        return compress.submit(desk, desk.preset(recipe), name)

    def status(run_id: str = "") -> dict[str, Any]:
        """State, progress and result of a run; of the active one without an id.

        `position`: how many runs have to end before it works, null after its own end;
        `waits` says the same in words.
        """
        if run_id:
            return summary(desk, desk.workspace.run(run_id))
        active = desk.workspace.active()
        return {} if active is None else summary(desk, active)

    def cancel(run_id: str) -> dict[str, Any]:
        """Asks a run to stop; it does within two seconds. Returns its status."""
        desk.workspace.run(run_id)  # an unknown run is an error, not silence
        desk.workspace.cancel(run_id)
        return summary(desk, desk.workspace.run(run_id))

    def generate(
        prompt: str,
        model: str = "",
        seed: int = 0,
        steps: int = compare.STEPS,
        guidance: float = compare.GUIDANCE,
    ) -> str:
        """Queues one picture; returns the run.

        model: "" for the original, or the name of a compressed model. The picture is the `image` of
        the result, in the run's folder.
        """
        _check_variants(desk, [model] if model else [])
        request = GenerateRequest(
            model=model or desk.model,
            prompt=prompt,
            seed=settings.whole(seed, "seed"),
            steps=int(steps),
            guidance=float(guidance),
        )
        return desk.workspace.submit(request)

    def start_comparison(
        prompt: str,
        variants: list[str],
        seed: int = 0,
        steps: int = compare.STEPS,
        guidance: float = compare.GUIDANCE,
    ) -> str:
        """Queues the same picture from the original and from compressed models; returns the run.

        variants: names of compressed models.
        """
        return compare.submit(desk, prompt, seed, variants, steps, guidance)

    def vote(
        test: str, assessor: str, choice: str = "", ballot: str = "", question: str = ""
    ) -> dict[str, Any]:
        """Stores an answer of a blind test, when there is one, and returns what is asked now.

        test: id of its run, or the beginning of its hash. choice: one of the `choices` offered, ""
        only asks, "undo" takes the last answer back. ballot, question: as the last call returned
        them. Nothing that is returned tells the models apart; `done` is true at the end.
        """
        return blind.vote(desk, test, assessor, choice, ballot, question)

    def results(test: str, reveal: bool = False) -> dict[str, Any]:
        """Results of a blind test: counts, intervals, tests, and the words that they allow.

        reveal: ends a test that is still open; nobody can vote afterwards.
        """
        return blind.results(desk, test, reveal=reveal)

    def report(run_id: str) -> dict[str, Any]:
        """Writes the report of a comparison, a grid or a blind test: HTML, CSV and JSON.

        Returns the paths of the files, and the `url` of each below the server's address.
        """
        run = desk.workspace.run(run_id)
        made = bundle.write(run, run.folder / f"{run.id}.html", votes=desk.votes)
        files = {"html": made.html, "csv": made.csv, "json": made.json}
        return {
            **{kind: str(path) for kind, path in files.items()},
            "urls": {kind: file_url(path) for kind, path in files.items()},
            "pictures_left_out": made.left_out,
        }

    def runs(limit: int = 50) -> list[dict[str, Any]]:
        """The newest runs first, with their status."""
        found = desk.workspace.runs(limit=max(1, min(int(limit), 500)))
        return [summary(desk, run) for run in found]

    named: tuple[tuple[Callable[..., Any], str], ...] = (
        (estimate, "estimate"),
        (plan, "plan"),
        (start_compression, "compress"),
        (status, "status"),
        (cancel, "cancel"),
        (generate, "generate"),
        (start_comparison, "compare"),
        (vote, "vote"),
        (results, "results"),
        (report, "report"),
        (runs, "runs"),
    )
    for function, name in named:
        words = " ".join((getdoc(function) or "").split())
        gr.api(_spoken(function), api_name=name, api_description=words)


def summary(desk: Desk, run: RunRecord) -> dict[str, Any]:
    """Returns a run as JSON values."""
    place = position(desk, run)
    return {
        "id": run.id,
        "name": run.name,
        "kind": run.kind,
        "state": run.state,
        "position": place,
        "waits": _waits(place),
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


def position(desk: Desk, run: RunRecord) -> int | None:
    """Returns how many runs have to end before this one works; None after its end."""
    if run.state == "running":
        return 0
    if run.state != "queued":
        return None
    return desk.workspace.ahead(run.id)


def _waits(place: int | None) -> str:
    if place is None:
        return ""
    if place == 0:
        return "works now or next"
    return f"queued: {place} run{'s' if place > 1 else ''} before it"


def _check_variants(desk: Desk, names: list[str]) -> None:
    known = {name for _, name in desk.variants()}
    for name in names:
        if name not in known:
            raise UserError(
                f'there is no compressed model "{name[:80]}".',
                where="model",
                remedy="Name one of the workspace, or leave it out for the original.",
            )


def _spoken(function: F) -> F:
    """The function with its faults in Gradio's own error, which travels to the caller whole."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call  # pyright: ignore[reportReturnType]
