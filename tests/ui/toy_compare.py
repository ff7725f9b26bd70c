"""Comparisons for the page's tests: the real shapes of results, pictures of the demo world.

A prompt that holds "slow" takes a second a step, one that holds "fault" fails, and "forged" starts
its variants from other noise.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from PIL import Image

from vqdq.demo import scenes
from vqdq.errors import UserError
from vqdq.jobs import certificate, distance
from vqdq.jobs.batch import Journal
from vqdq.jobs.draw import Drawn
from vqdq.progress import Event

SIDE = 128
NOISE = "3fa9c1" + 58 * "0"
MIXED = {
    "layers": 137, "integer": 120, "simulated": 9, "sixteen_bit": 8, "rounded_weights": 0,
    "reasons": {"scales lie on the summed axis, one for each channel": 9},
    "attention": 32, "attention_simulated": 32,
}  # fmt: skip
PARTS = ("count", "shapes", "colours", "sizes", "relation", "background")
APART = {
    "psnr": 29.41, "ssim": 0.951, "mean_error": 0.01, "max_error": 0.2, "changed": 0.9,
    "flip": 0.041, "latent_cosine": 0.98,
}  # fmt: skip
FLOOR = {
    "repeat": APART | {"psnr": None, "ssim": 1.0, "flip": 0.0, "latent_cosine": 1.0},
    "rounding": APART | {"psnr": 61.7, "ssim": 0.99974, "flip": 0.005, "latent_cosine": 0.99999},
    "dtype": "bfloat16",
    "seconds": 0.1,
}


def compare(request, folder, report):
    """The result of a comparison or a batch; models are the outer loop, as in the real job."""
    if "fault" in request.prompt:
        raise UserError(
            "there was not enough memory.", where="worker", remedy="Close other programs."
        )
    names = (request.model, *request.variants)
    journal = Journal(folder, request)
    total = request.steps * len(names) * len(request.sets)
    done = 0
    for model, name in enumerate(names):
        for place, (prompt, seed) in enumerate(request.sets):
            for step in range(request.steps):
                report(Event(stage="draw", done=done + step, total=total, message=name))
                time.sleep(1.0 if "slow" in prompt else 0.2 / request.steps)
            done += request.steps
            if (place, model) in journal.pictures:
                continue
            stem = "reference" if model == 0 else f"{model}-variant"
            stem = f"{place + 1:03d}-{stem}" if request.is_batch else stem
            row = one(request, folder, stem, model, name, prompt, seed, place)
            if request.is_batch:
                blank = Drawn(picture=row, image=None, latents=torch.zeros(1), notice="")
                journal.add(place, model, blank, row)
            else:
                journal.pictures[place, model] = row
    shown = [journal.pictures[0, model] for model in range(len(names))]
    proof = certificate.certify(shown, [], "DPMSolverMultistepScheduler")
    floor = FLOOR if request.floor else None
    for place in range(len(request.sets)) if request.floor and request.is_batch else ():
        journal.add_floor(place, FLOOR)
    result = {
        "prompt": request.prompt, "seed": request.seed, "steps": request.steps,
        "guidance": request.guidance, "reference": shown[0], "variants": shown[1:],
        "images": {row["variant"]: row["image"] for row in shown}, "floor": floor,
        "sets": len(request.sets), "certificate": proof, "notices": [], "seconds": 2.0,
    }  # fmt: skip
    return json.loads(json.dumps(result))


def one(request, folder, stem, model, name, prompt, seed, place):
    """One picture's row, after writing its files: the later a model, the more noise."""
    clean = picture(prompt, seed)
    noise = np.random.default_rng(seed).standard_normal(clean.shape)
    pixels = clean.astype(np.float32) + 6 * model * (1 + place) * noise
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{stem}.png")
    row = {
        "variant": name,
        "label": "FP16" if model == 0 else name,
        "image": f"{stem}.png",
        "seconds": 0.91 - 0.2 * model,
        "load_seconds": 0.0,
        "peak_memory_bytes": 412_000_000,
        "verdict": dict.fromkeys(("passed", *PARTS), True)
        | ({"sizes": False, "passed": False} if model else {}),
        "verdict_reason": None,
        "bits_per_weight": 3.02 if model else 16.0,
        "bytes": 11_200_000 if model else 57_000_000,
        "reference_bytes": 57_000_000,
        "initial_latent_sha256": NOISE[::-1] if model and "forged" in prompt else NOISE,
        "activations": "",
        "arithmetic": None,
        "setting": {
            "scheduler": "DPMSolverMultistepScheduler", "scheduler_sha256": "a", "device": "cpu",
            "steps": request.steps, "guidance": request.guidance, "dtype": "float32",
            "environment": "b",
        },
        "extras": {},
    }  # fmt: skip
    if "w8a8" in name:
        row |= {"activations": "activations 8 bits (dynamic)", "arithmetic": MIXED}
    if model:
        error = np.abs(pixels - clean).mean(axis=2)
        grey = np.clip(error * 6, 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{stem}-error.png")
        magma = distance.magma(grey / 255)
        Image.fromarray(magma).save(folder / f"{stem}-flip.png")
        row |= APART | {"flip": 0.041 * (1 + place)}
        row |= {"error_map": f"{stem}-error.png", "error_scale": 0.25}
        row |= {"flip_map": f"{stem}-flip.png"}
    return row


def picture(prompt, seed):
    """The scene of a prompt, or of an example where it is none, uint8 [side, side, 3]."""
    try:
        scene = scenes.parse(prompt)
    except UserError:
        scene = scenes.parse(scenes.EXAMPLE_PROMPTS[0])
    return scenes.render(scene, torch.Generator().manual_seed(seed), SIDE)
