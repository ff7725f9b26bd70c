"""The same-seed certificate: proof that pictures differ by the model only, and what breaks it.

`setting` is kept with every picture; `mismatches` reads it back. The page asks again when it shows
a result, so a file that was changed, or drawn under two settings, is noticed there, too.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vqdq.jobs import run
from vqdq.jobs.results import Certificate, Picture, Setting

_WORDS = {
    "scheduler": "its scheduler is {theirs}, not {mine}",
    "scheduler_sha256": "its scheduler has other settings",
    "steps": "it was drawn in {theirs} steps, not {mine}",
    "guidance": "its guidance is {theirs}, not {mine}",
    "device": "it was drawn on {theirs}, not on {mine}",
    "dtype": "it was computed in {theirs}, not in {mine}",
    "environment": "it was drawn with other versions or kernels of this program",
}


def setting(pipeline: Any, steps: int, guidance: float) -> Setting:
    """Returns what decides a picture of this pipeline beside its model, prompt and seed."""
    import torch

    from vqdq.models.denoisers import denoiser  # heavy: diffusers

    module = denoiser(pipeline)[1]
    scheduler = pipeline.scheduler
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    device = torch.device("cpu") if first is None else first.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Setting(
        scheduler=type(scheduler).__name__,
        scheduler_sha256=_sha256(dict(scheduler.config)),
        steps=steps,
        guidance=guidance,
        device=name,
        dtype="float32" if first is None else str(first.dtype).removeprefix("torch."),
        environment=_environment(),
    )


def certify(pictures: Sequence[Picture], differences: Sequence[str], scheduler: str) -> Certificate:
    """Returns the certificate of pictures of one set; the first one is the reference.

    Args:
        differences: what differs in the models beside the denoiser, in words.
        scheduler: class of the reference's.
    """
    noise = pictures[0]["initial_latent_sha256"]
    return Certificate(
        same_start=all(picture["initial_latent_sha256"] == noise for picture in pictures),
        initial_latent_sha256=noise,
        scheduler=scheduler,
        same_components=not any("weights" in line for line in differences),
        problems=[*differences, *mismatches(pictures)],
        versions=dict(run.versions()),
        kernels=_kernels(),
        device=str(run.device()["device"]),
    )


def mismatches(pictures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one sentence for each thing in which a picture differs from the first one.

    Args:
        pictures: `Picture`s as JSON; those of older versions carry less, which is not compared.
    """
    first, found = pictures[0], list[str]()
    for picture in pictures[1:]:
        label = picture.get("label", "")
        if picture.get("initial_latent_sha256") != first.get("initial_latent_sha256"):
            found.append(f"{label}: the picture started from other noise.")
        mine = cast(dict[str, Any], first.get("setting") or {})
        theirs = cast(dict[str, Any], picture.get("setting") or {})
        found += [
            f"{label}: {words.format(mine=mine[name], theirs=theirs[name])}."
            for name, words in _WORDS.items()
            if name in mine and name in theirs and mine[name] != theirs[name]
        ]
    return found


@functools.cache
def _kernels() -> dict[str, str]:
    return {item["op"]: item["backend"] for item in run.kernels()}


@functools.cache
def _environment() -> str:
    return _sha256({"versions": dict(run.versions()), "kernels": _kernels()})


def _sha256(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
