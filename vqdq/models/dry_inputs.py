"""What one call of a denoiser needs, on the meta device: it tells the order in which layers run.

One function for each architecture, from its config alone; the sizes are those of one picture at the
model's own resolution. A denoiser that is not here is listed in the order of registration, and the
number of positions that its layers see is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

Inputs: TypeAlias = dict[str, Any]

_CLIP_TOKENS = 77
_T5_TOKENS = 256  # SD3's; FLUX reads up to 512, PixArt-α 120, PixArt-Σ 300
_GEMMA_TOKENS = 300  # Sana's
_FLUX_TOKENS = 4096  # at 1024 pixels, each of them 16 × 16: the config does not say a size


def dry_inputs(name: str, config: Any) -> Inputs | None:
    """Returns the arguments of one call on the meta device, or None for an unknown architecture.

    Args:
        name: class of the denoiser; config: its `config`.
    """
    build = _BUILDERS.get(name)
    return None if build is None else build(config)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def _unet(config: Any) -> Inputs | None:
    """Stable Diffusion 1 and 2, SDXL, and Kandinsky 2.2 (picture embeddings instead of text)."""
    width, addition, projected = (
        config.cross_attention_dim,
        config.addition_embed_type,
        config.encoder_hid_dim_type,
    )
    if not isinstance(width, int) or config.class_embed_type is not None:
        return None
    if addition not in (None, "text", "text_time", "image"):
        return None
    if projected not in (None, "image_proj"):
        return None
    down = 2 ** (len(config.block_out_channels) - 1)
    size = config.sample_size if isinstance(config.sample_size, int) else 2 * down
    size = max(size // down, 1) * down
    inputs: Inputs = {
        "sample": _meta(1, config.in_channels, size, size),
        "timestep": _meta(1),
        "encoder_hidden_states": _meta(1, _CLIP_TOKENS, width),
    }
    if addition == "text_time":  # the size conditioning of SDXL: pooled text and six numbers
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": _meta(1, pooled), "time_ids": _meta(1, 6)}
    if projected == "image_proj":
        inputs["added_cond_kwargs"] = {"image_embeds": _meta(1, config.encoder_hid_dim)}
    return inputs


def _pixart(config: Any) -> Inputs:
    """PixArt-α and -Σ."""
    inputs: Inputs = {
        "hidden_states": _meta(1, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": _meta(1, _CLIP_TOKENS, config.caption_channels),
        "timestep": _meta(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    if config.use_additional_conditions or (
        config.use_additional_conditions is None and config.sample_size == 128
    ):
        inputs["added_cond_kwargs"] = {"resolution": _meta(1, 2), "aspect_ratio": _meta(1, 1)}
    return inputs


def _sd3(config: Any) -> Inputs:
    """Stable Diffusion 3 and 3.5."""
    tokens = _CLIP_TOKENS + _T5_TOKENS
    return {
        "hidden_states": _meta(1, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": _meta(1, tokens, config.joint_attention_dim),
        "pooled_projections": _meta(1, config.pooled_projection_dim),
        "timestep": _meta(1),
    }


def _flux(config: Any) -> Inputs:
    """FLUX.1: pictures packed to a row of tokens, with three coordinates each."""
    inputs: Inputs = {
        "hidden_states": _meta(1, _FLUX_TOKENS, config.in_channels),
        "encoder_hidden_states": _meta(1, 2 * _T5_TOKENS, config.joint_attention_dim),
        "pooled_projections": _meta(1, config.pooled_projection_dim),
        "timestep": _meta(1),
        "img_ids": _meta(_FLUX_TOKENS, 3),
        "txt_ids": _meta(2 * _T5_TOKENS, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = _meta(1)
    return inputs


def _sana(config: Any) -> Inputs:
    """Sana."""
    inputs: Inputs = {
        "hidden_states": _meta(1, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": _meta(1, _GEMMA_TOKENS, config.caption_channels),
        "timestep": _meta(1),
    }
    if config.guidance_embeds:
        inputs["guidance"] = _meta(1)
    return inputs


def _auraflow(config: Any) -> Inputs:
    """AuraFlow."""
    return {
        "hidden_states": _meta(1, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": _meta(1, _T5_TOKENS, config.joint_attention_dim),
        "timestep": _meta(1),
    }


_BUILDERS: Mapping[str, Callable[[Any], Inputs | None]] = {
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "SanaTransformer2DModel": _sana,
    "AuraFlowTransformer2DModel": _auraflow,
}
