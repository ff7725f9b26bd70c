"""A whole text-to-image pipeline with random weights, small enough to run in a test."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("a", "red", "blue", "circle", "square", "above")
LENGTH = 16


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Returns a tokenizer of single characters and a few words, made like the demo model's."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.!-"]
    merges: list[str] = []
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                pieces.append(parts[0])
    names = ["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(pieces)]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def pipeline(scratch: Path, *, seed: int = 0) -> StableDiffusionPipeline:
    """Returns the pipeline in float32; `scratch` takes the tokenizer's files."""
    torch.manual_seed(seed)
    words = tokenizer(scratch / "tokenizer-source")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def folder(target: Path, *, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """Writes the pipeline as a diffusers folder with a licence in its card; returns the folder."""
    made = pipeline(target.parent, seed=seed).to(dtype)
    made.save_pretrained(target)
    (target / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return target


def draw(pipe: DiffusionPipeline, *, seed: int = 7, prompt: str = "a red circle") -> torch.Tensor:
    """Returns the latent of one picture, 2 steps."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent").images  # type: ignore[no-any-return]
