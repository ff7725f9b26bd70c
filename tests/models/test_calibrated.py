"""Compression with a recipe that asks for calibration and fine-tuning, end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.models import tiny
from tests.models.test_compressor import RECIPE, WEIGHTS, StopAt, content
from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.codecs.base import InputStats, WeightShape
from vqdq.errors import Cancelled, UserError
from vqdq.models.compressor import CompressionResult, compress, compress_folder
from vqdq.models.encoding import encode_layer
from vqdq.models.pipelines import load
from vqdq.progress import Event, silent
from vqdq.recipe import Layer, PlannedLayer, Recipe

CALIBRATION = CalibrationParams(prompts=4, steps=3, guidance=2.0, tokens_per_channel=6.0)
CALIBRATED = replace(RECIPE, calibration=CALIBRATION)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("calibrated") / "tiny")


@pytest.fixture(scope="module")
def result(model: Path) -> CompressionResult:
    return compress_folder(model, CALIBRATED, model.parent / "calibrated")


def test_outputs_lose_less_than_without(model: Path, result: CompressionResult) -> None:
    plain = compress_folder(model, RECIPE, model.parent / "plain")
    assert result.measured_bytes - plain.measured_bytes == 0
    lost = {layer.name: layer for layer in result.layers}
    assert all(layer.output_error_db is None for layer in plain.layers)
    packed = [layer for layer in result.layers if layer.method is not None]
    assert all(layer.output_error_db is not None for layer in packed)
    # Feedback gives up weight error for output error.
    before = sum(layer.error_db or 0 for layer in plain.layers if layer.name in lost)
    after = sum(layer.error_db or 0 for layer in packed)
    gained = [layer.error_db - layer.output_error_db for layer in packed]  # type: ignore[operator]
    assert after > before
    assert sum(gained) / len(gained) > 1.0  # dB
    facts = json.loads((result.output / "vqdq.json").read_text())
    assert [row["output_error_db"] for row in facts["layers"]] == [
        layer.output_error_db for layer in result.layers
    ]
    assert "4 prompts, 3 steps" in (result.output / "README.md").read_text()


def test_recipe_travels_with_its_calibration(result: CompressionResult) -> None:
    stored = Recipe.from_json(json.loads((result.output / "recipe.json").read_text()))
    assert stored == CALIBRATED
    assert stored.digest != RECIPE.digest


def test_disk_and_memory_are_equal_bit_for_bit(model: Path, result: CompressionResult) -> None:
    small = compress(load(model), CALIBRATED)
    stored = load_file(result.output / WEIGHTS)
    for key, tensor in small.unet.state_dict().items():
        assert torch.equal(tensor.to(stored[key].dtype), stored[key]), key
    assert torch.equal(tiny.draw(small), tiny.draw(load(result.output)))


def test_stopped_between_passes_and_resumed(
    model: Path, result: CompressionResult, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        compress_folder(model, CALIBRATED, tmp_path / "again", report=StopAt(5))
    again = compress_folder(model, CALIBRATED, tmp_path / "again")
    assert content(again.output) == content(result.output)


def test_memory_decides_the_passes_not_the_result(
    model: Path, result: CompressionResult, tmp_path: Path
) -> None:
    passes = 0

    def report(event: Event, /) -> None:
        nonlocal passes
        passes += event.stage == "calibrate" and event.done == 0

    small = replace(CALIBRATION, memory_gb=0.05)
    cut = compress_folder(
        model, replace(CALIBRATED, calibration=small), tmp_path / "cut", report=report
    )
    assert passes >= 1
    mine, theirs = load_file(cut.output / WEIGHTS), load_file(result.output / WEIGHTS)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_bias_takes_up_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 32, generator=generator)
    inputs = torch.randn(500, 32, generator=generator) + 3.0
    bias = torch.randn(24, generator=generator)
    stats = InputStats(hessian=inputs.T @ inputs / 500, mean=inputs.mean(0), num_samples=500)
    shape = WeightShape(out_features=24, in_features=32)
    recipe = Recipe.from_json({"rules": [{"pattern": "*", "method": "uniform"}]})
    codec = recipe.rules[0].codec()
    assert codec is not None
    planned = PlannedLayer(
        layer=Layer(name="x", kind="linear", shape=shape),
        rule=0,
        method="uniform",
        params=codec.params,
        storage=codec.storage(shape),
    )
    kept = encode_layer(weight, planned, 0, silent, stats=stats)
    moved = encode_layer(weight, planned, 0, silent, stats=stats, bias=bias)
    assert kept.bias is None
    assert moved.bias is not None
    true = inputs @ weight.T + bias
    off = (inputs @ moved.packed.decode().T + moved.bias.float() - true).square().sum()
    plain = (inputs @ kept.packed.decode().T + bias - true).square().sum()
    assert off < plain
    power = (inputs @ weight.T).square().sum()
    assert moved.output_error_db == pytest.approx(10 * torch.log10(off / power).item(), abs=0.02)


def test_learns_and_says_so(model: Path, tmp_path: Path) -> None:
    tuned = replace(CALIBRATED, finetune=FinetuneParams(steps=6, prompts=8))
    made = compress_folder(model, tuned, tmp_path / "tuned")
    assert made.learnt is not None
    assert made.learnt.after_db >= made.learnt.before_db
    assert made.measured_bytes - made.predicted_bytes == 0
    facts = json.loads((made.output / "vqdq.json").read_text())
    assert facts["finetune"]["after_db"] == made.learnt.after_db
    drawn = tiny.draw(compress(load(model), tuned))
    assert torch.equal(drawn, tiny.draw(load(made.output)))


def test_a_method_that_needs_calibration_says_so(model: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_json(
        {"rules": [{"pattern": "conv_*"}, {"pattern": "*", "method": "gptq"}]}
    )
    with pytest.raises(UserError, match="Hessian") as caught:
        compress_folder(model, recipe, tmp_path / "none")
    assert "calibration" in caught.value.remedy
    assert caught.value.where
