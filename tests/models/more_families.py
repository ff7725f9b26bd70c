"""Families without a dry run: their layers come in the order of registration, all else is equal.

As in `families`: random weights, small, text encoders left out, pictures stay latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    VQModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.models.families import Built, words

_CASCADE: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 16,
    "block_out_channels": (16, 16), "num_attention_heads": (2, 2), "dropout": (0.0, 0.0),
    "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
    "clip_text_pooled_in_channels": 16,
}  # fmt: skip


def stable_cascade_prior() -> Built:
    prior = StableCascadeUNet(
        **_CASCADE, clip_text_in_channels=24, clip_image_in_channels=12, clip_seq=4,
        switch_level=(False,),
    )  # fmt: skip
    text = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=20, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=16, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    pipe = StableCascadePriorPipeline(
        tokenizer=None, text_encoder=text, prior=prior, scheduler=DDPMWuerstchenScheduler(),
    )  # fmt: skip
    return pipe, _cascade_words() | {"height": 128, "width": 128, "output_type": "pt"}


def stable_cascade_decoder() -> Built:
    decoder = StableCascadeUNet(
        **_CASCADE | {"patch_size": 2}, effnet_in_channels=4, pixel_mapper_in_channels=3,
    )  # fmt: skip
    pipe = StableCascadeDecoderPipeline(
        decoder=decoder, tokenizer=None, text_encoder=None, scheduler=DDPMWuerstchenScheduler(),
        vqgan=_vq(),
    )  # fmt: skip
    picture = words(1, 4 * 9).reshape(1, 4, 3, 3)
    return pipe, _cascade_words() | {"image_embeddings": picture}


def _cascade_words() -> dict[str, Any]:
    return {
        "prompt_embeds": words(5, 24), "negative_prompt_embeds": words(5, 24).flip(1),
        "prompt_embeds_pooled": words(1, 16), "negative_prompt_embeds_pooled": -words(1, 16),
        "guidance_scale": 4.0,
    }  # fmt: skip


def _vq() -> VQModel:
    return VQModel(
        block_out_channels=(8, 16), norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        num_vq_embeddings=12,
    )  # fmt: skip


def kandinsky_3() -> Built:
    unet = Kandinsky3UNet(
        time_embedding_dim=16, groups=2, attention_head_dim=8, layers_per_block=2,
        block_out_channels=(8, 8, 8, 8), cross_attention_dim=8, encoder_hid_dim=24,
    )  # fmt: skip
    pipe = Kandinsky3Pipeline(
        tokenizer=None, text_encoder=None, unet=unet, scheduler=DDPMScheduler(), movq=_vq()
    )
    mask = torch.ones(1, 128)
    return pipe, {
        "prompt_embeds": words(128, 24), "negative_prompt_embeds": words(128, 24).flip(1),
        "attention_mask": mask, "negative_attention_mask": mask,
    }  # fmt: skip


def kandinsky_5() -> Built:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=24, in_text_dim2=16, time_dim=16,
        model_dim=32, ff_dim=48, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    )  # fmt: skip
    for name, weight in transformer.named_parameters():
        if "modulation" in name:  # zeros at first, so that no block would matter
            torch.nn.init.normal_(weight, std=0.1)
    lengths = torch.tensor([0, 5], dtype=torch.int32)
    pipe = _pipe(Kandinsky5T2IPipeline, transformer, text_encoder_2=None, tokenizer_2=None)
    return pipe, {
        "prompt_embeds_qwen": words(5, 24), "negative_prompt_embeds_qwen": words(5, 24).flip(1),
        "prompt_embeds_clip": words(1, 16)[0], "negative_prompt_embeds_clip": -words(1, 16)[0],
        "prompt_cu_seqlens": lengths, "negative_prompt_cu_seqlens": lengths,
    }  # fmt: skip


def _pipe(kind: Any, transformer: Any, **more: Any) -> Any:
    parts = {"vae": None, "text_encoder": None, "tokenizer": None} | more
    return kind(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)


def lumina_2() -> Built:
    transformer = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16), cap_feat_dim=16,
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    return _pipe(Lumina2Pipeline, transformer), {
        "prompt_embeds": words(5, 16), "negative_prompt_embeds": words(5, 16).flip(1),
        "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask,
    }  # fmt: skip


def qwen_image() -> Built:
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    mask = torch.ones(1, 5, dtype=torch.long)
    return _pipe(QwenImagePipeline, transformer), {
        "prompt_embeds": words(5, 24), "prompt_embeds_mask": mask,
        "negative_prompt_embeds": words(5, 24).flip(1), "negative_prompt_embeds_mask": mask,
        "true_cfg_scale": 3.0,
    }  # fmt: skip


def hidream() -> Built:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[24, 16], text_emb_dim=12,
        axes_dims_rope=(4, 2, 2), max_resolution=(16, 16), llama_layers=[0, 1],
        force_inference_output=True,
    ).eval()  # fmt: skip
    nothing = dict.fromkeys(
        f"{part}_{n}" for part in ("text_encoder", "tokenizer") for n in (2, 3, 4)
    )
    llama = torch.stack([words(5, 16), words(5, 16).flip(1)])
    return _pipe(HiDreamImagePipeline, transformer, **nothing), {
        "prompt_embeds_t5": words(5, 24), "negative_prompt_embeds_t5": words(5, 24).flip(1),
        "prompt_embeds_llama3": llama, "negative_prompt_embeds_llama3": -llama,
        "pooled_prompt_embeds": words(1, 12)[0], "negative_pooled_prompt_embeds": -words(1, 12)[0],
    }  # fmt: skip


def chroma() -> Built:
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    mask = torch.ones(1, 5)
    return _pipe(ChromaPipeline, transformer), {
        "prompt_embeds": words(5, 24), "negative_prompt_embeds": words(5, 24).flip(1),
        "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask,
    }  # fmt: skip


def cogview_4() -> Built:
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        text_embed_dim=24, time_embed_dim=8, condition_dim=4, sample_size=8,
        rope_axes_dim=(8, 8),
    )  # fmt: skip
    return _pipe(CogView4Pipeline, transformer), {
        "prompt_embeds": words(16, 24), "negative_prompt_embeds": words(16, 24).flip(1),
    }  # fmt: skip


def z_image() -> Built:
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return _pipe(ZImagePipeline, transformer), {
        "prompt_embeds": [words(5, 16)[0]], "negative_prompt_embeds": [-words(5, 16)[0]],
    }  # fmt: skip


def flux_2() -> Built:
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return _pipe(Flux2KleinPipeline, transformer, vae=vae), {
        "prompt_embeds": words(5, 24), "negative_prompt_embeds": words(5, 24).flip(1),
    }  # fmt: skip


MORE: dict[str, Callable[[], Built]] = {
    made.__name__: made
    for made in (
        stable_cascade_prior, stable_cascade_decoder, kandinsky_3, kandinsky_5, lumina_2,
        qwen_image, hidream, chroma, cogview_4, z_image, flux_2,
    )
}  # fmt: skip


def build(name: str, *, seed: int = 0) -> Built:
    """Returns the pipeline of a family in float32, and what a call of it needs."""
    torch.manual_seed(seed)
    pipe, call = MORE[name]()
    pipe.set_progress_bar_config(disable=True)
    asked = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    if name == "stable_cascade_decoder":
        asked = {"num_inference_steps": 2, "output_type": "latent"}
    return pipe, asked | call


def draw(pipe: Any, call: dict[str, Any], *, seed: int = 7) -> torch.Tensor:
    """Returns the latent of one picture."""
    if hasattr(pipe, "default_sample_size"):
        pipe.default_sample_size = 8  # HiDream draws as many pixels, whatever is asked
    if hasattr(pipe, "resolutions"):
        pipe.resolutions = [(64, 64)]  # Kandinsky 5 draws the nearest of its own sizes
    found = pipe(**call, generator=torch.Generator().manual_seed(seed))
    names = ("images", "image_embeddings", "image")
    return next(getattr(found, name) for name in names if hasattr(found, name))
