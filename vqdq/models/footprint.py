"""ESTIMATED memory of a whole pipeline while it draws one picture, from its configs alone.

What is known exactly is the weights. What the activations take depends on kernels and allocators
nobody can predict from here, so it is a plain count of the tensors that must live at once, for one
picture with guidance in 16 bits and attention that keeps no score matrix. Everything is said to be
an estimate wherever it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.matrix import kind_of
from vqdq.models.denoisers import denoiser

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_BYTES = 2  # 16-bit activations
_LIVE_UNET = 10  # tensors of the widest level: skips, input, normalised, hidden, output, im2col
_LIVE_TOKENS = 16  # per token and channel of a transformer: residual, q, k, v, 4x hidden, gates
_LIVE_DECODER = 4  # full-size maps of the autoencoder's last level


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """ESTIMATED bytes of a pipeline beside its denoiser's stored weights.

    Attributes:
        components: weights of the text encoders, the autoencoder and the rest, in 16 bits.
        activations: of the denoiser (two guidance halves) or of the autoencoder, the larger.
        largest_layer: the one dense weight that exists while packed layers decode as they run.
    """

    components: int
    activations: int
    largest_layer: int

    @property
    def total(self) -> int:
        """Everything but the denoiser's file."""
        return self.components + self.activations + self.largest_layer


def footprint(pipeline: DiffusionPipeline, resolution: int) -> Footprint:
    """Returns the ESTIMATED memory of drawing one square picture of `resolution` pixels.

    Packed layers decode when they run (residency "streaming"); keeping every layer decoded would
    take the 16-bit size of the denoiser and no bits would change that.

    Raises:
        UserError: a resolution that the autoencoder does not divide into latents.
    """
    name, module = denoiser(pipeline)
    others = {
        key: part
        for key, part in cast(dict[str, object], cast(Any, pipeline).components).items()
        if isinstance(part, nn.Module) and key != name
    }
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    if resolution < scale or resolution % scale:
        raise UserError(
            f"{resolution} pixels are no whole number of latents.",
            where="target.resolution",
            remedy=f"Use a multiple of {scale}.",
        )
    dense = [
        cast(torch.Tensor, layer.weight).numel()
        for layer in module.modules()
        if kind_of(layer) is not None
    ]
    decoder = _decoder_bytes(others.get("vae"), resolution)
    return Footprint(
        components=sum(_weights(part) for part in others.values()),
        activations=max(_denoiser_bytes(module, resolution // scale), decoder),
        largest_layer=_BYTES * max(dense, default=0),
    )


def _weights(part: nn.Module) -> int:
    return _BYTES * sum(parameter.numel() for parameter in part.parameters())


def _denoiser_bytes(module: nn.Module, side: int) -> int:
    config = cast(Any, module).config
    widths = config.get("block_out_channels")
    if widths:  # a UNet: its widest maps are those of the first level
        return 2 * _BYTES * _LIVE_UNET * int(widths[0]) * side * side
    heads, width = config.get("num_attention_heads", 24), config.get("attention_head_dim", 64)
    patch = int(config.get("patch_size") or 1)
    if patch == 1:
        patch = 2  # FLUX packs 2 x 2 latents into a token before the model sees them
    tokens = (side // patch) ** 2 + 512  # and the text
    return 2 * _BYTES * _LIVE_TOKENS * int(heads) * int(width) * tokens


def _decoder_bytes(vae: nn.Module | None, resolution: int) -> int:
    if vae is None:
        return 0
    widths = cast(Any, vae).config.get("block_out_channels") or (128,)
    wide = int(widths[min(1, len(widths) - 1)])  # what arrives at the full size
    return _BYTES * _LIVE_DECODER * wide * resolution * resolution
