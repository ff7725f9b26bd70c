"""One picture as a file: drawn, timed, judged, and written as a lossless PNG that carries its
recipe.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch

from vqdq.durable import atomic
from vqdq.errors import UserError
from vqdq.jobs import arithmetic, certificate, run
from vqdq.jobs.faults import card_faults, disk_faults
from vqdq.jobs.requests import CompareRequest, GenerateRequest, InspectRequest
from vqdq.jobs.results import CardResult, Picture, VerdictResult
from vqdq.jobs.warm import Warm
from vqdq.progress import Event, Report

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from PIL.Image import Image

    from vqdq.models.generate import GenerateResult

CHUNK = "vqdq"  # name of the text chunk in the PNG


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """A picture, what is said about it, and the final latent."""

    picture: Picture
    image: Image
    latents: torch.Tensor
    notice: str


def draw(
    warm: Warm,
    request: GenerateRequest | CompareRequest | InspectRequest,
    path: Path,
    *,
    report: Report,
    capture: AbstractContextManager[object] | None = None,
) -> Drawn:
    """Returns the picture of a request drawn by one model, after writing it to `path`.

    Args:
        report: receives stage "draw" with the steps, and the finished picture as preview.
        capture: a recorder's context, open while the model runs.

    Raises:
        UserError: the picture cannot be written.
    """
    from vqdq.models import memory, modes, pipelines, room  # heavy: diffusers
    from vqdq.models.denoisers import denoiser

    def on(event: Event) -> None:
        report(dataclasses.replace(event, stage="draw", message=warm.label))

    before = psutil.Process().memory_info().rss
    memory.reset_peak()
    card = room.CardWatch.of(warm.pipeline)
    with nullcontext() if card is None else card_faults(warm.label, card.advice):
        drawn: GenerateResult = pipelines.generate(
            warm.pipeline,
            prompt=request.prompt,
            seed=request.seed,
            steps=request.steps,
            guidance=request.guidance,
            report=on,
            capture=capture,
        )
    growth = max(0, memory.peak_bytes() - before)
    save_png(path, drawn.image, recipe_of(warm, request))
    on(Event(stage="draw", done=request.steps, total=request.steps, preview=str(path)))
    warm_setting = modes.setting_of(warm.pipeline)
    verdict, reason = judge(drawn.image, request.prompt, is_demo=warm.is_demo)
    picture = Picture(
        variant=warm.reference,
        label=warm.label,
        image=path.name,
        seconds=drawn.seconds,
        load_seconds=warm.load_seconds,
        peak_memory_bytes=warm.tensor_bytes + growth,
        verdict=verdict,
        verdict_reason=reason,
        bits_per_weight=float(warm.facts.get("bits_per_weight", 16.0)),
        bytes=warm.file_bytes,
        reference_bytes=int(warm.facts.get("reference_bytes", warm.file_bytes)),
        initial_latent_sha256=drawn.initial_latent_sha256,
        activations=warm.activations,
        arithmetic=arithmetic.measured(denoiser(warm.pipeline)[1]),
        setting=certificate.setting(warm.pipeline, request.steps, request.guidance),
        extras={},
    )
    if drawn.once_seconds >= drawn.seconds / 10:
        picture["once_seconds"] = drawn.once_seconds
    if warm.facts:
        picture["mode"] = warm_setting.mode
        if warm_setting.cache_bytes is not None:
            picture["cache_bytes"] = warm_setting.cache_bytes
        if warm_setting.offload:
            picture["offload"] = True
            picture["waiting_bytes"] = modes.waiting_bytes(warm.pipeline)
    if card is not None:
        picture["card"] = CardResult(
            planned_bytes=card.planned_bytes(max(drawn.image.size)),
            measured_bytes=card.measured_bytes,
        )
    return Drawn(picture=picture, image=drawn.image, latents=drawn.latents, notice=drawn.notice)


def judge(image: Image, prompt: str, *, is_demo: bool) -> tuple[VerdictResult | None, str | None]:
    """Returns the judge's verdict, or None with the reason why there is none."""
    from vqdq.demo import judge as court
    from vqdq.demo import scenes

    if not is_demo:
        return None, "Only pictures of the embedded model can be judged by rule."
    try:
        scene = scenes.parse(prompt)
    except UserError as error:
        return None, f"The judge cannot read this prompt: {error.what} {error.remedy}".strip()
    found = court.judge(np.asarray(image.convert("RGB")), scene)
    return VerdictResult(
        passed=found.passed,
        count=found.count,
        shapes=found.shapes,
        colours=found.colours,
        sizes=found.sizes,
        relation=found.relation,
        background=found.background,
    ), None


def recipe_of(
    warm: Warm, request: GenerateRequest | CompareRequest | InspectRequest
) -> dict[str, Any]:
    """Returns what draws the same picture again; it goes into the PNG."""
    return {
        "model": warm.reference,
        "base": warm.facts.get("base_model"),
        "recipe": warm.facts.get("recipe"),
        "recipe_digest": warm.facts.get("recipe_digest"),
        "compression": warm.recipe,
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "guidance": request.guidance,
        "versions": dict(run.versions()),
    }


def save_png(path: Path, image: Image, recipe: dict[str, Any] | None = None) -> None:
    """Writes a lossless PNG by one rename, with its recipe as a text chunk.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if recipe is not None:
        info.add_text(CHUNK, json.dumps(recipe, ensure_ascii=False))
    with disk_faults(path), atomic(path) as file:
        image.save(file, format="PNG", pnginfo=info)
