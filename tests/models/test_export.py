"""A decoded folder is an ordinary one with the values of the compressed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.models import tiny
from vqdq.cli import main
from vqdq.errors import UserError
from vqdq.models.compressor import compress_folder
from vqdq.models.export import export_folder
from vqdq.models.weights import open_weights
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {
        "name": "mixed",
        "rules": [
            {"pattern": "conv_in", "method": None},
            {
                "pattern": "*attn1*",
                "method": "uniform",
                "params": {"bits": 4},
                "activation": {"method": "smooth"},
            },
            {"pattern": "*", "method": "uniform", "params": {"bits": 3}},
        ],
        "ranges": {"prompts": 1, "steps": 2},
    }
)
_PLAIN = """
import sys
from diffusers import UNet2DConditionModel
model = UNet2DConditionModel.from_pretrained(sys.argv[1], subfolder="unet")
assert "vqdq" not in sys.modules
print(sum(float(value.double().square().sum()) for value in model.state_dict().values()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    tiny.folder(place / "tiny")
    compress_folder(place / "tiny", RECIPE, place / "small")
    return place / "small"


def test_it_holds_the_decoded_values(folder: Path, tmp_path: Path) -> None:
    made = export_folder(folder, tmp_path / "plain")
    unet = DiffusionPipeline.from_pretrained(folder).unet
    unet.dequantize()
    wanted = {key: value.half() for key, value in unet.state_dict().items()}
    file = open_weights(tmp_path / "plain" / "unet" / "diffusion_pytorch_model.safetensors")
    assert file.tensors.keys() == wanted.keys()
    assert all(torch.equal(file.read(key), value) for key, value in wanted.items())
    assert made.bytes == file.path.stat().st_size
    assert made.left_out == ("the inputs of 16 layers are not quantized any more",)
    assert "quantization_config" not in json.loads(
        (tmp_path / "plain" / "unet" / "config.json").read_text()
    )


def test_diffusers_alone_opens_it(folder: Path, tmp_path: Path) -> None:
    export_folder(folder, tmp_path / "plain")
    said = subprocess.run(
        [sys.executable, "-c", _PLAIN, str(tmp_path / "plain")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    unet = DiffusionPipeline.from_pretrained(folder).unet
    unet.dequantize()
    values = (value.half().double() for value in unet.state_dict().values())
    assert float(said.stdout) == pytest.approx(sum(float(v.square().sum()) for v in values))


def test_what_cannot_be_exported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(folder.parent / "tiny"), "--output", str(tmp_path / "x")]) == 2
    assert "is not compressed" in capsys.readouterr().err
    with pytest.raises(UserError, match="already exists"):
        export_folder(folder, tmp_path)
    assert main(["export", str(folder), "--output", str(tmp_path / "x"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["decoded_layers"] > 16
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
