"""What the denoiser learns from: latents, object cells and token ids of rendered scenes, made once.

Rendering and encoding 48 000 scenes takes minutes, a training step under a second: so the work is
done before, by several processes, each with its own seed.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from vqdq.demo import scenes
from vqdq.demo.text import tokenize
from vqdq.demo.vae import encode_all, resolution_of

_SHARD = 4000  # scenes a file
_OBJECT_DIFFERENCE = (
    60.0  # sRGB levels by which a pixel of an object or its core shadow leaves the background
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Cached training data; row i of each tensor belongs to the same scene.

    Attributes:
        latents: posterior means [n, channels, h, w], bfloat16.
        cells: whether an object lies in a cell [n, h, w], bool.
        tokens: ids [n, 2, MAX_TOKENS] of the caption and of a paraphrase.
        single: whether the scene has one object [n], bool.
    """

    latents: Tensor
    cells: Tensor
    tokens: Tensor
    single: Tensor

    def draw(self, generator: torch.Generator, count: int, single: float) -> Tensor:
        """Indices [count] of scenes, a share `single` of them (in expectation) with one object."""
        alone = torch.rand(count, generator=generator) < single
        ones, twos = self.single.nonzero()[:, 0], (~self.single).nonzero()[:, 0]
        first = ones[torch.randint(len(ones), (count,), generator=generator)]
        second = twos[torch.randint(len(twos), (count,), generator=generator)]
        return torch.where(alone, first, second)


def render_many(
    count: int, seed: int, two_objects: float, resolution: int = 128
) -> tuple[NDArray[np.uint8], list[scenes.Scene]]:
    """`count` training pictures [n, resolution, resolution, 3] and their scenes."""
    generator = torch.Generator().manual_seed(seed)
    pictures = np.empty((count, resolution, resolution, 3), np.uint8)
    drawn: list[scenes.Scene] = []
    for index in range(count):
        drawn.append(scenes.sample_scene(generator, two_objects=two_objects))
        pictures[index] = scenes.render(drawn[-1], generator, resolution)
    return pictures, drawn


def object_cells(picture: NDArray[np.uint8], scene: scenes.Scene) -> NDArray[np.bool_]:
    """The 8 x 8 cells [h / 8, w / 8] of `picture` that an object touches."""
    axis = (np.arange(picture.shape[0], dtype=np.float32) + 0.5) * (128 / picture.shape[0])
    empty = scenes.background(scene, axis[None, :], axis[:, None])
    differs = np.abs(picture - empty).max(-1) > _OBJECT_DIFFERENCE
    side = picture.shape[0] // 8
    return differs.reshape(side, 8, side, 8).any(axis=(1, 3))


def load(
    folder: Path,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    *,
    count: int,
    seed: int,
    workers: int,
) -> Dataset:
    """The data set, made by `workers` processes in shards where `folder` lacks them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = min(_SHARD, count)
    shards = [folder / f"{index:03d}.pt" for index in range(-(-count // size))]
    missing = [(index, path) for index, path in enumerate(shards) if not path.exists()]

    def make(rank: int) -> None:
        torch.set_num_threads(1)
        for index, path in missing[rank::workers]:
            _make_shard(path, autoencoder, tokenizer, size, seed * 1000 + index)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=make, args=(rank,)) for rank in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    parts = [torch.load(path, weights_only=True, mmap=True) for path in shards]
    return Dataset(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@torch.no_grad()
def _make_shard(
    path: Path, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, size: int, seed: int
) -> None:
    pictures, drawn = render_many(size, seed, 0.65, resolution_of(autoencoder))
    cells = np.stack([object_cells(p, s) for p, s in zip(pictures, drawn, strict=True)])
    generator = torch.Generator().manual_seed(seed)
    tokens = [
        tokenize(tokenizer, [scenes.caption(s) for s in drawn]),
        tokenize(tokenizer, [scenes.paraphrase(s, generator) for s in drawn]),
    ]
    shard = {
        "latents": encode_all(autoencoder, pictures).bfloat16().contiguous(),
        "cells": torch.from_numpy(cells),
        "tokens": torch.stack(tokens, dim=1),
        "single": torch.tensor([len(s.objects) == 1 for s in drawn]),
    }
    temporary = path.with_suffix(".tmp")
    torch.save(shard, temporary)
    temporary.replace(path)
    print(f"data set: {path.name} written", flush=True)
