"""What diffusers checks on its own quantization back ends, asked of ours, with numbers.

Casts, LoRA, offloading and compiling are in `test_at_home` and `test_lora`, shards in `test_hub`.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import CompressionResult, compress_folder
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.weights import open_weights
from vqdq.recipe import Recipe

FOUR = {"pattern": "*", "method": "uniform", "params": {"bits": 4}}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    root = tmp_path_factory.mktemp("checks")
    tiny.folder(root / "tiny")
    recipe = Recipe.from_json({"name": "four", "rules": [FOUR]})
    return compress_folder(root / "tiny", recipe, root / "small")


def opened(made: CompressionResult, **options: Any) -> Any:
    return UNet2DConditionModel.from_pretrained(made.output / "unet", **options)


def asked(model: Any, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    words = torch.randn(1, 3, 32, generator=generator).to(dtype)
    found: torch.Tensor = model(sample, 5, encoder_hidden_states=words).sample
    return found


def packed(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, QuantizedLayer)}


def test_what_it_takes_in_memory_is_what_was_predicted(made: CompressionResult) -> None:
    model = opened(made, dtype=torch.float16)
    specs = open_weights(made.output / WEIGHTS)
    tensors = sum(spec.num_bytes for spec in specs.tensors.values())
    assert model.get_memory_footprint() == tensors
    assert made.predicted_bytes == tensors + len(specs.header)
    plain = UNet2DConditionModel.from_pretrained(
        made.output.parent / "tiny" / "unet", dtype=torch.float16
    )
    assert made.plan.reference_bytes - plain.get_memory_footprint() < 100_000  # its header
    model.dequantize()
    assert model.get_memory_footprint() == plain.get_memory_footprint()
    assert model.num_parameters() == plain.num_parameters()


def test_exactly_the_planned_layers_are_packed(made: CompressionResult) -> None:
    model = opened(made)
    wanted = {planned.layer.name for planned in made.plan.quantized}
    assert packed(model).keys() == wanted
    kinds = (nn.Linear, nn.Conv2d)
    every = {name for name, layer in model.named_modules() if isinstance(layer, kinds)}
    assert every == wanted  # four bits for everything
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters()
                   if name.rpartition(".")[0] in wanted and name.endswith(".weight"))  # fmt: skip


def test_layers_that_a_rule_leaves_out_stay_as_they_were(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "tiny")
    rules = [{"pattern": "*attn*", "method": None}, FOUR]
    recipe = Recipe.from_json({"name": "some", "rules": rules})
    some = compress_folder(tmp_path / "tiny", recipe, tmp_path / "small")
    model = opened(some, dtype=torch.float16)
    source = UNet2DConditionModel.from_pretrained(
        tmp_path / "tiny" / "unet", dtype=torch.float16
    ).state_dict()
    left = {k: v for k, v in model.state_dict().items() if ".attn" in k and k.endswith("weight")}
    assert len(left) > 10
    assert all(torch.equal(value, source[key]) for key, value in left.items())
    assert not any("attn" in name for name in packed(model))
    assert model.get_memory_footprint() == some.predicted_bytes - len(
        open_weights(some.output / WEIGHTS).header
    )


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_maps(made: CompressionResult, place: Any) -> None:
    model = opened(made, device_map=place)
    assert {torch.device(value) for value in model.hf_device_map.values()} == {torch.device("cpu")}
    assert torch.equal(asked(model), asked(opened(made)))


def test_modules_kept_in_float32(made: CompressionResult, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ["time_embedding", "norm2"]
    monkeypatch.setattr(UNet2DConditionModel, "_keep_in_fp32_modules", kept)
    model = opened(made, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        wide = any(part in kept for part in name.split("."))
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name
    for name, layer in packed(model).items():
        wide = any(part in kept for part in name.split("."))
        assert layer.weight.dtype == (torch.float32 if wide else torch.bfloat16), name
    stored = open_weights(made.output / WEIGHTS).tensors
    for name, layer in packed(model).items():
        for key, tensor in layer.packed.tensors.items():
            assert tensor.dtype == stored[f"{name}.{key}"].dtype  # whatever is computed in


def test_its_config_is_json_that_gives_it_back(made: CompressionResult) -> None:
    config = opened(made).config["quantization_config"]
    values = json.loads(json.dumps(config.to_dict()))
    assert VqdqConfig.from_dict(values).to_dict() == values
    assert json.loads(config.to_json_string())["quant_method"] == "vqdq"


def test_a_setting_that_it_does_not_know_is_named(made: CompressionResult, tmp_path: Path) -> None:
    text = json.loads((made.output / "unet" / "config.json").read_text())
    text["quantization_config"]["group_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(text))
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(made.output / WEIGHTS)
    with pytest.raises(UserError, match="group_size"):
        UNet2DConditionModel.from_pretrained(tmp_path)


def test_a_pickled_copy_is_the_same_model(made: CompressionResult, tmp_path: Path) -> None:
    model = opened(made)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(asked(twin), asked(model))
    assert twin.is_quantized
    twin.save_pretrained(tmp_path / "twin")
    name = Path(WEIGHTS).name
    assert (tmp_path / "twin" / name).read_bytes() == (made.output / WEIGHTS).read_bytes()


class Branch(nn.Module):
    """An adapter as people write it: beside a layer, trained while the layer is frozen."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.layer(input) + self.up(self.down(input))  # type: ignore[no-any-return]


def test_adapters_learn_as_beside_ordinary_layers(made: CompressionResult) -> None:
    losses, grown = [], []
    for dense in (False, True):
        model = opened(made)
        if dense:
            model.dequantize()
        model.requires_grad_(False)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        torch.manual_seed(4)
        branches = {
            name: Branch(layer)
            for name, layer in model.named_modules()
            if name.endswith(("to_q", "to_v"))
        }
        for name, branch in branches.items():
            model.set_submodule(name, branch)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len(trained) == 2 * len(branches)
        optimizer = torch.optim.Adam(trained, lr=1e-2)
        for _ in range(4):
            loss = (asked(model) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert all(p.grad is not None and float(p.grad.norm()) > 0 for p in trained)
        grown.append([p.detach() for p in trained])
        after = model.state_dict()
        same = {key.replace(".layer.", "."): value for key, value in after.items()}
        assert all(torch.equal(same[key], value) for key, value in before.items())
    assert losses[:4] == losses[4:]
    assert losses[3] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(*grown, strict=True))
