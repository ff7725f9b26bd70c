"""The trained parts as one diffusers folder in half precision, written beside the old one and
then swapped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTextModel, CLIPTokenizer

from vqdq.demo.denoiser import new_scheduler


def publish(
    folder: Path,
    *,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    autoencoder: AutoencoderKL,
    denoiser: UNet2DConditionModel,
    keep: tuple[str, ...] = ("README.md", "results.json"),
) -> None:
    """Writes the pipeline to `folder` as float16 weights; files named in `keep` stay.

    A reader of `folder` sees the old model or the new one, never a half-written one.
    """
    denoiser.set_attn_processor(AttnProcessor2_0())
    for part in (encoder, denoiser, autoencoder):
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.float16).contiguous()
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        # diffusers annotates neither the optional parts nor every scheduler.
        scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    _neutral(fresh)
    for name in keep:
        if (folder / name).exists():
            shutil.copy2(folder / name, fresh / name)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _neutral(folder: Path) -> None:
    """Removes what depends on the machine, and lets every part load in float32 unless asked
    otherwise.

    transformers loads a model in the precision its configuration names, diffusers in float32:
    without this the parts of one pipeline would differ.
    """
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
