"""What a compression was expected to take, and what it took: bytes, memory, seconds.

    python -m benchmarks predictions                              all of it, into RESULTS.md
    python -m benchmarks.predictions [demo|sd1|wide|FOLDER] [RECIPE]   one, as a table

"sd1" is a UNet of Stable Diffusion 1.5's size, "wide" the embedded pipeline around a UNet of SDXL's
widths with a layer a block; both have random weights and are made first (1.7 and 0.8 GB).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.timing import table
from vqdq.jobs import compress, costs, pace
from vqdq.jobs.requests import CompressRequest
from vqdq.models import compressor, pipelines
from vqdq.models.inventory import inventory
from vqdq.models.sources import presets_folder
from vqdq.recipe import Recipe, load_recipe

SD1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
WIDE = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1, 1],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
}
FEW = "few wide layers, calibrated"
"""A recipe of five layers of "wide", one of them with 23,040 columns."""
RUNS = (
    ("demo", "rtn-4bit", 3),
    ("demo", "trellis-3bit", 3),
    ("demo", "w3a8-trellis", 3),
    ("demo", "dgq-w4a8", 3),
    ("demo", "trellis-3bit-calibrated", 1),
    ("demo", "trellis-3bit-tuned", 1),
    ("wide", FEW, 1),
    ("sd1", "trellis-3bit", 1),
)
WHOLE = "all"


def sd1(folder: Path) -> None:
    """Writes a pipeline whose UNet has Stable Diffusion 1.5's shapes and random weights."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD1).half()  # pyright: ignore[reportArgumentType]
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)


def wide(folder: Path) -> None:
    """Writes the embedded pipeline around a UNet of SDXL's widths with random weights."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    pipe = pipelines.load(pipelines.DEMO)
    known = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    blocks = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    pipe.unet = UNet2DConditionModel(**(known | WIDE | blocks)).half()
    pipe.save_pretrained(folder)


MAKERS = {"sd1": sd1, "wide": wide}


def recipe_of(name: str) -> Recipe:
    """Returns a preset, a file's recipe, or `FEW`."""
    if name != FEW:
        return load_recipe(name, presets_folder())
    trellis = {"method": "trellis", "params": {"bits": 3}}
    rules = [
        {"pattern": "up_blocks.0.resnets.0.*", **trellis},
        {"pattern": "mid_block.attentions.0.*", **trellis},
        {"pattern": "*", "method": None},
    ]
    values = {"version": 1, "name": "few", "rules": rules}
    return Recipe.from_json(values | {"calibration": {"prompts": 2, "steps": 2}})


def measure(model: str, name: str) -> dict[str, Any]:
    """Returns (expected, measured) by what was predicted: "bytes", "memory", stages, `WHOLE`."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if model in MAKERS:
            made = place / model
            command = [sys.executable, "-m", "benchmarks.predictions", "make", model, str(made)]
            subprocess.run(command, check=True, capture_output=True)  # its memory is not ours
            model = str(made)
        recipe = recipe_of(name)
        plan, found = compressor.plan(model, recipe), inventory(model)
        known = {
            pace.key(method, params): pace.measure(method, params, place)
            for method, params in pace.wanted([recipe])
        }
        known |= pace.measure_running() | {pace.SAVING: pace.measure_saving(place)}
        side = max(pipelines.describe(model).resolution or (0,))
        copied = sum(part.bytes for part in found.parts[1:])
        stages = costs.stages(plan, side, None, pace.Paces(known=known), copied_bytes=copied)
        program = psutil.Process().memory_info().rss
        memory = costs.memory_bytes(plan, program, found.parameters)
        request = CompressRequest(
            model=model, recipe=recipe, name="made", output=str(place / "made")
        )
        start = time.perf_counter()
        result = compress.execute(request)
        wall = time.perf_counter() - start
    rows: dict[str, tuple[float, float]] = {
        "bytes": (plan.predicted_bytes, result["measured_bytes"]),
        "memory": (memory, result["peak_memory_bytes"]),
    }
    for stage in {**stages, **result["stages"]}:
        rows[stage] = (stages.get(stage, 0.0), result["stages"].get(stage, 0.0))
    rows[WHOLE] = (sum(stages.values()), wall)
    return rows


def run() -> str:
    """Returns the tables of all `RUNS`, each measured in processes of its own."""
    cells = [
        [f"{model}, {name}", *_summary([_apart(model, name) for _ in range(times)])]
        for model, name, times in RUNS
    ]
    return table(["model, recipe", "bytes", "memory", "stages of 2 s and more", "all"], cells)


def _apart(model: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.predictions", "--json", model, name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _summary(runs: list[Mapping[str, tuple[float, float]]]) -> list[str]:
    exact = all(run["bytes"][0] == run["bytes"][1] for run in runs)
    stages = [
        f"{name} {_told(runs, name, 1, 's')}"
        for name in runs[0]
        if name not in ("bytes", "memory", WHOLE) and runs[0][name][1] >= 2
    ]
    return [
        f"{runs[0]['bytes'][1]:,.0f}, {'exact' if exact else 'NOT exact'}",
        _told(runs, "memory", 1e-9, "GB"),
        "; ".join(stages),
        _told(runs, WHOLE, 1, "s"),
    ]


def _told(runs: list[Mapping[str, tuple[float, float]]], name: str, unit: float, word: str) -> str:
    """ "1.10 for 1.12 GB (1.02–1.33), −2 %": expected, measured, spread, off by."""
    expected = statistics.median(run[name][0] for run in runs) * unit
    found = sorted(run[name][1] * unit for run in runs)
    middle = statistics.median(found)
    spread = f" ({found[0]:.3g}–{found[-1]:.3g})" if len(found) > 1 else ""
    return f"{expected:.3g} for {middle:.3g} {word}{spread}, {100 * (expected / middle - 1):+.0f} %"


def main(arguments: list[str]) -> int:
    """Prints one table, or one line of JSON."""
    as_json = arguments[:1] == ["--json"]
    rest = arguments[as_json:]
    model, name, *_ = [*rest, *("demo", "trellis-3bit")[len(rest) :]]
    rows = measure(model, name)
    if as_json:
        print(json.dumps(rows))
        return 0
    print(f"{model}, {name}\n{'':12} {'expected':>14} {'measured':>14} {'off by':>8}")
    for label, (expected, measured) in rows.items():
        off = 100 * (expected / measured - 1) if measured else float("nan")
        print(f"{label:12} {expected:14,.1f} {measured:14,.1f} {off:+7.1f} %")
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        MAKERS[sys.argv[2]](Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
