"""What every named recipe costs in size and does to the pictures of the embedded model."""

from __future__ import annotations

import statistics

import numpy as np

import vqdq
from benchmarks.timing import table
from vqdq.demo import evaluate
from vqdq.demo.judge import judge
from vqdq.demo.scenes import caption
from vqdq.metrics import images
from vqdq.models.sources import presets_folder

PICTURES = 24


def run() -> str:
    """Returns the table as Markdown."""
    scenes = evaluate.evaluation_scenes(PICTURES)
    captions, seeds = [caption(scene) for scene in scenes], list(range(PICTURES))
    reference = vqdq.load("demo")
    reference.set_progress_bar_config(disable=True)
    truth = evaluate.draw(reference, captions, seeds)
    again = evaluate.draw(reference, captions, seeds)
    plan = vqdq.plan("demo", "rtn-8bit")
    rows = [
        _row("16-bit", plan.reference_bytes, 16.0, truth, again, scenes),
    ]
    for path in sorted(presets_folder().glob("*.json")):
        plan = vqdq.plan("demo", path.stem)
        small = vqdq.compress(reference, path.stem)
        small.set_progress_bar_config(disable=True)
        drawn = evaluate.draw(small, captions, seeds)
        rows.append(
            _row(path.stem, plan.predicted_bytes, plan.bits_per_weight, truth, drawn, scenes)
        )
        print(rows[-1], flush=True)
    head = ["recipe", "denoiser", "bits per packed weight", "PSNR, dB", "SSIM", "as asked"]
    return table(head, rows)


def _row(
    name: str,
    size_bytes: int,
    bits: float,
    truth: np.ndarray,
    drawn: np.ndarray,
    scenes: list[evaluate.scenes.Scene],
) -> list[str]:
    compared = [images.compare(a, b) for a, b in zip(truth, drawn, strict=True)]
    passed = sum(judge(b, scene).passed for b, scene in zip(drawn, scenes, strict=True))
    psnr = sorted(item.psnr_db for item in compared)
    low, high = psnr[len(psnr) // 10], psnr[-1 - len(psnr) // 10]
    ssim = statistics.median(item.ssim for item in compared)
    return [
        name,
        f"{size_bytes / 1e6:.1f} MB",
        f"{bits:.2f}",
        f"{statistics.median(psnr):.1f} ({low:.1f}–{high:.1f})",
        f"{ssim:.3f}",
        f"{passed} of {len(scenes)}",
    ]
