"""Compression with quantized inputs, end to end: the same on the disk and in memory, and again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import tiny
from tests.models.test_compressor import WEIGHTS
from vqdq.calibration import RangeParams
from vqdq.models.compressor import CompressionResult, compress, compress_folder
from vqdq.models.pipelines import load
from vqdq.recipe import Recipe

WEIGHTS_ONLY = {"method": "uniform", "params": {"bits": 4, "clip": "absmax"}}
MINMAX = {"method": "minmax", "params": {"bits": 8, "levels": 3}}
RECIPE = replace(
    Recipe.from_json(
        {
            "name": "tiny-activations",
            "rules": [
                {"pattern": "conv_*", "method": None},
                {"pattern": "*.attn2.*", **WEIGHTS_ONLY, "activation": {"method": "dynamic"}},
                {"pattern": "*", **WEIGHTS_ONLY, "activation": MINMAX},
            ],
        }
    ),
    ranges=RangeParams(prompts=4, steps=3, guidance=2.0),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("activations") / "tiny")


@pytest.fixture(scope="module")
def result(model: Path) -> CompressionResult:
    return compress_folder(model, RECIPE, model.parent / "whole")


def test_disk_and_memory_are_equal_bit_for_bit(model: Path, result: CompressionResult) -> None:
    assert result.measured_bytes == result.predicted_bytes
    small = compress(load(model), RECIPE)
    stored = load_file(result.output / WEIGHTS)
    state = small.unet.state_dict()
    assert set(state) == set(stored)
    for key, tensor in state.items():
        assert torch.equal(tensor.to(stored[key].dtype), stored[key]), key
    assert torch.equal(tiny.draw(small), tiny.draw(load(result.output)))
