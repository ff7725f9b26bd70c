"""One model's drawing with everything recorded: layer inputs, attention, calls and latents."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqdq import capture
from vqdq.capture import ActivationRecord, AttentionRecorder
from vqdq.jobs.draw import draw
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.results import InspectedModel
from vqdq.jobs.warm import Warm
from vqdq.progress import Report

if TYPE_CHECKING:
    from vqdq.models.first_call import FirstCall
    from vqdq.models.following import Turn
    from vqdq.models.trajectory import Call

SMALL = 50_000_000
"""Parameters up to which every layer is recorded in detail at the chosen step."""
TIMED = 3
"""Calls that are made once more without hooks, to tell what recording costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A recorded drawing.

    Attributes:
        found: what is said of it so far; `calls`: of the denoiser; `turns`: of the sampler.
        seconds: spent in the denoiser's calls, hooks included.
    """

    found: InspectedModel
    activations: ActivationRecord
    calls: list[Call]
    turns: list[Turn]
    seconds: float


def record(
    warm: Warm,
    request: InspectRequest,
    folder: Path,
    role: str,
    *,
    layers: tuple[str, ...],
    first: FirstCall,
    report: Report,
) -> Recorded:
    """Returns what one model's drawing shows; the picture and the attention are written.

    Args:
        role: begins the files' names; `layers`: recorded in detail at every step, the first with
            its whole input at the chosen one.
        first: what the pipeline gives its denoiser.
    """
    from vqdq.models import following, pipelines, trajectory  # heavy: diffusers

    _, denoiser = pipelines.denoiser(warm.pipeline)
    small = sum(p.numel() for p in denoiser.parameters()) <= SMALL
    context = {"model": warm.reference, "prompt": request.prompt, "seed": request.seed}
    with contextlib.ExitStack() as stack:
        spent = stack.enter_context(_timed(denoiser))
        activations = stack.enter_context(
            capture.record(
                denoiser,
                detail=layers,
                detail_steps=(request.step,) if small else (),
                guided=first.doubled,
                keep=(layers[0], request.step) if layers and request.keep_bytes else None,
                keep_bytes=request.keep_bytes,
                context=context,
            )
        )
        attention, reason = _attention(stack, warm.pipeline, denoiser, request, first, context)
        calls = stack.enter_context(trajectory.listening(denoiser))
        turns = stack.enter_context(following.noted(warm.pipeline))
        drawn = draw(warm, request, folder / f"{role}.png", report=report)
    found = InspectedModel(
        variant=warm.reference,
        label=warm.label,
        image=drawn.picture["image"],
        activations=f"{role}-activations.npz",
        attention=None,
        attention_reason=reason,
        trajectory=None,
        trajectory_reason=None,
        weights=None,
        seconds=drawn.picture["seconds"],
        plain_seconds=None,
    )
    if attention is not None:
        found["attention"] = f"{role}-attention.npz"
        with disk_faults(folder):
            attention.result().save(folder / found["attention"])
    return Recorded(
        found=found,
        activations=activations.result(),
        calls=calls,
        turns=turns,
        seconds=sum(spent),
    )


def plain_seconds(recorded: Recorded, denoiser: nn.Module) -> float:
    """Returns the seconds that the drawing would have taken without recording: an estimate.

    Some of the calls are made again without hooks; all else of the drawing took what it took.
    """
    from vqdq.models.trajectory import replay

    calls = recorded.calls
    times: list[float] = []
    for call in calls[:: max(1, len(calls) // TIMED)][:TIMED]:
        started = time.perf_counter()
        with torch.no_grad():
            float(replay(denoiser, call).flatten()[0])  # read, so that any device computes it
        times.append(time.perf_counter() - started)
    rest = max(0.0, recorded.found["seconds"] - recorded.seconds)
    return rest + statistics.median(times) * len(calls) if times else recorded.found["seconds"]


def _attention(
    stack: contextlib.ExitStack,
    pipeline: Any,
    denoiser: nn.Module,
    request: InspectRequest,
    first: FirstCall,
    context: dict[str, str | int],
) -> tuple[AttentionRecorder | None, str | None]:
    """Returns a recorder that listens, or None and why there is none."""
    if not capture.text_attentions(denoiser):
        return None, "How this model reads its prompt is not known: no attention on the text."
    tokens = capture.prompt_tokens(pipeline, request.prompt)
    if tokens is not None and len(tokens.labels) != first.text_tokens:
        tokens = None  # the pipeline cut the prompt in another way: its columns have no words
    negative = capture.prompt_tokens(pipeline, "") if tokens and first.doubled else None
    recording = capture.record_attention(
        denoiser, tokens, negative=negative, guided=first.doubled, context=context
    )
    return stack.enter_context(recording), None


@contextlib.contextmanager
def _timed(module: nn.Module) -> Generator[list[float], None, None]:
    """Lends a list to which the seconds of each call of `module` are added."""
    spent: list[float] = []
    started: list[float] = []

    def before(_module: nn.Module, _args: object) -> None:
        started.append(time.perf_counter())

    def after(_module: nn.Module, _args: object, _output: object) -> None:
        spent.append(time.perf_counter() - started.pop())

    handles = (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
