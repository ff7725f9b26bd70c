"""The same picture from a reference and its compressed variants, with the proof that only the
model differs.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vqdq.jobs import run
from vqdq.jobs.draw import Drawn, draw, save_png
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.results import Certificate, ComparedPicture, CompareResult
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.metrics import images
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from PIL.Image import Image

ERROR_SCALE = 0.25  # a channel error that is drawn at full brightness; larger ones are as bright


def execute(
    request: CompareRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> CompareResult:
    """Returns pictures and distances, after writing the PNG files into `folder`.

    Raises:
        UserError: a model cannot be opened, pictures of different sizes, or a full disk.
    """
    start = time.perf_counter()
    files = file_names(request.variants)
    total = request.steps * len(files)
    base = cache.get(request.model, report=report)
    reference = draw(base, request, folder / files[0], report=_share(report, 0, total))
    compared: list[ComparedPicture] = []
    problems: list[str] = []
    for position, name in enumerate(request.variants, start=1):
        warm = cache.get(name, report=report)
        part = _share(report, position * request.steps, total)
        drawn = draw(warm, request, folder / files[position], report=part)
        compared.append(_against(reference, drawn, folder))
        problems += _differences(base, warm)
        if drawn.picture["initial_latent_sha256"] != reference.picture["initial_latent_sha256"]:
            problems.append(f"{warm.label}: the picture started from other noise.")
    shown = [reference.picture, *compared]
    noise = reference.picture["initial_latent_sha256"]
    certificate = Certificate(
        same_start=all(picture["initial_latent_sha256"] == noise for picture in shown),
        initial_latent_sha256=noise,
        scheduler=type(base.pipeline.scheduler).__name__,
        same_components=not any("weights" in problem for problem in problems),
        problems=problems,
        versions=dict(run.versions()),
        device=str(run.device()["device"]),
    )
    return CompareResult(
        prompt=request.prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        reference=reference.picture,
        variants=compared,
        images={picture["variant"]: picture["image"] for picture in shown},
        certificate=certificate,
        notices=[reference.notice] if reference.notice else [],
        seconds=time.perf_counter() - start,
    )


def file_names(variants: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the PNG of the reference and of each variant; the names are safe and distinct."""
    names = ["reference.png"]
    for number, variant in enumerate(variants, start=1):
        last = re.split(r"[/\\]", variant.rstrip("/\\"))[-1]
        clean = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-")[:48]
        names.append(f"{number}-{clean or 'variant'}.png")
    return tuple(names)


def _share(report: Report, done: int, total: int) -> Report:
    """The steps of one picture as a share of all pictures' steps: one bar, one ETA."""

    def on(event: Event) -> None:
        report(dataclasses.replace(event, done=done + event.done, total=total))

    return on


def _against(reference: Drawn, drawn: Drawn, folder: Path) -> ComparedPicture:
    distance = images.compare(reference.image, drawn.image).to_json()
    name = drawn.picture["image"].removesuffix(".png") + "-error.png"
    save_png(folder / name, _error_picture(reference.image, drawn.image))
    same_latents = reference.latents.shape == drawn.latents.shape and drawn.latents.numel() > 0
    return ComparedPicture(
        **drawn.picture,
        psnr=distance["psnr_db"],
        ssim=cast(float, distance["ssim"]),
        mean_error=cast(float, distance["mean_error"]),
        max_error=cast(float, distance["max_error"]),
        changed=cast(float, distance["changed"]),
        latent_cosine=images.cosine(reference.latents, drawn.latents) if same_latents else None,
        error_map=name,
        error_scale=ERROR_SCALE,
    )


def _error_picture(a: Image, b: Image) -> Image:
    """Mean absolute channel error as brightness: black is equal, white is `ERROR_SCALE` or more."""
    from PIL import Image as pil

    error = images.error_map(a, b)  # [h, w] in 0 ... 1
    return pil.fromarray(np.round(255 * np.clip(error / ERROR_SCALE, 0, 1)).astype(np.uint8))


def _differences(reference: Warm, other: Warm) -> list[str]:
    """What differs beside the denoiser: such pictures would not show the compression alone."""
    from vqdq.models import pipelines  # heavy: diffusers

    denoiser = pipelines.denoiser(reference.pipeline)[0]
    mine = cast(dict[str, Any], reference.pipeline.components)
    theirs = cast(dict[str, Any], other.pipeline.components)
    found: list[str] = []
    for name, part in mine.items():
        if name == denoiser:
            continue
        twin = theirs.get(name)
        if isinstance(part, torch.nn.Module):
            if not isinstance(twin, torch.nn.Module) or not _equal(part, twin):
                found.append(f"{other.label}: the weights of its {name} differ.")
        elif name == "scheduler" and (twin is None or dict(part.config) != dict(twin.config)):
            found.append(f"{other.label}: its scheduler differs.")
    return found


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )
