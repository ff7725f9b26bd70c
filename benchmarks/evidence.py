"""What each method does to the demo model: predictions, latents, pictures and what they show.

Every variant is measured on the same held-out captions and seeds. A finished row is kept in
`.bench-work/` under the digest of its recipe, so an interrupted run goes on; remove that folder
after a codec has changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import vqdq
from benchmarks.activation_variants import ActivationVariant
from benchmarks.timing import table
from benchmarks.variants import VARIANTS, Variant
from vqdq.catalog import methods
from vqdq.demo import evaluate, scenes
from vqdq.demo.judge import judge
from vqdq.errors import UserError
from vqdq.metrics import images
from vqdq.metrics.trajectory import latent_error, sqnr_by_step
from vqdq.models import compressor
from vqdq.models.calibration_folder import calibrate_folder
from vqdq.models.denoisers import denoiser
from vqdq.models.trajectory import Trajectories, record

CAPTIONS = 200  # pictures drawn and judged
PREDICTED = 16  # captions along whose full-precision trajectory predictions are compared
STEPS, GUIDANCE = evaluate.STEPS, evaluate.GUIDANCE
_NOISE = 10_000
WORK = Path(__file__).parents[1] / ".bench-work"


class Bench:
    """The reference, its pictures and everything the rows share."""

    def __init__(self) -> None:
        WORK.mkdir(exist_ok=True)
        self.wanted = evaluate.evaluation_scenes(CAPTIONS)
        self.captions = [scenes.caption(scene) for scene in self.wanted]
        self.reference = vqdq.load("demo")
        self.sensitivity: Any = None
        self.calibration = WORK / "calibration"
        self.latents, self.pictures = self._drawn("reference", self.reference)
        self.trajectories: Trajectories = record(
            self.reference,
            self.captions[:PREDICTED],
            steps=STEPS,
            guidance=GUIDANCE,
            seed=_NOISE,
        )

    def row(self, variant: Variant | ActivationVariant) -> dict[str, Any]:
        """Returns the measurements of a variant, made or found."""
        recipe = variant.recipe()
        key = hashlib.sha256(f"{recipe.digest} {variant.average_bits}".encode()).hexdigest()[:16]
        path = WORK / f"{key}.json"
        known: dict[str, Any] = {}
        if path.is_file():
            known = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
            if "psnr_db" in known or not variant.pictures:
                return known
        if variant.average_bits is not None:
            recipe = self._allocated(recipe, variant.average_bits)
        folder = None
        if recipe.calibration is not None:
            folder = self.calibration
            if not folder.exists():
                calibrate_folder("demo", recipe.calibration, folder)
        started = time.perf_counter()
        plan = compressor.plan(self.reference, recipe)
        small = self.compressed(recipe, folder)
        seconds = time.perf_counter() - started
        found = known or {
            "name": variant.name,
            "aid": variant.aid,
            "bytes": plan.predicted_bytes,
            "bits": plan.bits_per_weight,
            "seconds": seconds,
            **self._predicted(small),
            **self.described(small),
        }
        if variant.pictures:
            found |= self._compared(*self._drawn(key, small))
        path.write_text(json.dumps(found), encoding="utf-8")
        (WORK / f"{key}.npz").unlink(missing_ok=True)
        return found

    def compressed(self, recipe: vqdq.Recipe, calibration: Path | None) -> Any:
        """Returns the compressed pipeline."""
        return compressor.compress(self.reference, recipe, calibration=calibration)

    def _predicted(self, small: Any) -> dict[str, Any]:
        error = sqnr_by_step(denoiser(small)[1], self.trajectories)
        return {
            "sqnr_db": error.guided_overall_db,
            "sqnr_raw_db": error.raw_overall_db,
            "sqnr_by_step_db": error.guided_db,
        }

    def described(self, small: Any) -> dict[str, Any]:
        """Returns what else a row remembers of the compressed pipeline."""
        del small
        return {}

    def floor(self) -> dict[str, Any]:
        """Returns full precision against itself: the same pictures drawn in other batches."""
        path = WORK / "floor.json"
        if path.is_file():
            return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        plan = compressor.plan("demo", VARIANTS[0].recipe())
        latents, pictures = self._drawn("floor", self.reference, batch=7)
        found = {
            "name": "16 bits against itself, other batches",
            "aid": "none",
            "bytes": plan.reference_bytes,
            "bits": 16.0,
            "seconds": 0.0,
            "sqnr_db": math.inf,
            "sqnr_raw_db": math.inf,
            "sqnr_by_step_db": [],
            **self._compared(latents, pictures),
        }
        path.write_text(json.dumps(found), encoding="utf-8")
        return found

    def _allocated(self, recipe: vqdq.Recipe, bits: float) -> vqdq.Recipe:
        from vqdq.models.budget import Target, targeted

        found = targeted(
            self.reference,
            recipe,
            Target(kind="average_bits", value=bits),
            sensitivity=self.sensitivity,
        )
        self.sensitivity = found.sensitivity
        return found.recipe

    def _compared(self, latents: torch.Tensor, pictures: NDArray[np.uint8]) -> dict[str, Any]:
        pairs = list(zip(self.pictures, pictures, strict=True))
        compared = [images.compare(a, b) for a, b in pairs]
        verdicts = [
            judge(picture, scene) for picture, scene in zip(pictures, self.wanted, strict=True)
        ]
        ends = latent_error(latents, self.latents)
        return {
            "cosine": statistics.fmean(ends.cosine),
            "psnr_db": [item.psnr_db for item in compared],
            "ssim": [item.ssim for item in compared],
            "passed": [verdict.passed for verdict in verdicts],
        }

    def _drawn(
        self, key: str, pipeline: Any, *, batch: int = 10
    ) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        """Returns final latents [n, 4, 16, 16] and pictures [n, 128, 128, 3]; kept on the disk."""
        path = WORK / f"{key}.npz"
        if path.is_file():
            with np.load(path) as kept:
                return torch.from_numpy(kept["latents"]), kept["pictures"]
        pipeline.set_progress_bar_config(disable=True)
        ends: list[torch.Tensor] = []
        drawn: list[NDArray[np.uint8]] = []
        with torch.no_grad():
            for start in range(0, CAPTIONS, batch):
                part = self.captions[start : start + batch]
                seeds = range(_NOISE + start, _NOISE + start + len(part))
                latents = pipeline(
                    part,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    output_type="latent",
                ).images
                decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor)[0]
                whole = pipeline.image_processor.postprocess(decoded, output_type="np")
                ends.append(latents.float())
                drawn.append((np.asarray(whole) * 255).round().astype(np.uint8))
        latents, pictures = torch.cat(ends), np.concatenate(drawn)
        np.savez(path, latents=latents.numpy(), pictures=pictures)
        return latents, pictures


def wilson(passed: int, count: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a share."""
    z, share = 1.96, passed / count
    centre = share + z * z / (2 * count)
    width = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (centre - width) / (1 + z * z / count), (centre + width) / (1 + z * z / count)


def median_interval(values: list[float], *, rounds: int = 2000) -> tuple[float, float, float]:
    """Returns the median and its 95 % bootstrap interval."""
    source = random.Random(0)
    found = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(rounds))
    return statistics.median(values), found[rounds // 40], found[-rounds // 40]


def cells(row: dict[str, Any]) -> list[str]:
    """Returns the row of the table."""
    known = [
        row["name"],
        f"{row['bits']:.2f}",
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['seconds']:.0f}",
        f"{row['sqnr_db']:.1f}",
    ]
    if "psnr_db" not in row:
        return [*known, "", "", "", ""]
    middle, low, high = median_interval(row["psnr_db"])
    passed, count = sum(row["passed"]), len(row["passed"])
    least, most = wilson(passed, count)
    return [
        *known,
        f"{row['cosine']:.4f}",
        f"{middle:.1f} ({low:.1f}–{high:.1f})",
        f"{statistics.median(row['ssim']):.3f}",
        f"{100 * passed / count:.1f} ({100 * least:.1f}–{100 * most:.1f})",
    ]


def rows(chosen: tuple[Variant, ...] = VARIANTS) -> list[dict[str, Any]]:
    """Returns the measurements of every variant whose library is installed."""
    bench = Bench()
    found = [bench.floor()]
    known = {method.name for method in methods() if method.available}
    for variant in chosen:
        if variant.method not in known:
            print(f"{variant.name}: not installed", flush=True)
            continue
        try:
            found.append(bench.row(variant))
        except UserError as error:
            print(f"{variant.name}: {error}", flush=True)
            continue
        print(cells(found[-1]), flush=True)
    return found


def run() -> str:
    """Returns the table as Markdown."""
    head = [
        "variant", "bits/weight", "MB", "made in, s", "SQNR, dB", "latent cosine",
        "PSNR, dB (95 %)", "SSIM", "as asked, % (95 %)",
    ]  # fmt: skip
    return table(head, [cells(row) for row in rows()])
