"""The autoencoder: pictures to latents, a cell for 8 x 8 pixels, and back.

Narrow, because it runs at full resolution; two norm groups, because eight or more channels a group
learned much faster. The loss weighs outlines, for a plain pixel loss ignores the corners that tell
a small star from a small circle.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vqdq.demo import muon
from vqdq.demo.parallel import CPU, Schedule, Trainer
from vqdq.demo.sizes import STANDARD, Size

_EDGE_WEIGHT = 8.0
_KL_WEIGHT = 1e-3  # on the mean divergence of a latent element, in nats


def new_autoencoder(size: Size = STANDARD) -> AutoencoderKL:
    """An untrained autoencoder, 8 x 8 pixels a cell; weights from torch's global generator."""
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return AutoencoderKL(
        # diffusers annotates tuples of one.
        block_out_channels=size.autoencoder_widths,  # pyright: ignore[reportArgumentType]
        down_block_types=down,  # pyright: ignore[reportArgumentType]
        up_block_types=up,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=size.resolution,
        scaling_factor=1.0,
    )


def resolution_of(model: AutoencoderKL) -> int:
    """Pixels a side of the pictures that an autoencoder is made for."""
    return int(model.config["sample_size"])


def to_model(pictures: NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 pictures [n, h, w, 3] as float [n, 3, h, w] in -1..1, channels last in memory."""
    batch = torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def to_pictures(batch: Tensor) -> NDArray[np.uint8]:
    """Float [n, 3, h, w] in -1..1 as uint8 pictures [n, h, w, 3]."""
    pixels = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def encoded(model: AutoencoderKL, batch: Tensor) -> DiagonalGaussianDistribution:
    """The posterior of the latents of `batch` [n, 3, h, w] in -1..1."""
    return cast(DiagonalGaussianDistribution, model.encode(batch, return_dict=False)[0])


def decode(model: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures [n, 3, h, w], about -1..1, of `latents` [n, channels, h / 8, w / 8]."""
    return model.decode(cast(torch.FloatTensor, latents), return_dict=False)[0].float()


def channels_last_(model: nn.Module) -> None:
    """Lays the convolutions of `model` out for the kernels that are fastest in bfloat16."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def edge_weight(batch: Tensor) -> Tensor:
    """Weight [n, 1, h, w] of each pixel: 1 in flat places, up to 1 + 8 on outlines."""
    gray = batch.mean(1, keepdim=True)
    right = functional.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1))
    down = functional.pad((gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1))
    colour = (batch - functional.avg_pool2d(batch, 5, 1, 2)).abs().amax(1, keepdim=True)
    edge = functional.max_pool2d(torch.maximum(torch.maximum(right, down), colour), 3, 1, 1)
    return 1 + _EDGE_WEIGHT * (edge * 2.5).clamp(max=1)


def loss(
    model: AutoencoderKL, batch: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The training loss of `batch` [n, 3, h, w] in -1..1, and its parts."""
    with torch.autocast(batch.device.type, torch.bfloat16):
        posterior = encoded(model, batch)
        mean, log_variance = posterior.mean.float(), posterior.logvar.float().clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + (0.5 * log_variance).exp() * noise
        decoded = decode(model, latents)
    error = decoded - batch
    weight = edge_weight(batch)
    pixels = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    square = error.detach().square().mean()
    numbers = {
        "loss": float(pixels.detach()),
        "psnr_db": float(10 * torch.log10(4 / square)),
        "kl_nats": float(divergence.detach()),
    }
    return pixels + _KL_WEIGHT * divergence, numbers


def matrices(model: nn.Module, skip: tuple[str, ...]) -> list[nn.Parameter]:
    """The weights that Muon moves: linear and convolution, except names that start with `skip`."""
    return [p for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith(skip)]


def train(
    pool: Path,
    folder: Path,
    schedule: Schedule,
    *,
    size: Size = STANDARD,
    seed: int,
    workers: int,
    device: torch.device = CPU,
) -> AutoencoderKL:
    """A trained autoencoder, on the processor.

    Args:
        pool: a .npy file of uint8 pictures [n, h, w, 3]; it is read if there is training to do.
    """
    torch.manual_seed(seed)
    model = new_autoencoder(size)
    channels_last_(model)
    skip = ("encoder.conv_in", "decoder.conv_out", "quant", "post_quant", "encoder.conv_out")
    trainer = Trainer(
        model,
        matrices(model, skip),
        rates=muon.Rates(),
        schedule=schedule,
        folder=folder,
        seed=seed,
        workers=workers,
        device=device,
    )
    if trainer.finished:
        trainer.use_average_()
        return model
    pictures = np.load(pool, mmap_mode="c")

    def batch_loss(generator: torch.Generator, _: float) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(pictures), (schedule.batch,), generator=generator)
        return loss(model, to_model(pictures[chosen.numpy()]).to(device), generator)

    trainer.run(batch_loss)
    trainer.use_average_()
    return model


@torch.no_grad()
def encode_all(model: AutoencoderKL, pictures: NDArray[np.uint8], batch: int = 32) -> Tensor:
    """Posterior means [n, channels, h / 8, w / 8] of `pictures`."""
    parts: list[Tensor] = []
    for start in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = encoded(model, to_model(pictures[start : start + batch]))
        parts.append(posterior.mean.float())
    return torch.cat(parts)


@torch.no_grad()
def normalise_(model: AutoencoderKL, pictures: NDArray[np.uint8]) -> None:
    """Gives each latent channel mean 0 and deviation 1 over `pictures`; decoding is unchanged.

    The shift and scale go into the 1 x 1 convolutions on both sides of the latents, exactly, so
    that the pipeline needs no per-channel constants and a scaling factor of 1.
    """
    latents = encode_all(model, pictures)
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    weights = dict(model.named_parameters())
    into, into_bias = weights["quant_conv.weight"], weights["quant_conv.bias"]
    out, out_bias = weights["post_quant_conv.weight"], weights["post_quant_conv.bias"]
    channels = len(mean)
    into[:channels] /= deviation[:, None, None, None]
    into_bias[:channels] = (into_bias[:channels] - mean) / deviation
    into_bias[channels:] -= 2 * deviation.log()
    out_bias += out[:, :, 0, 0] @ mean
    out *= deviation[None, :, None, None]
