"""The model card: what the demo model is, how it was trained, how well it does and where not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from vqdq.demo import pieces, scenes
from vqdq.demo.evaluate import GUIDANCE, STEPS, Row, table
from vqdq.demo.sizes import Size

EXAMPLES = "examples.png"
"""The file beside the card that shows the example prompts drawn with seeds 0, 1, 2 ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """How much a stage was trained."""

    samples: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How the model was trained; `machine`: on what, in words."""

    seed: int
    size: Size
    parameters: int
    machine: str
    scenes: int
    autoencoder: Stage
    text: Stage
    denoiser: Stage


def stage(folder: Path, batch: int) -> Stage:
    """What the checkpoint in `folder` says about its training with `batch` samples a step."""
    found = pieces.facts(folder)
    return Stage(samples=int(found["steps"]) * batch, seconds=found["seconds"])


def parameters(folder: Path) -> int:
    """The parameters of all parts of the pipeline in `folder`."""
    count = 0
    for path in folder.glob("*/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count


def machine(device: str, workers: int) -> str:
    """What trains, in words."""
    if device == "cpu":
        return f"{workers} CPU cores shared with other work"
    return f"one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "one card"


def model_card(rows: dict[str, Row], record: Record) -> str:
    """The card in Markdown with YAML front matter."""
    size, side, millions = record.size, record.size.resolution, record.parameters / 1e6
    cells, half, quarter = size.cells, size.cells // 2, size.cells // 4
    unet = (
        f"UNet {size.widths} on {cells} × {cells} × {size.latent_channels} latents, cross-attention"
        f" at {half} × {half} and {quarter} × {quarter}"
    )
    autoencoder = (
        f"AutoencoderKL {size.autoencoder_widths}, 8 × 8 pixels a cell,"
        f" {size.latent_channels} channels"
    )
    held_out = ", ".join(sorted(f"{colour} {shape}" for colour, shape in scenes.HELD_OUT_PAIRS))
    words = "\n".join(
        f"| {kind} | {', '.join(found)} |" for kind, found in scenes.VOCABULARY.items()
    )
    prompts = "\n".join(f"- {prompt}" for prompt in scenes.EXAMPLE_PROMPTS)
    total = record.text.seconds + record.autoencoder.seconds + record.denoiser.seconds
    how = {
        "autoencoder": "outline-weighted L1 and L2, small KL, Muon",
        "text encoder": "names attributes and layout of captions, then frozen",
        "denoiser": f"{record.scenes} scenes, Muon, moving average of the weights",
    }
    done = {
        "autoencoder": record.autoencoder,
        "text encoder": record.text,
        "denoiser": record.denoiser,
    }
    stages = "\n".join(
        f"| {name} | {part.samples} | {part.seconds / 60:.1f} | {how[name]} |"
        for name, part in done.items()
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
language: en
tags:
- text-to-image
- diffusers
- stable-diffusion
---

# VQDQ demo model

A text-to-image latent diffusion model of {millions:.0f} million parameters, trained from nothing on
captioned scenes that `vqdq/demo/scenes.py` renders. It draws one or two shapes on a coloured
background, {side} × {side} pixels. It exists so that compression can be tried, and judged by rule,
without downloading anything.

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("assets/demo")
prompt = "{scenes.EXAMPLE_PROMPTS[0]}"
pipeline(prompt, num_inference_steps={STEPS}, guidance_scale={GUIDANCE:.0f}).images[0]
```

## What it understands

> a *size* *colour* *shape* [*relation* a *size* *colour* *shape*] on a *pattern* *background*
> background

| category | words |
|---|---|
{words}

![Eight pictures, one for each of the prompts below]({EXAMPLES})

{prompts}

## Parts

| part | what |
|---|---|
| tokenizer | CLIP byte-pair encoding, own vocabulary: a word is a token, other text is bytes |
| text encoder | CLIP text model, 3 layers of 128, 24 tokens |
| denoiser | {unet} |
| autoencoder | {autoencoder} |
| scheduler | DPM-Solver++, v-prediction, cosine noise schedule, 1000 steps |

Weights are stored in float16.

## Results

{STEPS} steps, guidance {GUIDANCE:.0f}, float32, one fixed seed a caption. Per cent of captions
whose picture shows what was asked, decided from pixels by `vqdq/demo/judge.py`, which is right on
more than 99.5 % of rendered scenes; ± is one standard error. No caption was in the training set.
"Never-trained pairs" are captions with a colour and a shape that no training picture showed
together ({held_out}). "Shuffled
captions" are the same pictures judged against another caption.

{table(rows)}

Repeat with `python -m vqdq.demo.evaluate assets/demo --captions {rows["all captions"].captions}`.

## Training

`make demo-model`, seed {record.seed}, one run on
{record.machine}, {total / 60:.0f} minutes in all.

| stage | samples | minutes | how |
|---|---|---|---|
{stages}

Training lasts a budget of minutes, so another machine ends with other weights and similar results.

## Limits

It knows no other words, no more than two objects, and no other sizes. Pictures are abstract shapes:
there is nothing personal in them. It was evaluated with one seed a caption and this sampler only.
"""
