"""A pipeline of every family, with random weights, small enough to run in a test.

Text encoders and autoencoders are left out: prompts come as embeddings and pictures stay latents,
so what runs is the family's own denoiser in the family's own pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22Pipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    VQModel,
)

Call = dict[str, Any]
Built = tuple[DiffusionPipeline, Call]

_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}


def words(tokens: int, width: int) -> torch.Tensor:
    """Returns the embeddings of a prompt, [1, tokens, width]."""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(1))


def _prompts(tokens: int, width: int) -> Call:
    embeds = words(tokens, width)
    return {"prompt_embeds": embeds, "negative_prompt_embeds": embeds.flip(1)}


def stable_diffusion_1() -> Built:
    unet = UNet2DConditionModel(**_UNET, attention_head_dim=8)
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, _prompts(5, 32)


def stable_diffusion_2() -> Built:
    unet = UNet2DConditionModel(**_UNET, attention_head_dim=(4, 8), use_linear_projection=True)
    scheduler = DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, _prompts(5, 32)


def _xl(**call: Any) -> Built:
    unet = UNet2DConditionModel(
        **_UNET, attention_head_dim=(4, 8), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip
    pooled = words(1, 16)[0]
    given = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    return pipe, _prompts(5, 32) | given | call


def sdxl() -> Built:
    return _xl()


def sdxl_turbo() -> Built:
    return _xl(guidance_scale=0.0, num_inference_steps=1)


def kandinsky() -> Built:
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=8, block_out_channels=(32, 64),
        layers_per_block=1, cross_attention_dim=32, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
        encoder_hid_dim=16, encoder_hid_dim_type="image_proj", addition_embed_type="image",
    )  # fmt: skip
    movq = VQModel(
        block_out_channels=(8, 16), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=12,
    )  # fmt: skip
    pipe = KandinskyV22Pipeline(unet=unet, scheduler=DDPMScheduler(), movq=movq)
    picture = words(1, 16)[0]
    return pipe, {"image_embeds": picture, "negative_image_embeds": -picture}


def _pixart(kind: Any, **changes: Any) -> Built:
    transformer = PixArtTransformer2DModel(
        **{
            "sample_size": 8, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
            "in_channels": 4, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 24,
        } | changes
    )  # fmt: skip
    pipe = kind(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    given = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, _prompts(5, 24) | given | {
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def pixart_alpha() -> Built:
    return _pixart(PixArtAlphaPipeline)


def pixart_sigma() -> Built:
    return _pixart(PixArtSigmaPipeline, use_additional_conditions=False)


def stable_diffusion_3() -> Built:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24,
        caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pooled = words(1, 16)[0]
    given = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    return pipe, _prompts(5, 24) | given


def _flux(*, guided: bool) -> Built:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    )  # fmt: skip
    pipe = FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=None,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    return pipe, {"prompt_embeds": words(5, 24), "pooled_prompt_embeds": words(1, 16)[0]}


def flux_dev() -> Built:
    return _flux(guided=True)


def flux_schnell() -> Built:
    return _flux(guided=False)


def sana() -> Built:
    transformer = SanaTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=24, patch_size=1,
    )  # fmt: skip
    pipe = SanaPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    given = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, _prompts(5, 24) | given | {
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def auraflow() -> Built:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    pipe = AuraFlowPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    given = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, _prompts(5, 24) | given


FAMILIES: dict[str, Callable[[], Built]] = {
    made.__name__: made
    for made in (
        stable_diffusion_1, stable_diffusion_2, sdxl, sdxl_turbo, kandinsky, pixart_alpha,
        pixart_sigma, stable_diffusion_3, flux_dev, flux_schnell, sana, auraflow,
    )
}  # fmt: skip


def build(name: str, *, seed: int = 0) -> Built:
    """Returns the pipeline of a family in float32, and what a call of it needs."""
    torch.manual_seed(seed)
    pipe, call = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    asked = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    return pipe, asked | call


def draw(pipe: DiffusionPipeline, call: Call, *, seed: int = 7) -> torch.Tensor:
    """Returns the latent of one picture."""
    found = pipe(**call, generator=torch.Generator().manual_seed(seed))  # type: ignore[operator]
    return found.images  # type: ignore[no-any-return]
