"""The model card: what the demo model is, how it was trained, how well it does and where not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vqdq.demo import scenes
from vqdq.demo.evaluate import GUIDANCE, STEPS, Row, table

EXAMPLES = "examples.png"
"""The file beside the card that shows the example prompts drawn with seeds 0, 1, 2 ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """How much a stage was trained."""

    samples: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How the model was trained."""

    seed: int
    workers: int
    scenes: int
    autoencoder: Stage
    text: Stage
    denoiser: Stage


def stage(folder: Path, batch: int) -> Stage:
    """What the checkpoint in `folder` says about its training with `batch` samples a step."""
    steps, seconds, _ = torch.load(folder / "state.pt", weights_only=True, mmap=True)[
        "state"
    ].tolist()
    return Stage(samples=int(steps) * batch, seconds=seconds)


def model_card(rows: dict[str, Row], record: Record) -> str:
    """The card in Markdown with YAML front matter."""
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

A text-to-image latent diffusion model of 26 million parameters, trained from nothing on captioned
scenes that `vqdq/demo/scenes.py` renders. It draws one or two shapes on a coloured background,
128 × 128 pixels. It exists so that compression can be tried, and judged by rule, without
downloading anything.

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
| denoiser | UNet (128, 192, 256) on 16 × 16 × 4 latents, cross-attention at 8 × 8 and 4 × 4 |
| autoencoder | AutoencoderKL (16, 32, 64, 128), 8 × 8 pixels a cell, 4 channels |
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
{record.workers} CPU cores shared with other work, {total / 60:.0f} minutes in all.

| stage | samples | minutes | how |
|---|---|---|---|
{stages}

Training lasts a budget of minutes, so another machine ends with other weights and similar results.

## Limits

It knows no other words, no more than two objects, and no other sizes. Pictures are abstract shapes:
there is nothing personal in them. It was evaluated with one seed a caption and this sampler only.
"""
