"""How long a compressed model of 1 GB takes to open, and in how much memory.

The file is written directly, random codes in the layout of the plan: opening does not look at them.
Each opening is a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.large import MODELS, ROOT, scaffold
from benchmarks.timing import table
from vqdq.durable import write_text
from vqdq.models.checkpoint import WEIGHTS, quantization_config
from vqdq.models.weights import write_weights
from vqdq.recipe import METADATA
from vqdq.tensors import TensorSpec

_OPEN = """
import json, sys, time
import vqdq, vqdq.models.hub
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from vqdq.models.memory import peak_bytes, reset_peak
reset_peak()
before, start, worked = peak_bytes(), time.perf_counter(), time.process_time()
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
seconds, worked = time.perf_counter() - start, time.process_time() - worked
print(json.dumps([seconds, worked, peak_bytes() - before]))
"""


def synthesize(folder: Path) -> int:
    """Writes a compressed SDXL pipeline with random codes; returns the size of its weights."""
    model = MODELS["sdxl"]
    plan = model.plan
    packing = {"quantization_config": quantization_config(plan)}
    inner = scaffold(model, folder)
    write_text(inner / "config.json", json.dumps(model.config | packing))
    block = torch.randint(0, 256, (1 << 24,), dtype=torch.uint8)

    def read(spec: TensorSpec) -> torch.Tensor:
        if spec.dtype != torch.uint8:
            return torch.full(spec.shape, 0.01, dtype=spec.dtype)
        return block.repeat(-(-spec.num_bytes // len(block)))[: spec.num_bytes].reshape(spec.shape)

    return write_weights(inner / WEIGHTS, plan.tensors, METADATA, read)


def run() -> str:
    """Returns the table as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        size = synthesize(folder)
        found: list[list[float]] = []
        for _ in range(4):  # the first reads the file from the disk, and is not counted
            process = subprocess.run(
                [sys.executable, "-c", _OPEN, str(folder)],
                cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            found.append(json.loads(process.stdout.splitlines()[-1]))
    seconds, worked, peak = ([each[place] for each in found[1:]] for place in range(3))
    row = [
        f"{size / 1e9:.3f}",
        f"{statistics.median(seconds):.1f} ({min(seconds):.1f}–{max(seconds):.1f})",
        f"{statistics.median(worked):.1f} ({min(worked):.1f}–{max(worked):.1f})",
        f"{max(peak) / size:.3f}",
    ]
    return table(["file, GB", "seconds", "seconds of one core", "peak memory over the file"], [row])
