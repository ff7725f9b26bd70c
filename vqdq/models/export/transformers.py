"""The layouts of FLUX.1, Stable Diffusion 3 and AuraFlow transformers, one table each.

A row: the original name, then diffusers' names for it. Several names are parts of one tensor, below
each other. `*` is a block's number, and weights and biases follow their layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vqdq.models.export.layout import Change, Place, as_it_is, swap_halves

Table = Mapping[str, str | tuple[str, ...]]

_EMBEDDERS = {"timestep_embedder": "time_in", "text_embedder": "vector_in"} | {
    "guidance_embedder": "guidance_in"
}
_DOUBLE, _SINGLE = "transformer_blocks.*.", "single_transformer_blocks.*."

FLUX: Table = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{original}.{side}_layer": f"time_text_embed.{name}.linear_{number}"
        for name, original in _EMBEDDERS.items()
        for number, side in ((1, "in"), (2, "out"))
    },
    "double_blocks.*.img_mod.lin": f"{_DOUBLE}norm1.linear",
    "double_blocks.*.txt_mod.lin": f"{_DOUBLE}norm1_context.linear",
    "double_blocks.*.img_attn.qkv": tuple(f"{_DOUBLE}attn.to_{key}" for key in "qkv"),
    "double_blocks.*.txt_attn.qkv": tuple(f"{_DOUBLE}attn.add_{key}_proj" for key in "qkv"),
    "double_blocks.*.img_attn.norm.query_norm.scale": f"{_DOUBLE}attn.norm_q.weight",
    "double_blocks.*.img_attn.norm.key_norm.scale": f"{_DOUBLE}attn.norm_k.weight",
    "double_blocks.*.txt_attn.norm.query_norm.scale": f"{_DOUBLE}attn.norm_added_q.weight",
    "double_blocks.*.txt_attn.norm.key_norm.scale": f"{_DOUBLE}attn.norm_added_k.weight",
    "double_blocks.*.img_attn.proj": f"{_DOUBLE}attn.to_out.0",
    "double_blocks.*.txt_attn.proj": f"{_DOUBLE}attn.to_add_out",
    "double_blocks.*.img_mlp.0": f"{_DOUBLE}ff.net.0.proj",
    "double_blocks.*.img_mlp.2": f"{_DOUBLE}ff.net.2",
    "double_blocks.*.txt_mlp.0": f"{_DOUBLE}ff_context.net.0.proj",
    "double_blocks.*.txt_mlp.2": f"{_DOUBLE}ff_context.net.2",
    "single_blocks.*.modulation.lin": f"{_SINGLE}norm.linear",
    "single_blocks.*.linear1": (
        *(f"{_SINGLE}attn.to_{key}" for key in "qkv"),
        f"{_SINGLE}proj_mlp",
    ),
    "single_blocks.*.norm.query_norm.scale": f"{_SINGLE}attn.norm_q.weight",
    "single_blocks.*.norm.key_norm.scale": f"{_SINGLE}attn.norm_k.weight",
    "single_blocks.*.linear2": f"{_SINGLE}proj_out",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}

SD3: Table = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "joint_blocks.*.x_block.adaLN_modulation.1": f"{_DOUBLE}norm1.linear",
    "joint_blocks.*.context_block.adaLN_modulation.1": f"{_DOUBLE}norm1_context.linear",
    "joint_blocks.*.x_block.attn.qkv": tuple(f"{_DOUBLE}attn.to_{key}" for key in "qkv"),
    "joint_blocks.*.x_block.attn2.qkv": tuple(f"{_DOUBLE}attn2.to_{key}" for key in "qkv"),
    "joint_blocks.*.context_block.attn.qkv": tuple(
        f"{_DOUBLE}attn.add_{key}_proj" for key in "qkv"
    ),
    "joint_blocks.*.x_block.attn.ln_q": f"{_DOUBLE}attn.norm_q",
    "joint_blocks.*.x_block.attn.ln_k": f"{_DOUBLE}attn.norm_k",
    "joint_blocks.*.x_block.attn2.ln_q": f"{_DOUBLE}attn2.norm_q",
    "joint_blocks.*.x_block.attn2.ln_k": f"{_DOUBLE}attn2.norm_k",
    "joint_blocks.*.context_block.attn.ln_q": f"{_DOUBLE}attn.norm_added_q",
    "joint_blocks.*.context_block.attn.ln_k": f"{_DOUBLE}attn.norm_added_k",
    "joint_blocks.*.x_block.attn.proj": f"{_DOUBLE}attn.to_out.0",
    "joint_blocks.*.x_block.attn2.proj": f"{_DOUBLE}attn2.to_out.0",
    "joint_blocks.*.context_block.attn.proj": f"{_DOUBLE}attn.to_add_out",
    "joint_blocks.*.x_block.mlp.fc1": f"{_DOUBLE}ff.net.0.proj",
    "joint_blocks.*.x_block.mlp.fc2": f"{_DOUBLE}ff.net.2",
    "joint_blocks.*.context_block.mlp.fc1": f"{_DOUBLE}ff_context.net.0.proj",
    "joint_blocks.*.context_block.mlp.fc2": f"{_DOUBLE}ff_context.net.2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}

_JOINT = "joint_transformer_blocks.*."
_GATED = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}

AURA: Table = {
    "register_tokens": "register_tokens",
    "positional_encoding": "pos_embed.pos_embed",
    "init_x_linear": "pos_embed.proj",
    "cond_seq_linear": "context_embedder",
    "t_embedder.mlp.0": "time_step_proj.linear_1",
    "t_embedder.mlp.2": "time_step_proj.linear_2",
    "double_layers.*.modX.1": f"{_JOINT}norm1.linear",
    "double_layers.*.modC.1": f"{_JOINT}norm1_context.linear",
    **{f"double_layers.*.attn.w2{key}": f"{_JOINT}attn.to_{key}" for key in "qkv"},
    **{f"double_layers.*.attn.w1{key}": f"{_JOINT}attn.add_{key}_proj" for key in "qkv"},
    "double_layers.*.attn.w2o": f"{_JOINT}attn.to_out.0",
    "double_layers.*.attn.w1o": f"{_JOINT}attn.to_add_out",
    **{f"double_layers.*.mlpX.{ours}": f"{_JOINT}ff.{name}" for ours, name in _GATED.items()},
    **{
        f"double_layers.*.mlpC.{ours}": f"{_JOINT}ff_context.{name}"
        for ours, name in _GATED.items()
    },
    "single_layers.*.modCX.1": f"{_SINGLE}norm1.linear",
    **{f"single_layers.*.attn.w1{key}": f"{_SINGLE}attn.to_{key}" for key in "qkv"},
    "single_layers.*.attn.w1o": f"{_SINGLE}attn.to_out.0",
    **{f"single_layers.*.mlp.{ours}": f"{_SINGLE}ff.{name}" for ours, name in _GATED.items()},
    "final_linear": "proj_out",
    "modF.1": "norm_out.linear",
}


def flux_places(config: Mapping[str, Any]) -> Callable[[str], Place | None]:
    """Returns where each tensor of a FLUX.1 transformer goes."""
    del config
    return _places(FLUX, {"norm_out.linear"})


def sd3_places(config: Mapping[str, Any]) -> Callable[[str], Place | None]:
    """Returns where each tensor of a Stable Diffusion 3 transformer goes.

    diffusers' modulations without gates hold (scale, shift), the original ones (shift, scale): the
    last layer's, and the last block's for the text, which ends there.
    """
    last = int(config.get("num_layers", 18)) - 1
    return _places(SD3, {"norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"})


def aura_places(config: Mapping[str, Any]) -> Callable[[str], Place | None]:
    """Returns where each tensor of an AuraFlow transformer goes."""
    del config
    return _places(AURA, {"norm_out.linear"})


def _places(table: Table, swapped: set[str]) -> Callable[[str], Place | None]:
    inverse: dict[str, tuple[str, int, int]] = {}
    for original, names in table.items():
        parts = (names,) if isinstance(names, str) else names
        for part, name in enumerate(parts):
            inverse[name] = (original, part, len(parts))

    def place(name: str) -> Place | None:
        number = re.search(r"(?<=blocks\.)\d+", name)
        general = re.sub(r"(?<=blocks\.)\d+", "*", name, count=1)
        stem, _, kind = general.rpartition(".")
        ending = "" if general in inverse else f".{kind}"
        found = inverse.get(general) or inverse.get(stem)
        if found is None:
            return None
        original, part, parts = found
        key = original.replace("*", number.group() if number else "*") + ending
        change: Change = swap_halves if name.rpartition(".")[0] in swapped else as_it_is
        return Place(key=key, part=part, parts=parts, change=change)

    return place
