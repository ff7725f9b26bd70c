"""Look inside: a layer's activations and the prompt's attention, with and without compression."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from vqdq import capture
from vqdq.jobs.draw import draw
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.results import InspectedModel, InspectResult
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.progress import Report, silent

SMALL = 50_000_000  # parameters up to which every layer is kept in detail at the chosen step


def execute(
    request: InspectRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> InspectResult:
    """Returns the names of the records, after writing them and the pictures into `folder`.

    The chosen layer is recorded in detail at every step. In a small model every other layer is,
    too, at the chosen step, so that another layer can be looked at without drawing again.

    Raises:
        UserError: no such layer, a model that cannot be opened, or a full disk.
    """
    start = time.perf_counter()
    reference = _inspect(
        request, cache.get(request.model, report=report), folder, "reference", report
    )
    variants: list[InspectedModel] = []
    for number, name in enumerate(request.variants, start=1):
        warm = cache.get(name, report=report)
        variants.append(_inspect(request, warm, folder, f"variant-{number}", report))
    return InspectResult(
        prompt=request.prompt,
        seed=request.seed,
        layer=request.layer,
        step=request.step,
        steps=request.steps,
        guidance=request.guidance,
        reference=reference,
        variants=variants,
        seconds=time.perf_counter() - start,
    )


def _inspect(
    request: InspectRequest, warm: Warm, folder: Path, role: str, report: Report
) -> InspectedModel:
    from vqdq.models import pipelines  # heavy: diffusers

    _, denoiser = pipelines.denoiser(warm.pipeline)
    guided = request.guidance > 1
    context = {"model": warm.reference, "prompt": request.prompt, "seed": request.seed}
    small = sum(p.numel() for p in denoiser.parameters()) <= SMALL
    attention, reason = None, None
    with contextlib.ExitStack() as stack:
        activations = stack.enter_context(
            capture.record(
                denoiser,
                detail=(request.layer,),
                detail_steps=(request.step,) if small else (),
                guided=guided,
                context=context,
            )
        )
        tokenizer = getattr(warm.pipeline, "tokenizer", None)
        if tokenizer is None or not capture.cross_attentions(denoiser):
            reason = "This model reads its prompt in another way than by cross-attention."
        else:
            attention = stack.enter_context(
                capture.record_attention(
                    denoiser,
                    capture.tokenize(tokenizer, request.prompt),
                    negative=capture.tokenize(tokenizer, "") if guided else None,
                    context=context,
                )
            )
        drawn = draw(warm, request, folder / f"{role}.png", report=report)
    found = InspectedModel(
        variant=warm.reference,
        label=warm.label,
        image=drawn.picture["image"],
        activations=f"{role}-activations.npz",
        attention=None,
        attention_reason=reason,
        trajectory=None,
        weights=None,
    )
    with disk_faults(folder):
        activations.result().save(folder / found["activations"])
        if attention is not None:
            found["attention"] = f"{role}-attention.npz"
            attention.result().save(folder / found["attention"])
    return found
