"""Transformers of SD3's and FLUX's kind with random weights, quick enough for every test."""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

CLIP, T5 = 5, 4  # tokens of the encoders
SIDE = 8


def sd3() -> SD3Transformer2DModel:
    """Returns two joint blocks, the first with a second attention of the picture alone."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=12,
        caption_projection_dim=24,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=SIDE,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model.eval().requires_grad_(requires_grad=False)


def flux() -> FluxTransformer2DModel:
    """Returns one block of two streams and one of a single stream."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )
    return model.eval().requires_grad_(requires_grad=False)


def draw_sd3(model: SD3Transformer2DModel) -> torch.Tensor:
    """Returns the latent after two guided steps."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    text = torch.randn(2, CLIP + T5, 12, generator=generator)
    pooled = torch.randn(2, 10, generator=generator)
    with torch.no_grad():
        for time in (900.0, 300.0):
            x = x - 0.1 * model(x, text, pooled, torch.full((2,), time)).sample
    return x


def draw_flux(model: FluxTransformer2DModel) -> torch.Tensor:
    """Returns the latent after two steps, of a picture of 2 × 4 patches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 4, generator=generator)
    text = torch.randn(1, T5, 12, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij")
    places = torch.stack([torch.zeros(8), rows.flatten(), columns.flatten()], dim=1)
    with torch.no_grad():
        for time in (0.9, 0.3):
            x = (
                x
                - 0.1
                * model(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    pooled_projections=torch.ones(1, 10),
                    timestep=torch.tensor([time]),
                    img_ids=places,
                    txt_ids=torch.zeros(T5, 3),
                ).sample
            )
    return x
