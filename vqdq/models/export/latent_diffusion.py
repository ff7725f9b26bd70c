"""The layout of Stable Diffusion 1, 2 and SDXL: UNet, autoencoder and text encoders in one file.

The names are those of CompVis/latent-diffusion and Stability-AI/generative-models: one running
number over a UNet's blocks, OpenCLIP's own names for the text encoders that come from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vqdq.models.export.layout import Place, as_convolution, transposed

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = {  # by family: (CLIP's own names, OpenCLIP's names)
    "sd1": ("cond_stage_model.transformer.", ""),
    "sd2": ("", "cond_stage_model.model."),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "refiner": ("", "conditioner.embedders.0.model."),
}

_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_INNER = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)"
    r"\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_VAE_INNER = re.compile(
    r"(encoder|decoder)\.(?:(?:down|up)_blocks\.(\d+)|mid_block)"
    r"\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # four names of folders from before 2023
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def has_original(config: Mapping[str, Any]) -> bool:
    """Returns whether a UNet's config describes one that the original code can build."""
    blocks = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    return (
        blocks <= _BLOCKS
        and config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn"
        and isinstance(config.get("layers_per_block", 2), int)
        and config.get("encoder_hid_dim_type") is None
        and config.get("addition_embed_type") in (None, "text_time")
    )


def unet_places(config: Mapping[str, Any]) -> Callable[[str], Place | None]:
    """Returns where each tensor of a UNet goes.

    Blocks are numbered through: 0 is the first convolution, then every block's layers and, where
    there is one, its downsampler; `output_blocks` count anew, an upsampler standing in the last of
    its block.
    """
    layers = int(config.get("layers_per_block", 2))
    crossed = [name.startswith("CrossAttn") for name in config.get("up_block_types", ())]

    def place(name: str) -> Place | None:
        stem, _, kind = name.rpartition(".")
        if stem in _OUTER:
            return Place(key=f"{UNET}{_OUTER[stem]}.{kind}")
        found = _INNER.fullmatch(name)
        if found is None:
            return None
        side, block, group, item, rest = found.groups()
        number = int(item)
        if group == "resnets":
            inner = _renamed(rest, _RESNET)
        elif group == "attentions":
            inner = rest
        else:
            inner = rest if rest in ("conv.weight", "conv.bias") else None
        if inner is None:
            return None
        if side is None:
            return Place(key=f"{UNET}middle_block.{2 * number + (group == 'attentions')}.{inner}")
        first = int(block) * (layers + 1)
        if group in ("resnets", "attentions"):
            where, slot = first + number, int(group == "attentions")
        elif side == "down":
            where, slot, inner = first + layers, 0, inner.replace("conv.", "op.")
        else:
            where, slot = first + layers, 1 + crossed[int(block)]
        half = f"input_blocks.{where + 1}" if side == "down" else f"output_blocks.{where}"
        return Place(key=f"{UNET}{half}.{slot}.{inner}")

    return place


def vae_places(config: Mapping[str, Any]) -> Callable[[str], Place | None]:
    """Returns where each tensor of an autoencoder goes; `decoder.up` counts from the smallest."""
    ups = len(config.get("up_block_types", ()))

    def place(name: str) -> Place | None:
        if re.fullmatch(r"((en|de)coder\.conv_(in|out)|(post_)?quant_conv)\.(weight|bias)", name):
            return Place(key=VAE + name)
        if ".conv_norm_out." in name:
            return Place(key=VAE + name.replace("conv_norm_out", "norm_out"))
        found = _VAE_INNER.fullmatch(name)
        if found is None:
            return None
        half, block, group, item, rest = found.groups()
        if group == "attentions" and block is None:
            inner = _renamed(rest, _VAE_ATTENTION)
            if inner is None:
                return None
            return Place(key=f"{VAE}{half}.mid.attn_1.{inner}", change=as_convolution)
        rest = rest.replace("conv_shortcut", "nin_shortcut")
        if group == "resnets" and block is None:
            return Place(key=f"{VAE}{half}.mid.block_{int(item) + 1}.{rest}")
        level = f"down.{block}" if half == "encoder" else f"up.{ups - 1 - int(block or 0)}"
        if group == "resnets":
            return Place(key=f"{VAE}{half}.{level}.block.{item}.{rest}")
        if group == "attentions":
            return None
        return Place(key=f"{VAE}{half}.{level}.{group.removesuffix('rs')}.{rest}")

    return place


def clip_places(prefix: str) -> Callable[[str], Place | None]:
    """Returns where each tensor of a CLIP text encoder goes that keeps its own names."""

    def place(name: str) -> Place | None:
        if name.startswith(("text_model.", "text_projection.")):
            return Place(key=prefix + name)
        return Place(key=f"{prefix}text_model.{name}")  # transformers 5.6 dropped the word

    return place


def open_clip_places(prefix: str) -> Callable[[str], Place | None]:
    """Returns where each tensor of a text encoder from OpenCLIP goes."""

    def place(name: str) -> Place | None:
        if name == "text_projection.weight":
            return Place(key=f"{prefix}text_projection", change=transposed)
        short = name.removeprefix("text_model.")
        if short in _OPEN_CLIP:
            return Place(key=prefix + _OPEN_CLIP[short])
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", short)
        if found is None:
            return None
        layer, stem, kind = found.groups()
        block = f"{prefix}transformer.resblocks.{layer}."
        if stem in _QKV:
            return Place(key=f"{block}attn.in_proj_{kind}", part=_QKV.index(stem), parts=3)
        if stem not in _OPEN_CLIP_LAYER:
            return None
        return Place(key=f"{block}{_OPEN_CLIP_LAYER[stem]}.{kind}")

    return place


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    stem, _, kind = name.rpartition(".")
    return f"{table[stem]}.{kind}" if stem in table else None
