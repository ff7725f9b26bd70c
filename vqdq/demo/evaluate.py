"""How often the demo model draws what a caption asks, attribute by attribute.

`python -m vqdq.demo.evaluate assets/demo --captions 500` draws captions that training never saw, 30
% of them with a pair of colour and shape that training never saw together, and judges the pictures.
The same pictures judged against other captions show that the judge would notice.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from numpy.typing import NDArray

from vqdq.demo import scenes
from vqdq.demo.judge import Verdict, judge

STEPS = 20
GUIDANCE = 3.0
_HELD_OUT_SHARE = 0.3
_BATCH = 10
_CAPTION_SEED, _NOISE_SEED = 500, 10_000
_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Verdict))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Shares of `captions` pictures that pass: each attribute, and all attributes at once."""

    captions: int
    attributes: dict[str, float]
    passed: float

    def line(self, name: str) -> str:
        """One row of the Markdown table."""
        error = math.sqrt(max(self.passed * (1 - self.passed), 1e-9) / max(1, self.captions))
        shares = " | ".join(f"{100 * self.attributes[key]:.1f}" for key in _ATTRIBUTES)
        return (
            f"| {name} | {self.captions} | {shares} | {100 * self.passed:.1f} ± {100 * error:.1f} |"
        )


def evaluation_scenes(count: int) -> list[scenes.Scene]:
    """The first `count` evaluation scenes: unseen captions, every third to fourth with a
    held-out pair."""
    generator = torch.Generator().manual_seed(_CAPTION_SEED)
    held_out = [int((i + 1) * _HELD_OUT_SHARE) > int(i * _HELD_OUT_SHARE) for i in range(count)]
    return [scenes.sample_scene(generator, "held-out" if held else "unseen") for held in held_out]


def load_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """The pipeline in `folder`, every part in `dtype`, without progress bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    pipeline.text_encoder.to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline, captions: list[str], seeds: list[int]
) -> NDArray[np.uint8]:
    """Pictures [n, h, w, 3] of `captions`, each from its own seed."""
    parts: list[NDArray[np.uint8]] = []
    for start in range(0, len(captions), _BATCH):
        part = slice(start, start + _BATCH)
        result = pipeline(
            captions[part],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            output_type="np",
            return_dict=False,
        )
        parts.append((np.asarray(result[0]) * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def tally(pictures: NDArray[np.uint8], wanted: list[scenes.Scene]) -> Row:
    """The shares of `pictures` that pass the captions of `wanted`."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, wanted, strict=True)]
    count = max(1, len(verdicts))
    return Row(
        captions=len(verdicts),
        attributes={key: sum(getattr(v, key) for v in verdicts) / count for key in _ATTRIBUTES},
        passed=sum(verdict.passed for verdict in verdicts) / count,
    )


def evaluate(folder: Path, count: int, workers: int) -> tuple[dict[str, Row], NDArray[np.uint8]]:
    """The rows of the table by name, and the pictures [count, h, w, 3]."""
    wanted = evaluation_scenes(count)
    context = multiprocessing.get_context("fork")
    shares = [list(range(rank, count, workers)) for rank in range(workers)]
    with context.Pool(workers) as pool:
        drawn = pool.starmap(_draw_share, [(folder, share) for share in shares])
    pictures = np.empty((count, *drawn[0].shape[1:]), np.uint8)
    for share, part in zip(shares, drawn, strict=True):
        pictures[share] = part
    splits = [scenes.split_of(scene) for scene in wanted]

    def rows_of(split: scenes.Split) -> Row:
        chosen = [index for index in range(count) if splits[index] == split]
        return tally(pictures[chosen], [wanted[index] for index in chosen])

    return {
        "all captions": tally(pictures, wanted),
        "unseen captions": rows_of("unseen"),
        "never-trained pairs": rows_of("held-out"),
        "shuffled captions": tally(pictures, wanted[1:] + wanted[:1]),
    }, pictures


def table(rows: dict[str, Row]) -> str:
    """`rows` as a Markdown table, in per cent; ± is one standard error."""
    head = f"| captions | N | {' | '.join(_ATTRIBUTES)} | all at once |"
    rule = "|---" * (len(_ATTRIBUTES) + 3) + "|"
    return "\n".join([head, rule, *(row.line(name) for name, row in rows.items())])


def save(rows: dict[str, Row], path: Path) -> None:
    """Writes `rows` to `path` as JSON, shares in 0..1."""
    plain = {name: dataclasses.asdict(row) for name, row in rows.items()}
    path.write_text(json.dumps(plain, indent=1) + "\n")


def _draw_share(folder: Path, indices: list[int]) -> NDArray[np.uint8]:
    torch.set_num_threads(1)
    pipeline = load_pipeline(folder)
    wanted = evaluation_scenes(max(indices) + 1)
    captions = [scenes.caption(wanted[index]) for index in indices]
    return draw(pipeline, captions, [_NOISE_SEED + index for index in indices])


def main() -> None:
    """Evaluates a folder, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="where to write the rows")
    arguments = parser.parse_args()
    rows, _ = evaluate(arguments.folder, arguments.captions, arguments.workers)
    print(table(rows))
    if arguments.json is not None:
        save(rows, arguments.json)


if __name__ == "__main__":
    main()
