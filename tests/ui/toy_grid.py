"""Grids for the page's tests: the real job with a toy in the place of the model.

A prompt that holds "yellow" fails until the file "mended" lies in the workspace; while the file
"slow" lies there, a picture takes long. Seed 3 forgets the background.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from vqdq.demo import scenes
from vqdq.errors import UserError
from vqdq.jobs import grid
from vqdq.jobs.draw import Drawn, save_png
from vqdq.progress import Event

PARTS = ("passed", "count", "shapes", "colours", "sizes", "relation", "background")


def execute(request, folder, place, report):
    """The real job, in a process of its own, so that its model may be replaced for good."""
    toy = Toy(place)
    grid.draw = toy.draw
    return grid.execute(request, folder, report=report, cache=toy)


@dataclass
class Toy:
    """Stands in for the warm pipelines and for what they draw."""

    place: Path

    def get(self, reference, *, report):
        del report
        return SimpleNamespace(label="FP16" if reference == "demo" else reference)

    def draw(self, warm, request, path, *, report):
        for step in range(request.steps):
            report(Event(stage="draw", done=step, total=request.steps))
            time.sleep(0.5 if (self.place / "slow").exists() else 0.002)
        if "yellow" in request.prompt and not (self.place / "mended").exists():
            raise UserError("there was not enough memory.", remedy="Close other programs.")
        seed = torch.Generator().manual_seed(request.seed)
        image = Image.fromarray(scenes.render(scenes.parse(request.prompt), seed, 64))
        save_png(path, image, {"prompt": request.prompt, "seed": request.seed})
        picture = {
            "image": path.name,
            "label": warm.label,
            "seconds": 0.5,
            "peak_memory_bytes": 400_000_000,
            "bytes": 57_000_000,
            "bits_per_weight": 16.0,
            "activations": "",
            "initial_latent_sha256": "3fa9c1" + 58 * "0",
            "verdict": dict.fromkeys(PARTS, True)
            | ({"passed": False, "background": False} if request.seed == 3 else {}),
            "verdict_reason": None,
        }
        return Drawn(picture=picture, image=image, latents=torch.zeros(1), notice="")
