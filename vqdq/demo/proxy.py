"""An early sign of whether the denoiser reads its captions, in seconds and without drawing a
picture.

The loss in the cells of objects, at a noisy step, with the right caption and with one attribute
changed: as long as a change does not raise the loss, that attribute is not read. In a run that
succeeded, a wrong order of two objects raised it more than twofold at 30 000 samples.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from vqdq.demo import scenes
from vqdq.demo.dataset import object_cells
from vqdq.demo.denoiser import velocity_error
from vqdq.demo.text import tokenize
from vqdq.demo.vae import encode_all, resolution_of
from vqdq.errors import UserError

_STEP = 650
_SCENES = 64
_DEADLINE, _LEAST_ORDER = 40_000, 0.2  # samples; least rise of the loss by a wrong order

_OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Scenes of two objects with latents [n, c, h, w], noise like them and object cells [n, h,
    w]."""

    scenes: tuple[scenes.Scene, ...]
    latents: Tensor
    cells: Tensor
    noise: Tensor


def make_probe(autoencoder: AutoencoderKL, seed: int) -> Probe:
    """Unseen scenes and fixed noise."""
    generator = torch.Generator().manual_seed(seed)
    drawn = tuple(scenes.sample_scene(generator, "unseen", two_objects=1.0) for _ in range(_SCENES))
    side = resolution_of(autoencoder)
    pictures = np.stack([scenes.render(scene, generator, side) for scene in drawn])
    cells = np.stack([object_cells(p, s) for p, s in zip(pictures, drawn, strict=True)])
    latents = encode_all(autoencoder, pictures)
    noise = torch.randn(latents.shape, generator=generator)
    return Probe(scenes=drawn, latents=latents, cells=torch.from_numpy(cells), noise=noise)


def changed(scene: scenes.Scene, attribute: str) -> scenes.Scene:
    """`scene` with one wrong attribute of its first object, or with its objects in the wrong
    order."""
    if attribute == "order":
        assert scene.relation is not None
        return dataclasses.replace(scene, relation=_OPPOSITE[scene.relation])
    first, second = scene.objects
    words = scenes.VOCABULARY[attribute]
    word = words[(words.index(getattr(first, attribute)) + 1) % len(words)]
    return dataclasses.replace(
        scene, objects=(dataclasses.replace(first, **{attribute: word}), second)
    )


@torch.no_grad()
def wrong_caption_rise(
    model: UNet2DConditionModel, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, probe: Probe
) -> dict[str, float]:
    """By how much a wrong attribute raises the loss, as a share of the loss with the right
    caption."""

    def loss(wanted: list[scenes.Scene]) -> float:
        tokens = tokenize(tokenizer, [scenes.caption(scene) for scene in wanted])
        states = encoder(tokens.to(encoder.device)).last_hidden_state.to(model.device)
        steps = torch.full((len(wanted),), _STEP)
        there = (part.to(model.device) for part in (probe.latents, probe.noise))
        latents, noise = there
        error = velocity_error(model, latents, states, steps, noise).cpu()
        return float((error * probe.cells).sum() / probe.cells.sum())

    right = loss(list(probe.scenes))
    return {
        attribute: loss([changed(scene, attribute) for scene in probe.scenes]) / right - 1
        for attribute in ("shape", "colour", "size", "order")
    }


def stop_bad_run(rise: dict[str, float], samples: int) -> None:
    """Raises UserError where a run does not read the order of objects though it should by now."""
    if samples >= _DEADLINE and rise["order"] < _LEAST_ORDER:
        raise UserError(
            f"after {samples} samples a wrong order of objects raises the loss by only"
            f" {100 * rise['order']:.0f} %.",
            where="demo model, denoiser",
            remedy="Remove its folder in the work directory and train with another --seed.",
        )
