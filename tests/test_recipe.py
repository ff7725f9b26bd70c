"""Recipes say what is meant, refuse what is not, and resolve to the exact bytes of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vqdq import codecs
from vqdq.codecs.base import WeightShape
from vqdq.errors import UserError
from vqdq.recipe import METADATA, Component, Layer, Recipe, load_recipe, resolve
from vqdq.tensors import TensorSpec, safetensors_bytes

PRESETS = Path(__file__).parents[1] / "presets"
NAMES = ("vq-4bit", "vq-3bit", "vq-2bit", "trellis-4bit", "trellis-3bit", "trellis-2bit")
NAMES += ("trellis-3bit-calibrated", "trellis-2bit-calibrated", "trellis-3bit-tuned")
NAMES += ("vq-3bit-calibrated", "gptq-4bit", "rtn-8bit", "rtn-4bit", "rtn-3bit")
NAMES += ("w8a8", "dgq-w4a8", "dgq-w4a6", "w3a8-trellis", "w3a8-fp8")

UNET = {
    "conv_in": (64, 4, 9),
    "time_embedding.linear_1": (256, 64, 1),
    "add_embedding.linear_1": (256, 128, 1),
    "down_blocks.0.resnets.0.conv1": (64, 64, 9),
    "down_blocks.0.resnets.0.time_emb_proj": (64, 256, 1),
    "down_blocks.0.attentions.0.proj_in": (64, 64, 1),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (64, 128, 1),
    "down_blocks.0.attentions.0.proj_out": (64, 64, 1),
    "conv_out": (4, 64, 9),
}
KEPT = {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_1"}


def component(layers: dict[str, tuple[int, int, int]]) -> Component:
    found = [
        Layer(
            name=name,
            kind="linear" if taps == 1 else "conv2d",
            shape=WeightShape(out_features=rows, in_features=taps * channels, taps=taps),
        )
        for name, (rows, channels, taps) in layers.items()
    ]
    tensors: list[TensorSpec] = []
    for layer in found:
        rows, columns = layer.shape.out_features, layer.shape.in_features
        tensors.append(
            TensorSpec(name=f"{layer.name}.weight", dtype=torch.float32, shape=(rows, columns))
        )
        tensors.append(TensorSpec(name=f"{layer.name}.bias", dtype=torch.float32, shape=(rows,)))
    return Component(name="unet", layers=tuple(found), tensors=tuple(tensors))


@pytest.mark.parametrize("name", NAMES)
def test_presets_keep_the_boundary_and_take_the_rest(name: str) -> None:
    recipe = load_recipe(name, PRESETS)
    plan = resolve(recipe, component(UNET))
    assert recipe.name == name
    assert recipe.title
    assert recipe.description.endswith(".")
    kept = {layer.layer.name for layer in plan.layers if layer.method is None}
    assert kept == KEPT
    assert plan.predicted_bytes < plan.reference_bytes
    bits, inputs = re.findall(r"(\d)bit|w(\d)a(\d)", name)[0][0], ()
    if not bits:  # "w4a6" promises both
        bits, *inputs = re.findall(r"w(\d)a(\d)", name)[0]
    bits = int(bits)
    given = {layer.quantizer().bits for layer in plan.activated}
    assert given == {int(each) for each in inputs}
    assert len(plan.activated) == (len(plan.quantized) if inputs else 0)
    assert bits < plan.bits_per_weight < bits + 0.35
    assert plan.model_bits_per_weight > plan.bits_per_weight


def test_presets_agree_on_what_is_kept() -> None:
    rules = [load_recipe(name, PRESETS).rules for name in NAMES]
    assert {tuple(rule.pattern for rule in each) for each in rules} == {
        tuple(rule.pattern for rule in rules[0])
    }
    assert all(rule.method is None for each in rules for rule in each[:-1])
    assert sorted(path.stem for path in PRESETS.glob("*.json")) == sorted(NAMES)


def test_presets_keep_the_boundary_of_transformers_too() -> None:
    names = {
        "pos_embed.proj": True,
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": True,
        "transformer_blocks.0.norm1.linear": False,
        "transformer_blocks.0.attn1.to_q": False,
        "single_transformer_blocks.3.proj_out": False,
        "norm_out.linear": True,
        "proj_out": True,
        "proj_out_1": True,
    }
    model = component(dict.fromkeys(names, (64, 64, 1)))
    plan = resolve(load_recipe("trellis-3bit", PRESETS), model)
    assert {layer.layer.name: layer.method is None for layer in plan.layers} == names


@pytest.mark.parametrize("name", ["vq-3bit", "trellis-2bit", "rtn-4bit"])
def test_predicted_bytes_are_the_bytes_of_the_file(name: str, tmp_path: Path) -> None:
    plan = resolve(load_recipe(name, PRESETS), component(UNET))
    tensors: dict[str, torch.Tensor] = {}
    for layer in plan.layers:
        prefix, shape = layer.layer.name, layer.layer.shape
        tensors[f"{prefix}.bias"] = torch.zeros(shape.out_features).half()
        weight = torch.randn(shape.out_features, shape.in_features) * 0.02
        if layer.method is None:
            tensors[f"{prefix}.weight"] = weight.half()
            continue
        packed = codecs.create(layer.method, layer.params).encode(weight, taps=shape.taps)
        tensors |= {f"{prefix}.{key}": tensor for key, tensor in packed.tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata=dict(METADATA))
    assert (tmp_path / "model.safetensors").stat().st_size == plan.predicted_bytes
    assert {TensorSpec.of(key, tensor) for key, tensor in tensors.items()} == set(plan.tensors)


def test_safetensors_size_counts_the_header(tmp_path: Path) -> None:
    tensors = {"b.ü": torch.zeros(3, dtype=torch.uint8), "a": torch.zeros(1000).half()}
    tensors |= {"c": torch.zeros(7, dtype=torch.int32), "d": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    expected = (tmp_path / "x.safetensors").stat().st_size
    assert safetensors_bytes(specs, {"format": "pt"}) == expected


def test_json_goes_both_ways_and_the_digest_ignores_names() -> None:
    recipe = load_recipe("vq-3bit", PRESETS)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    other = Recipe(name="mine", rules=recipe.rules, seed=recipe.seed)
    assert other.digest == recipe.digest
    assert Recipe(name="mine", rules=recipe.rules, seed=1).digest != recipe.digest


def test_the_first_matching_rule_wins() -> None:
    rules = [
        {"pattern": "*.attn2.*", "method": "uniform", "params": {"bits": 8}},
        {"pattern": "*.attn*", "method": None},
        {"pattern": "down*", "method": "trellis"},
    ]
    plan = resolve(Recipe.from_json({"rules": rules}), component(UNET))
    chosen = {layer.layer.name: (layer.rule, layer.method) for layer in plan.layers}
    assert chosen["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"] == (0, "uniform")
    assert chosen["down_blocks.0.attentions.0.proj_in"] == (2, "trellis")
    assert chosen["conv_in"] == (None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rules": []}, "there are no rules"),
        ({"rule": []}, 'unknown key "rule". Did you mean "rules"?'),
        ({"version": 9, "rules": [{}]}, "version 9 is not supported"),
        ({"seed": -1, "rules": [{"pattern": "*"}]}, "seed -1 is out of range"),
        ({"seed": 2**64, "rules": [{"pattern": "*"}]}, "is out of range"),
        ({"name": 3, "rules": [{"pattern": "*"}]}, "3 is not a text"),
        ({"rules": ["*"]}, "recipe.rules[0]: is not a JSON object"),
        ({"rules": [{"method": "uniform"}]}, "there is no pattern"),
        ({"rules": [{"pattern": "*", "methd": "x"}]}, 'Did you mean "method"?'),
        ({"rules": [{"pattern": "*", "method": "trelis"}]}, 'Did you mean "trellis"?'),
        ({"rules": [{"pattern": "*", "params": {"bits": 3}}]}, "params need a method"),
        (
            {"rules": [{"pattern": "*", "method": "trellis", "params": {"bits": 7}}]},
            "recipe.rules[0].params.bits: 7 is out of range. Use 2 to 6 bits.",
        ),
        (
            {"rules": [{"pattern": "*", "method": "trellis", "params": {"bit": 3}}]},
            'recipe.rules[0].params: unknown setting "bit". Did you mean "bits"?',
        ),
    ],
)
def test_faults_name_the_place_and_the_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as fault:
        Recipe.from_json(values)
    assert message in str(fault.value)


def test_a_layer_that_does_not_fit_is_named_before_any_work() -> None:
    rules = [{"pattern": "*", "method": "additive"}]
    with pytest.raises(UserError) as fault:
        resolve(Recipe.from_json({"rules": rules}), component(UNET))
    assert str(fault.value).startswith("conv_in: 4 input channels cannot be split")
    assert fault.value.remedy == "Use group_size 4."


def test_a_recipe_that_matches_nothing_is_refused() -> None:
    rules = [{"pattern": "dwn*", "method": "uniform"}]
    with pytest.raises(UserError, match='no layer of the unet matches "dwn\\*"'):
        resolve(Recipe.from_json({"rules": rules}), component(UNET))


def test_files_that_are_no_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as fault:
        load_recipe("trellis-3bt", PRESETS)
    assert fault.value.remedy == 'Did you mean "trellis-3bit"?'
    broken = tmp_path / "broken.json"
    broken.write_text('{"rules": [}')
    with pytest.raises(UserError, match="is not JSON"):
        load_recipe(broken, PRESETS)
    broken.write_text("[1]")
    with pytest.raises(UserError, match="is not a JSON object"):
        load_recipe(broken, PRESETS)
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(broken, PRESETS)
