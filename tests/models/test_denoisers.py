"""Layers, shapes and their order, from the architecture alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.models.denoisers import denoiser, layers_of, skeleton
from vqdq.models.pipelines import component, load


def ghost(model: torch.nn.Module) -> torch.nn.Module:
    return skeleton({**model.config, "_class_name": type(model).__name__})


def executed(model: torch.nn.Module, call: dict[str, object]) -> list[str]:
    """The layers in the order in which a real call runs them."""
    seen: list[str] = []
    for name, module in model.named_modules():
        if type(module) in (torch.nn.Linear, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
    model(**call)
    return seen


def test_order_is_that_of_a_real_call(tmp_path: Path) -> None:
    unet = tiny.pipeline(tmp_path).unet
    call = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": 1,
        "encoder_hidden_states": torch.zeros(1, 3, 32),
    }
    found = [layer.name for layer in layers_of(ghost(unet))]
    assert found == executed(unet, call)
    middle, up = (next(n for n in found if n.startswith(p)) for p in ("mid_block", "up_blocks"))
    assert found.index(middle) < found.index(up)


def test_order_with_the_conditioning_of_sdxl() -> None:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
    )
    call = {
        "sample": torch.zeros(1, 4, 8, 8),
        "timestep": 1,
        "encoder_hidden_states": torch.zeros(1, 3, 16),
        "added_cond_kwargs": {
            "text_embeds": torch.zeros(1, 16),
            "time_ids": torch.zeros(1, 6),
        },
    }
    assert [layer.name for layer in layers_of(ghost(unet))] == executed(unet, call)


def test_folder_and_live_pipeline_agree(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "tiny")
    pipe = load(folder)
    name, module = denoiser(pipe)
    assert (name, module) == ("unet", pipe.unet)
    stored, live = component(folder), component(pipe)
    assert stored.layers == live.layers
    assert [spec.name for spec in stored.tensors] == [spec.name for spec in live.tensors]
    assert {spec.dtype for spec in stored.tensors} == {torch.float16}
    assert {spec.dtype for spec in live.tensors} == {torch.float32}


def test_a_pipeline_without_a_denoiser() -> None:
    with pytest.raises(UserError, match="no unet and no transformer"):
        denoiser(SimpleNamespace(vae=torch.nn.Linear(1, 1)))  # type: ignore[arg-type]
