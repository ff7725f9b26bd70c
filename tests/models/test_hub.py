"""diffusers opens compressed folders: the stored values in every dtype, the same bytes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.quantizers import auto
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from tests.models import tiny
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import compress, compress_folder
from vqdq.models.hub import register
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.pipelines import load
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {
        "name": "tiny",
        "rules": [
            {"pattern": "conv_*", "method": None},
            {"pattern": "*", "method": "uniform", "params": {"bits": 4, "clip": "absmax"}},
        ],
    }
)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("hub")
    return compress_folder(tiny.folder(root / "tiny"), RECIPE, root / "packed").output


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "packed"))


def packed(unet: torch.nn.Module) -> dict[str, QuantizedLayer]:
    return {n: m for n, m in unet.named_modules() if isinstance(m, QuantizedLayer)}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_decodes_the_stored_values(folder: Path, dtype: torch.dtype | None) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=dtype)
    stored = load_file(folder / WEIGHTS)
    layers = packed(unet)
    assert len(layers) == len(unet.config.quantization_config.layers)
    for name, layer in layers.items():
        for key, tensor in layer.packed.tensors.items():
            assert tensor.dtype == stored[f"{name}.{key}"].dtype
            assert torch.equal(tensor, stored[f"{name}.{key}"])
        assert layer.weight.dtype == (dtype or torch.float32)
    assert unet.conv_in.weight.dtype == unet.dtype == (dtype or torch.float32)


def test_plain_diffusers_opens_and_runs_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = tiny.draw(compress(load(folder.parent / "tiny"), RECIPE))
    capfd.readouterr()
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert torch.equal(tiny.draw(pipe), expected)
    said = [
        line for line in capfd.readouterr().err.splitlines() if line.strip() and "%|" not in line
    ]
    assert said == []  # no warning, no hint


def test_saved_again_it_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder)
    expected = tiny.draw(pipe)
    pipe.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert torch.equal(tiny.draw(load(tmp_path / "again")), expected)
    small = compress(load(folder.parent / "tiny"), RECIPE)
    small.save_pretrained(tmp_path / "memory")
    assert (tmp_path / "memory" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert torch.equal(tiny.draw(load(tmp_path / "memory")), expected)


def test_tuned_tensors_are_saved_without_loss(folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with torch.no_grad():
        unet.conv_in.bias += 1e-7  # float16 cannot hold this
    unet.save_pretrained(tmp_path / "tuned")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "tuned")
    assert torch.equal(again.conv_in.bias, unet.conv_in.bias)


def test_shards(folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    again = UNet2DConditionModel.from_pretrained(tmp_path / "shards")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in unet.state_dict().items())


def test_without_the_import_diffusers_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "vqdq")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "vqdq")
    with pytest.raises(ValueError, match="Unknown quantization type, got vqdq"):
        UNet2DConditionModel.from_pretrained(folder / "unet")
    register()
    assert packed(UNet2DConditionModel.from_pretrained(folder / "unet"))


def test_dequantized_it_is_an_ordinary_model(folder: Path, tmp_path: Path) -> None:
    pipe = load(folder)
    expected = tiny.draw(pipe)
    pipe.unet.dequantize()
    assert not packed(pipe.unet)
    assert torch.equal(tiny.draw(pipe), expected)
    pipe.unet.save_pretrained(tmp_path / "dense")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "dense")
    assert torch.equal(
        again.mid_block.resnets[0].conv1.weight, pipe.unet.mid_block.resnets[0].conv1.weight
    )


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("version",), 99, "format version 99"),
        (("codecs", 0, "method"), "quantum", 'unknown method "quantum"'),
        (("codecs", 0, "params", "bits"), 99, "out of range"),
        (("codecs", 0, "params", "bots"), 4, 'unknown setting "bots"'),
        (("layers", "time_embedding.linear_1", "codec"), 7, "malformed"),
        (("layers", "time_embedding.linear_1", "shape"), [3, 3], "the layer needs"),
        (("codecs", 0, "params", "bits"), 3, "is stored as"),
    ],
)
def test_a_config_that_does_not_fit(
    copied: Path, path: tuple[str | int, ...], value: object, what: str
) -> None:
    config = copied / "unet/config.json"
    values = json.loads(config.read_text())
    place = values["quantization_config"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    config.write_text(json.dumps(values))
    with pytest.raises(UserError, match=what):
        load(copied)


def test_missing_packed_tensors_are_named(copied: Path) -> None:
    tensors = load_file(copied / WEIGHTS)
    key = next(key for key in tensors if key.startswith("mid_block") and "codes" in key)
    del tensors[key]
    save_file(tensors, copied / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not in the file") as caught:
        load(copied)
    assert caught.value.where == key.rpartition(".")[0]


def test_config_survives_json(folder: Path) -> None:
    values = json.loads((folder / "unet/config.json").read_text())["quantization_config"]
    config = VqdqConfig.from_dict(values)
    assert json.loads(json.dumps(config.to_dict())) == values
    assert "tiny" in repr(config)
