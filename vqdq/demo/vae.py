"""The autoencoder: pictures of 128 pixels to latents 16 cells wide and back.

Narrow, because it runs at full resolution; two norm groups, because eight or more channels a group learned
much faster. The loss weighs outlines, for a plain pixel loss ignores the corners that tell a small star from
a small circle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vqdq.demo import muon
from vqdq.demo.parallel import Schedule, Trainer

LATENT_CHANNELS = 4
_EDGE_WEIGHT = 8.0
_KL_WEIGHT = 1e-3  # on the mean divergence of a latent element, in nats


def new_autoencoder(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """An untrained autoencoder with 8 x 8 pixels a cell, weights drawn from torch's global generator."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
    )


def to_model(pictures: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 pictures [n, h, w, 3] as float [n, 3, h, w] in -1..1, channels last in memory."""
    batch = torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def to_pictures(batch: Tensor) -> NDArray[np.uint8]:
    """Float [n, 3, h, w] in -1..1 as uint8 pictures [n, h, w, 3]."""
    pixels = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def edge_weight(batch: Tensor) -> Tensor:
    """Weight [n, 1, h, w] of each pixel: 1 in flat places, up to 1 + 8 on the outline of a shape."""
    gray = batch.mean(1, keepdim=True)
    right = functional.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1))
    down = functional.pad((gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1))
    colour = (batch - functional.avg_pool2d(batch, 5, 1, 2)).abs().amax(1, keepdim=True)
    edge = functional.max_pool2d(torch.maximum(torch.maximum(right, down), colour), 3, 1, 1)
    return 1 + _EDGE_WEIGHT * (edge * 2.5).clamp(max=1)


def loss(model: AutoencoderKL, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """The training loss of `batch` [n, 3, h, w] in -1..1, and its parts."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(batch).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator)
        decoded = model.decode(mean + (0.5 * log_variance).exp() * noise).sample.float()
    error = decoded - batch
    weight = edge_weight(batch)
    pixels = (weight * (error.abs() + 2 * error.square())).mean() / (weight.mean() * 3) * 3
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    square = error.detach().square().mean()
    numbers = {
        "loss": float(pixels.detach()),
        "psnr_db": float(10 * torch.log10(4 / square)),
        "kl_nats": float(divergence.detach()),
    }
    return pixels + _KL_WEIGHT * divergence, numbers


def matrices(model: nn.Module, skip: tuple[str, ...]) -> list[nn.Parameter]:
    """The weights that Muon moves: every linear and convolution except names that start with `skip`."""
    return [p for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith(skip)]


def train(pool: Path, folder: Path, schedule: Schedule, seed: int, workers: int) -> AutoencoderKL:
    """A trained autoencoder; `pool` is a .npy file of uint8 pictures [n, 128, 128, 3]."""
    torch.manual_seed(seed)
    model = new_autoencoder().to(memory_format=torch.channels_last)
    skip = ("encoder.conv_in", "decoder.conv_out", "quant", "post_quant", "encoder.conv_out")
    trainer = Trainer(
        model, matrices(model, skip), rates=muon.Rates(), schedule=schedule, folder=folder, seed=seed,
        workers=workers,
    )  # fmt: skip
    pictures = np.load(pool, mmap_mode="r")

    def batch_loss(generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(pictures), (schedule.batch,), generator=generator)
        return loss(model, to_model(pictures[chosen.numpy()]), generator)

    trainer.run(batch_loss)
    trainer.averaged()
    return model


@torch.no_grad()
def encode_all(model: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 32) -> Tensor:
    """Posterior means [n, channels, h / 8, w / 8] of `pictures`."""
    parts: list[Tensor] = []
    for start in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(to_model(pictures[start : start + batch])).latent_dist
        parts.append(posterior.mean.float())
    return torch.cat(parts)


@torch.no_grad()
def normalise_(model: AutoencoderKL, pictures: NDArray[np.uint8]) -> None:
    """Makes each latent channel have mean 0 and deviation 1 over `pictures`; decoding stays the same.

    The shift and scale go into the 1 x 1 convolutions on both sides of the latents, exactly, so that the
    pipeline needs no per-channel constants and a scaling factor of 1.
    """
    latents = encode_all(model, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = model.quant_conv, model.post_quant_conv
    assert into is not None and out is not None
    channels = len(mean)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
