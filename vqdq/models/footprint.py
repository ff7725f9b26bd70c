"""ESTIMATED memory of a whole pipeline while it draws one picture, from its configs alone.

What is known exactly is the weights. What the activations take is counted by running the model on
the meta device (`live_memory`): the tensors that live at once, for one picture with guidance in 16
bits. What a kernel takes for itself and what an allocator keeps is not in it. Everything is said to
be an estimate wherever it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.matrix import kind_of
from vqdq.models.denoisers import denoiser, skeleton
from vqdq.models.dry_inputs import Inputs, dry_inputs
from vqdq.models.live_memory import peak_live_bytes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_BYTES = 2  # 16-bit activations
_GUIDED = 2  # with and without the prompt
_LIVE_UNET = 10  # tensors of the widest level: skips, input, normalised, hidden, output
_LIVE_TOKENS = 16  # per token and channel of a transformer: residual, q, k, v, 4x hidden, gates
_LIVE_DECODER = 4  # full-size maps of the autoencoder's last level
_ALIKE = ("num_layers", "num_single_layers")  # blocks that follow each other without skips
_OWN_SIZE = 1024  # pixels for which `dry_inputs` counts the tokens of a model that says no size


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
    check_resolution(resolution, scale)
    dense = [
        cast(torch.Tensor, layer.weight).numel()
        for layer in module.modules()
        if kind_of(layer) is not None
    ]
    vae = others.get("vae")
    decoder = 0 if vae is None else decoding_bytes(config_of(vae), resolution)
    drawing = drawing_bytes(config_of(module), resolution // scale, resolution)
    return Footprint(
        components=sum(_weights(part) for part in others.values()),
        activations=max(drawing, decoder),
        largest_layer=_BYTES * max(dense, default=0),
    )


def check_resolution(resolution: int, scale: int) -> None:
    """Raises `UserError` for a side in pixels that is no whole number of latents."""
    if resolution < scale or resolution % scale:
        raise UserError(
            f"{resolution} pixels are no whole number of latents.",
            where="target.resolution",
            remedy=f"Use a multiple of {scale}.",
        )


def drawing_bytes(config: Mapping[str, Any], side: int, resolution: int) -> int:
    """Returns the ESTIMATED bytes of a denoiser's activations: one picture with guidance, 16 bits.

    Args:
        config: of the denoiser, its class in `_class_name`.
        side: of the latent; `resolution`: of the picture, in pixels.
    """
    return _drawing(json.dumps(dict(config), sort_keys=True, default=str), side, resolution)


def decoding_bytes(config: Mapping[str, Any], resolution: int) -> int:
    """Returns the ESTIMATED bytes of an autoencoder's activations while it decodes one picture.

    In 32 bits where its config asks for that (`force_upcast`, SDXL), else in 16.
    """
    return _decoding(json.dumps(dict(config), sort_keys=True, default=str), resolution)


@lru_cache(maxsize=32)
def _drawing(text: str, side: int, resolution: int) -> int:
    config: dict[str, Any] = json.loads(text)
    sized = isinstance(config.get("sample_size"), int)
    shorter = {key: min(int(config[key]), 2) for key in _ALIKE if config.get(key)}
    ready = {**config, **shorter, **({"sample_size": side} if sized else {})}
    try:
        module = skeleton(ready)
        inputs = dry_inputs(type(module).__name__, cast(Any, module).config)
        if inputs is not None:
            module = module.half()
            one_call = "Flux" in type(module).__name__  # guidance is an input, not a second half
            given = _batched(inputs, 1 if one_call else _GUIDED)
            found = _counted(module, given)
            return found if sized else round(found * (resolution / _OWN_SIZE) ** 2)
    except (UserError, TypeError, ValueError, RuntimeError, AttributeError):
        pass  # an architecture that cannot be run without weights: a coarse count instead
    return _coarse_drawing(config, side)


@lru_cache(maxsize=32)
def _decoding(text: str, resolution: int) -> int:
    config: dict[str, Any] = json.loads(text)
    scale = vae_scale(config) or 8
    wide = 2 * _BYTES if config.get("force_upcast") else _BYTES
    try:
        module: Any = skeleton(config).half()
        side = max(1, resolution // scale)
        latent = torch.empty(
            1, int(config["latent_channels"]), side, side, device="meta", dtype=torch.float16
        )
        held = [*module.parameters(), *module.buffers(), latent]
        found = peak_live_bytes(lambda: module.decode(latent), held)
        return found * wide // _BYTES
    except (UserError, KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        pass  # an autoencoder of another kind
    widths = config.get("block_out_channels") or (128,)
    full = int(widths[min(1, len(widths) - 1)])  # what arrives at the full size
    return wide * _LIVE_DECODER * full * resolution * resolution


def vae_scale(config: Mapping[str, Any]) -> int | None:
    """Returns how many pixels a side one latent stands for, or None where the config says nothing.

    AutoencoderDC says its levels under another name.
    """
    widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    return 2 ** (len(widths) - 1) if isinstance(widths, list | tuple) else None


def _counted(module: nn.Module, inputs: Inputs) -> int:
    held = [*module.parameters(), *module.buffers()]
    return peak_live_bytes(lambda: module(**inputs), held)


def _batched(value: Any, batch: int) -> Any:
    """The inputs of one call for `batch` pictures at once, in 16 bits."""
    if isinstance(value, dict):
        known = cast(dict[str, Any], value)
        return {key: _batched(item, batch) for key, item in known.items()}
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.half() if value.is_floating_point() else value
    if batch == 1 or tensor.shape[0] != 1:
        return tensor
    return tensor.new_empty((batch, *tensor.shape[1:]))


def _coarse_drawing(config: Mapping[str, Any], side: int) -> int:
    widths = config.get("block_out_channels")
    if widths:  # a UNet: its widest maps are those of the first level
        return _GUIDED * _BYTES * _LIVE_UNET * int(widths[0]) * side * side
    heads, width = config.get("num_attention_heads", 24), config.get("attention_head_dim", 64)
    patch = int(config.get("patch_size") or 1)
    if patch == 1:
        patch = 2  # FLUX packs 2 x 2 latents into a token before the model sees them
    tokens = (side // patch) ** 2 + 512  # and the text
    return _GUIDED * _BYTES * _LIVE_TOKENS * int(heads) * int(width) * tokens


def config_of(part: nn.Module) -> dict[str, Any]:
    """Returns the config of a component, its class in `_class_name`."""
    return {**cast(Any, part).config, "_class_name": type(part).__name__}


def _weights(part: nn.Module) -> int:
    return _BYTES * sum(parameter.numel() for parameter in part.parameters())
