"""Single-file checkpoints made from diffusers' modules, by name maps of their own.

The maps are written from the layouts themselves (module names of the original programs), in the
other direction than an import takes, and use nothing of diffusers' conversions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(state: Mapping[str, torch.Tensor], per_block: int) -> State:
    """Returns a UNet's tensors by the names of Stable Diffusion's own program."""
    found: State = {}
    step = per_block + 1
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        if module in _UNET:
            found[f"{_UNET[module]}.{kind}"] = tensor
            continue
        match = re.fullmatch(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+?)s\.(\d+)\.(.+)", key)
        assert match is not None, key
        side, block, part, number, rest = match.groups()
        i, j = int(block or 0), int(number)
        if part == "resnet":
            head, _, tail = rest.partition(".")
            rest = f"{_RESNET[head]}.{tail}"
        if side == "mid":
            place = f"middle_block.{1 if part == 'attention' else 2 * j}"
        elif part == "downsampler":
            place, rest = f"input_blocks.{(i + 1) * step}.0", rest.replace("conv", "op")
        elif part == "upsampler":
            attends = any(name.startswith(f"up_blocks.{i}.attentions") for name in state)
            place = f"output_blocks.{i * step + per_block}.{2 if attends else 1}"
        else:
            first = f"input_blocks.{1 + i * step + j}" if side == "down" else ""
            place = first or f"output_blocks.{i * step + j}"
            place += ".1" if part == "attention" else ".0"
        found[f"{place}.{rest}"] = tensor
    return found


def vae(state: Mapping[str, torch.Tensor], levels: int) -> State:
    """Returns an autoencoder's tensors by the names of Stable Diffusion's own program."""
    attention = {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    found: State = {}
    for key, tensor in state.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        if (match := re.search(r"up_blocks\.(\d+)", name)) is not None:
            name = name.replace(match[0], f"up.{levels - 1 - int(match[1])}")
        name = name.replace("resnets", "block") if ".up." in name else name
        name = name.replace("upsamplers.0", "upsample")
        if (match := re.search(r"mid_block\.resnets\.(\d)", name)) is not None:
            name = name.replace(match[0], f"mid.block_{int(match[1]) + 1}")
        if "mid_block.attentions.0" in name:
            head, _, tail = name.partition("mid_block.attentions.0.")
            module, _, kind = tail.rpartition(".")
            name = f"{head}mid.attn_1.{attention[module]}.{kind}"
            if kind == "weight" and tensor.ndim == 2:  # there a convolution of one pixel
                tensor = tensor[:, :, None, None]
        found[name] = tensor
    return found


def open_clip(state: Mapping[str, torch.Tensor]) -> State:
    """Returns a CLIP text encoder's tensors by OpenCLIP's names: q, k and v in one matrix."""
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    inner |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    plain = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    found: State = {}
    for key, tensor in plain.items():
        if key in names:
            found[names[key]] = tensor
        elif key == "text_projection.weight":
            found["text_projection"] = tensor.T
        else:
            match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
            assert match is not None, key
            block = f"transformer.resblocks.{match[1]}"
            if match[2] == "self_attn.q_proj":
                three = [key.replace("q_proj", f"{part}_proj") for part in "qkv"]
                joined = torch.cat([plain[part] for part in three])
                found[f"{block}.attn.in_proj_{match[3]}"] = joined
            elif match[2] in inner:
                found[f"{block}.{inner[match[2]]}.{match[3]}"] = tensor
    return found


def flux(state: Mapping[str, torch.Tensor]) -> State:
    """Returns a FLUX transformer's tensors by the names of its own program: fused projections."""
    top = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "proj_out": "final_layer.linear",
    }
    double = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin",
        "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    }  # fmt: skip
    single = {
        "norm.linear": "modulation.lin", "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm", "proj_out": "linear2",
    }  # fmt: skip
    fused = {
        "attn.to_q": ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        "attn.add_q_proj": (
            "txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        ),
    }  # fmt: skip
    found: State = {}
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        if module in top:
            found[f"{top[module]}.{kind}"] = tensor
        elif module == "norm_out.linear":  # the other order of scale and shift
            scale, shift = tensor.chunk(2)
            found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        elif (
            match := re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", module)
        ) is not None:
            alone, number, inner = match.groups()
            block = f"{'single' if alone else 'double'}_blocks.{number}"
            stem = module.removesuffix(inner)
            names = single if alone else double
            if inner in names:
                end = "scale" if names[inner].endswith("_norm") else kind
                found[f"{block}.{names[inner]}.{end}"] = tensor
            elif alone and inner == "attn.to_q":
                parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
                joined = torch.cat([state[f"{stem}{part}.{kind}"] for part in parts])
                found[f"{block}.linear1.{kind}"] = joined
            elif not alone and inner in fused:
                name, three = fused[inner]
                joined = torch.cat([state[f"{stem}{part}.{kind}"] for part in three])
                found[f"{block}.{name}.{kind}"] = joined
    return found


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    """Returns the tensors with a prefix before each name."""
    return {prefix + key: tensor for key, tensor in state.items()}


def save(path: Path, *states: Mapping[str, torch.Tensor]) -> Path:
    """Writes them all as one file; returns it."""
    whole = {key: tensor.contiguous().clone() for state in states for key, tensor in state.items()}
    save_file(whole, path)
    return path
