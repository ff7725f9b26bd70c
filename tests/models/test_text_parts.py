"""The text encoders of pipelines, by the names of their files, in memory and while they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.models.test_components import FOUR, packed, same
from vqdq.models.others import student_of
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.parts import live
from vqdq.progress import silent
from vqdq.recipe import Recipe, resolve

RECIPE = Recipe.from_json({"name": "four", "rules": [{"pattern": "*", **FOUR}]})
SMALL: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
KEYS = {"num_key_value_heads": 1, "head_dim": 8}


def clip() -> PreTrainedModel:
    return CLIPTextModel(CLIPTextConfig(**SMALL))


def clip_projected() -> PreTrainedModel:
    return CLIPTextModelWithProjection(CLIPTextConfig(**SMALL, projection_dim=8))


def umt5() -> PreTrainedModel:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=20, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2)
    )


def gemma() -> PreTrainedModel:
    return Gemma2Model(Gemma2Config(**SMALL, **KEYS))


def qwen() -> PreTrainedModel:
    return Qwen3Model(Qwen3Config(**SMALL, **KEYS))


def llama_tied() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=True))


def qwen_vl() -> PreTrainedModel:
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 16}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    text = SMALL | {"num_key_value_heads": 1, "vocab_size": 32, "rope_parameters": rope}
    special = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text, vision_config=vision | {"intermediate_size": 24}, **special
        )
    )


# What the files of these models on the hub call things, where it differs from the model inside.
PREFIXES = {"clip": "text_model."}
MADE: list[Callable[[], PreTrainedModel]] = [
    clip, clip_projected, umt5, gemma, qwen, llama_tied, qwen_vl,
]  # fmt: skip


def states(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[0, 5, 7, 9, 6]]), output_hidden_states=True)
    return found.hidden_states[-1]


@pytest.mark.parametrize("made", MADE, ids=lambda made: made.__name__)
def test_every_way_leads_to_the_same_encoder(
    made: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = made().eval()
    kind = getattr(transformers, type(model).__name__)
    model.save_pretrained(tmp_path / "plain")
    prefix = PREFIXES.get(made.__name__, "")
    file = tmp_path / "plain" / "model.safetensors"
    source = {prefix + key: tensor for key, tensor in load_file(file).items()}
    save_file(source, file, metadata={"format": "pt"})
    config = VqdqConfig.of(RECIPE)
    opened = kind.from_pretrained(tmp_path / "plain", quantization_config=config)
    layers = packed(opened)
    inside = {
        name: part
        for name, part in kind.from_pretrained(tmp_path / "plain").named_modules()
        if type(part) is torch.nn.Linear
    }
    tied = {key.removesuffix(".weight") for key in model.all_tied_weights_keys}
    assert layers.keys() == inside.keys() - tied
    assert layers.keys()
    opened.save_pretrained(tmp_path / "small")
    stored = load_file(tmp_path / "small" / "model.safetensors")
    names = opened.config.quantization_config.layers
    assert {f"{name}.weight" for name in names} <= source.keys()
    dense = {f"{name}.weight" for name in names}
    kept = {k for k in stored if not any(k.startswith(f"{n}.") for n in names)}
    assert kept == {k for k in source if not any(k.startswith(f"{n}.") for n in names)}
    assert [key for key in stored if key in dense] == [f"{min(names)}.weight"]
    assert stored[f"{min(names)}.weight"].numel() == 0
    again = kind.from_pretrained(tmp_path / "small")
    assert same(again, opened)
    assert torch.equal(states(again), states(opened))
    memory = kind.from_pretrained(tmp_path / "plain")
    inner = live("text_encoder", memory)
    twin = student_of(memory, inner, resolve(RECIPE, inner.component), silent)
    assert same(twin, opened)
    assert torch.equal(states(twin), states(opened))
    twin.save_pretrained(tmp_path / "twin")
    assert (tmp_path / "twin/model.safetensors").read_bytes() == (
        tmp_path / "small/model.safetensors"
    ).read_bytes()
    for key in model.all_tied_weights_keys:
        parameters = dict(again.named_parameters(remove_duplicate=False))
        assert parameters[key] is parameters[model.all_tied_weights_keys[key]]
