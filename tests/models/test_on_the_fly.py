"""`quantization_config=VqdqConfig.of(…)`: compressed while it loads, to the bytes of a folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, UNet2DConditionModel
from transformers import CLIPTextModel

import vqdq
from tests.models import tiny
from tests.models.test_components import EVERYTHING, FOUR, PLAIN, RECIPE, TEXT, VAE, packed, same
from vqdq.errors import UserError
from vqdq.models.compressor import CompressionResult, compress_folder
from vqdq.recipe import Recipe

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("fly") / "tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def made(model: Path) -> CompressionResult:
    return compress_folder(model, RECIPE, model.parent / "small")


def mapping() -> PipelineQuantizationConfig:
    vae = {"name": "vae", "rules": EVERYTHING["components"]["vae"]["rules"]}
    four = {"name": "text", "rules": [{"pattern": "*", **FOUR}]}
    recipes: dict[str, Any] = {"unet": PLAIN, "text_encoder": four, "vae": vae}
    return PipelineQuantizationConfig(
        quant_mapping={
            name: vqdq.VqdqConfig.of(Recipe.from_json(values)) for name, values in recipes.items()
        }
    )


def test_a_pipeline_component_by_component(
    model: Path, made: CompressionResult, tmp_path: Path
) -> None:
    expected = DiffusionPipeline.from_pretrained(made.output)
    opened = DiffusionPipeline.from_pretrained(model, quantization_config=mapping())
    for name in ("unet", "text_encoder", "vae"):
        assert packed(getattr(opened, name))
        assert same(getattr(opened, name), getattr(expected, name))
    assert torch.equal(tiny.draw(opened), tiny.draw(expected))
    opened.save_pretrained(tmp_path / "saved")
    for file in (UNET, TEXT, VAE):
        assert (tmp_path / "saved" / file).read_bytes() == (made.output / file).read_bytes()
    again = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(tiny.draw(again), tiny.draw(expected))


def test_the_stored_values_decide_and_not_the_dtype(model: Path, made: CompressionResult) -> None:
    config = vqdq.VqdqConfig.of(Recipe.from_json(PLAIN))
    unet = UNet2DConditionModel.from_pretrained(
        model / "unet", quantization_config=config, dtype=torch.bfloat16
    )
    alike = UNet2DConditionModel.from_pretrained(made.output / "unet", dtype=torch.bfloat16)
    assert same(unet, alike)
    assert unet.dtype == torch.bfloat16
    assert {layer.weight.dtype for layer in packed(unet).values()} == {torch.bfloat16}
    text = CLIPTextModel.from_pretrained(
        model / "text_encoder",
        quantization_config=vqdq.VqdqConfig.of(
            Recipe.from_json({"name": "text", "rules": [{"pattern": "*", **FOUR}]})
        ),
        dtype=torch.float16,
    )
    narrow = CLIPTextModel.from_pretrained(made.output / "text_encoder", dtype=torch.float16)
    assert same(text, narrow)
    assert not config.layers  # the caller's own is not written into


def test_inputs_without_ranges_are_quantized_too(model: Path) -> None:
    values = {
        "name": "a8",
        "rules": [{"pattern": "*", **FOUR, "activation": {"method": "dynamic"}}],
    }
    recipe = Recipe.from_json(values)
    unet = UNet2DConditionModel.from_pretrained(
        model / "unet", quantization_config=vqdq.VqdqConfig.of(recipe)
    )
    expected = vqdq.compress(vqdq.load(model), recipe)
    got = DiffusionPipeline.from_pretrained(model, unet=unet)
    assert torch.equal(tiny.draw(got), tiny.draw(expected))


def test_a_compressed_folder_keeps_what_it_is(made: CompressionResult) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opened = DiffusionPipeline.from_pretrained(made.output, quantization_config=mapping())
    assert sum("already has a `quantization_config`" in str(each.message) for each in said) == 3
    expected = DiffusionPipeline.from_pretrained(made.output)
    assert all(same(getattr(opened, n), getattr(expected, n)) for n in ("unet", "text_encoder"))


@pytest.mark.parametrize("extra", [{"calibration": {}}, {"finetune": {}}])
def test_what_needs_prompts_is_refused(model: Path, extra: dict[str, Any]) -> None:
    config = vqdq.VqdqConfig.of(Recipe.from_json({**PLAIN, **extra}))
    for kind, name in ((UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder")):
        with pytest.raises(UserError, match="prompts") as caught:
            kind.from_pretrained(model / name, quantization_config=config)
        assert "vqdq.compress" in caught.value.remedy
