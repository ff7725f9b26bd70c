"""How far a changed denoiser strays from the full-precision one: at each step, and at the end.

Two questions. Along the teacher's own trajectory both see the same inputs, so the difference of
their predictions is what the change itself costs at each step. Left to run free, errors feed back
through the sampler, and what counts is where the latents end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vqdq.models.quiet import quiet
from vqdq.models.trajectory import Call, Trajectories, guided, replay
from vqdq.progress import Event, Report, silent


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionError:
    """Signal-to-noise ratios of noise predictions along recorded calls, in dB; inf when equal.

    `raw` compares the denoiser's whole output (both halves under guidance), `guided` what the
    sampler makes of it, e_u + g (e_c − e_u); equal without guidance.

    Attributes:
        raw_db, guided_db: one value a step, over all prompts: 10 log10(Σ‖teacher‖² / Σ‖error‖²).
        raw_overall_db, guided_overall_db: the same ratio over all steps and prompts together.
    """

    raw_db: tuple[float, ...]
    guided_db: tuple[float, ...]
    raw_overall_db: float
    guided_overall_db: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentError:
    """Where freely drawn latents end, one value a prompt.

    Attributes:
        cosine: of the flattened latents; 1 when equal.
        relative: ‖x − x_ref‖² / ‖x_ref‖²; 0 when equal.
    """

    cosine: tuple[float, ...]
    relative: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """Squared norms of what the teacher predicts and of what differs, raw and guided."""

    raw_signal: float
    raw_error: float
    guided_signal: float
    guided_error: float


def decibel(signal: float, error: float) -> float:
    """Returns 10 log10(signal / error) of two energies; inf without error, -inf without signal."""
    if error == 0:
        return math.inf
    return -math.inf if signal == 0 else 10 * (math.log10(signal) - math.log10(error))


def energy(prediction: torch.Tensor, call: Call, guidance: float) -> Energy:
    """Returns the energies of a recorded call's output and of a prediction's difference from it."""
    truth = call.output
    difference = prediction.detach().to(truth.device, torch.float32) - truth.float()
    return Energy(
        raw_signal=_power(truth),
        raw_error=_power(difference),
        guided_signal=_power(guided(truth, call, guidance)),
        guided_error=_power(guided(difference, call, guidance)),
    )


def sqnr_by_step(
    module: nn.Module, trajectories: Trajectories, report: Report = silent
) -> PredictionError:
    """Returns the error of `module` on every call that the teacher made.

    Args:
        module: a denoiser that takes the same arguments, where the recorded tensors are.
        report: stage "predict", one unit a call; may raise `Cancelled`.
    """
    calls = trajectories.calls
    by_step: dict[int, list[Energy]] = {}
    with torch.no_grad():
        for done, call in enumerate(calls):
            report(Event(stage="predict", done=done, total=len(calls)))
            found = energy(replay(module, call), call, trajectories.guidance)
            by_step.setdefault(call.step, []).append(found)
    report(Event(stage="predict", done=len(calls), total=len(calls)))
    steps = [by_step[step] for step in sorted(by_step)]
    raw, guided_ones = [_raw_db(step) for step in steps], [_guided_db(step) for step in steps]
    everything = [item for step in steps for item in step]
    return PredictionError(
        raw_db=tuple(raw),
        guided_db=tuple(guided_ones),
        raw_overall_db=_raw_db(everything),
        guided_overall_db=_guided_db(everything),
    )


def final_latents(
    pipeline: Callable[..., Any],
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
    batch_size: int = 8,
    report: Report = silent,
) -> torch.Tensor:
    """Returns the latents a pipeline ends in, float32 [prompts, ...], running free.

    Prompt i starts from the noise of seed + i, as in `models.trajectory.record`; with the same
    batch size the full-precision pipeline ends in the very latents that were recorded.

    Args:
        pipeline: a text-to-image pipeline of diffusers.
        report: stage "draw", one unit a prompt; may raise `Cancelled`.
    """
    ends: list[torch.Tensor] = []
    with quiet(), torch.no_grad():
        for start in range(0, len(prompts), batch_size):
            report(Event(stage="draw", done=start, total=len(prompts)))
            part = list(prompts[start : start + batch_size])
            seeds = range(seed + start, seed + start + len(part))
            drawn = pipeline(
                prompt=part,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(number) for number in seeds],
                output_type="latent",
            )
            ends.append(drawn.images.detach().float().cpu())
    report(Event(stage="draw", done=len(prompts), total=len(prompts)))
    return torch.cat(ends)


def latent_error(latents: torch.Tensor, reference: torch.Tensor) -> LatentError:
    """Returns cosine and relative squared error of latents [n, ...] against a reference's."""
    ours, theirs = latents.double().flatten(1), reference.double().flatten(1)
    cosine = nn.functional.cosine_similarity(ours, theirs, dim=1)
    relative = (ours - theirs).square().sum(1) / theirs.square().sum(1)
    return LatentError(cosine=tuple(cosine.tolist()), relative=tuple(relative.tolist()))


def _power(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def _raw_db(parts: Sequence[Energy]) -> float:
    return decibel(sum(p.raw_signal for p in parts), sum(p.raw_error for p in parts))


def _guided_db(parts: Sequence[Energy]) -> float:
    return decibel(sum(p.guided_signal for p in parts), sum(p.guided_error for p in parts))
