"""A workspace with models and a drawn blind test, without any model: `python -m … WORKSPACE PORT`.

Served without a worker, so that the process can be killed at once and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import zlib

import numpy as np
from PIL import Image

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.jobs import pairs
from vqdq.jobs.store import Workspace
from vqdq.models.sources import demo_folder
from vqdq.ui import blind
from vqdq.ui.blind_setup import Wish
from vqdq.ui.desk import Desk

NAMES = {"quartz": 2.03, "basalt": 3.03, "marble": 4.03}
"""Names of the models, which occur nowhere else, and their bits."""


def add_models(workspace: Workspace) -> None:
    """Adds compressed models: the embedded one under other names."""
    for name, bits in NAMES.items():
        folder = workspace.models_folder / name
        shutil.copytree(demo_folder(), folder, copy_function=os.symlink)
        facts = {"base_model": "demo", "bits_per_weight": bits, "recipe": name}
        (folder / "vqdq.json").write_text(json.dumps(facts))


def paint(entrant, picture, report):
    """Noise that is the coarser the fewer bits a model has."""
    del report
    noise = np.random.default_rng(zlib.crc32(f"{picture.prompt} {picture.seed}".encode()))
    clean = noise.integers(60, 196, (32, 32, 3))
    error = noise.integers(-60, 60, clean.shape) / (entrant.bits or 16)
    pixels = np.clip(clean + error, 0, 255).astype(np.uint8)
    return pairs.Painted(image=Image.fromarray(pixels), start=f"noise {picture.seed}")


def wish(**values) -> Wish:
    """A small test: FP16 against one model, four pairs, one question."""
    plain = {"variants": ("basalt",), "prompts": EXAMPLE_PROMPTS[:4], "pairs": 4, "name": "Stones"}
    return Wish(**(plain | {"questions": ("overall",)} | values))


def drawn(desk: Desk, **values) -> str:
    """Returns the id of the finished run of a new test."""
    run = blind.submit(desk, wish(**values))
    draw_next(desk)
    return run


def draw_next(desk: Desk) -> None:
    """Does what the worker would do with the next run, a blind test."""
    record = desk.workspace.take()
    protocol = desk.votes.protocol(record.request.test)
    made = pairs.draw_all(protocol, record.folder, paint)
    desk.workspace.finish(record.id, "done", result=dict(made))


if __name__ == "__main__":
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    from vqdq.ui import page

    served = Workspace.open(sys.argv[1])
    options = page.launch_options(served, host="127.0.0.1", port=int(sys.argv[2]), auth=None)
    page.build(served, "demo").launch(prevent_thread_lock=True, **options)
    print("ready", flush=True)
    threading.Event().wait()
