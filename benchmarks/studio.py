"""What a person waits for: the page, a compression, a pair of pictures."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import vqdq
from benchmarks.timing import interleaved, table
from vqdq.models.compressor import as_recipe, compress_folder
from vqdq.models.generate import generate

ROOT = Path(__file__).parents[1]
PROMPT = "a large red circle above a small blue square on a striped grey background"
RECIPES = ("rtn-4bit", "vq-3bit", "trellis-3bit", "w8a8", "w3a8-trellis")


def page_ready(port: int = 7911) -> None:
    """Starts the studio and returns when the page answers."""
    with tempfile.TemporaryDirectory() as workspace:
        command = [sys.executable, "app.py", "--port", str(port), "--workspace", workspace]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                        return
                except (URLError, ConnectionError):
                    time.sleep(0.05)
        finally:
            process.terminate()
            process.wait()


def compression(recipe: str, output: Path) -> Callable[[], object]:
    """Returns the work of compressing the embedded model afresh."""

    def work() -> object:
        shutil.rmtree(output, ignore_errors=True)
        return compress_folder("demo", as_recipe(recipe), output)

    return work


def run() -> str:
    """Returns the table as Markdown."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = {recipe: compression(recipe, folder / recipe) for recipe in RECIPES}
        for recipe, seconds in interleaved(work, repeats=3).items():
            plan = vqdq.plan("demo", recipe)
            size = f"{plan.predicted_bytes / 1e6:.2f} MB, {plan.bits_per_weight:.3f} bits"
            rows.append([f"compress demo, {recipe}", str(seconds), size])
        pipelines = {"16-bit file, fp32": vqdq.load("demo")}
        pipelines |= {recipe: vqdq.load(folder / recipe) for recipe in RECIPES}
        draw = {
            label: lambda pipeline=pipeline: generate(
                pipeline, prompt=PROMPT, seed=7, steps=20, guidance=3.0
            )
            for label, pipeline in pipelines.items()
        }
        for label, seconds in interleaved(draw, repeats=5).items():
            rows.append([f"one picture, {label}", str(seconds), "warm"])
    ready = interleaved({"page": page_ready}, repeats=3)["page"]
    rows.append(["page ready, from start", str(ready), "an empty workspace"])
    return table(["what", "seconds", "notes"], rows)
