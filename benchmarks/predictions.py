"""What a compression was expected to take, and what it took: bytes, memory, seconds.

    python -m benchmarks.predictions [demo|sd1|FOLDER] [RECIPE]

"sd1" is a UNet of Stable Diffusion 1.5's size with random weights, which is made first (1.7 GB).
Seconds are of the wall clock and of the processor: on a busy machine only the latter can agree.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import psutil

from vqdq.jobs import compress, costs, pace
from vqdq.jobs.requests import CompressRequest
from vqdq.models import compressor, pipelines
from vqdq.models.inventory import inventory
from vqdq.models.sources import presets_folder
from vqdq.recipe import load_recipe

SD1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}


def sd1(folder: Path) -> Path:
    """Returns a pipeline folder whose UNet has Stable Diffusion 1.5's shapes and random weights."""
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
    return folder


def main(arguments: list[str]) -> int:
    """Prints one table."""
    model, name, *_ = [*arguments, *("demo", "trellis-3bit")[len(arguments) :]]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if model == "sd1":
            made = place / "sd1"
            if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, "make", str(made)]):
                return 1  # in a process of its own, so that its memory is not in ours
            model = str(made)
        recipe = load_recipe(name, presets_folder())
        plan, found = compressor.plan(model, recipe), inventory(model)
        known = {
            pace.key(method, params): pace.measure(method, params, place)
            for method, params in pace.wanted([recipe])
        }
        paces = pace.Paces(
            known=known | pace.measure_running() | {pace.SAVING: pace.measure_saving(place)}
        )
        side = max(pipelines.describe(model).resolution or (0,))
        copied = sum(part.bytes for part in found.parts[1:])
        stages = costs.stages(plan, side, None, paces, copied_bytes=copied)
        program = psutil.Process().memory_info().rss
        memory = costs.memory_bytes(plan, program, found.parameters)
        request = CompressRequest(
            model=model, recipe=recipe, name="made", output=str(place / "made")
        )
        start, busy = time.perf_counter(), time.process_time()
        result = compress.execute(request)
        wall, cpu = time.perf_counter() - start, time.process_time() - busy
    print(f"{found.title}, {found.parameters / 1e6:.1f} M parameters, {name}")
    print(f"{'':12} {'expected':>14} {'measured':>14} {'off by':>8}")
    _row("bytes", plan.predicted_bytes, result["measured_bytes"])
    _row("memory", memory, result["peak_memory_bytes"])
    for stage in {**stages, **result["stages"]}:
        _row(stage, stages.get(stage, 0.0), result["stages"].get(stage, 0.0))
    _row("all, wall", sum(stages.values()), wall)
    print(f"the processor worked {cpu:.1f} s; {os.getloadavg()[0]:.1f} others wanted it too")
    return 0


def _row(name: str, expected: float, measured: float) -> None:
    off = 100 * (expected - measured) / measured if measured else float("nan")
    print(f"{name:12} {expected:14,.1f} {measured:14,.1f} {off:+7.1f} %")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        sd1(Path(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
