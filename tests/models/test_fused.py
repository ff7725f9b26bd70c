"""Projections that were fused are compressed as the file has them; convolutions of every shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vqdq
from tests.models import families, more_families, tiny
from tests.models.test_components import RECIPE, packed, same
from vqdq.models.compressor import compress_folder
from vqdq.models.denoisers import denoiser
from vqdq.models.pipelines import component, load
from vqdq.recipe import Recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("fused") / "tiny")


def test_fused_before_it_is_compressed_as_if_it_were_not(model: Path, tmp_path: Path) -> None:
    expected = load(compress_folder(model, RECIPE, tmp_path / "small").output)
    pipe = load(model)
    pipe.fuse_qkv_projections()
    fused = {name for name, _ in pipe.unet.named_modules() if name.endswith(("to_qkv", "to_kv"))}
    assert len(fused) > 3
    assert any(name.endswith("to_qkv") for name, _ in pipe.vae.named_modules())
    small = vqdq.compress(pipe, RECIPE)
    assert same(small.unet, expected.unet)
    assert same(small.vae, expected.vae)
    assert torch.equal(tiny.draw(small), tiny.draw(expected))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(small.vae.decode(latent).sample, expected.vae.decode(latent).sample)
    assert fused <= {name for name, _ in pipe.unet.named_modules()}  # the given one is as it was
    small.save_pretrained(tmp_path / "saved")
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "small" / file).read_bytes()


def test_fused_transformers_too() -> None:
    pipe, call = families.build("flux_dev")
    plain = vqdq.compress(pipe, RECIPE_ALONE)
    pipe.transformer.fuse_qkv_projections()
    assert any(name.endswith("to_added_qkv") for name, _ in pipe.transformer.named_modules())
    small = vqdq.compress(pipe, RECIPE_ALONE)
    assert same(small.transformer, plain.transformer)
    assert torch.equal(families.draw(small, call), families.draw(plain, call))


RECIPE_ALONE = Recipe.from_json(
    {"name": "all", "rules": [{"pattern": "*", "method": "uniform", "params": {"bits": 4}}]}
)


def shapes(pipe: Any) -> set[tuple[Any, ...]]:
    return {
        (part.kernel_size, part.stride, part.groups > 1)
        for part in denoiser(pipe)[1].modules()
        if isinstance(part, nn.Conv2d)
    }


def test_convolutions_of_every_shape_and_layers_fused_by_nature() -> None:
    made = [families.build("stable_diffusion_1")[0], families.build("pixart_alpha")[0]]
    made.append(more_families.build("stable_cascade_decoder")[0])
    seen = set[tuple[Any, ...]]().union(*(shapes(pipe) for pipe in made))
    assert seen >= {
        ((1, 1), (1, 1), False), ((3, 3), (1, 1), False), ((3, 3), (2, 2), False),
        ((2, 2), (2, 2), False), ((3, 3), (1, 1), True),
    }  # fmt: skip
    pipe = more_families.build("flux_2")[0]
    made.append(pipe)
    native = [each.name for each in component(pipe).layers if "to_qkv_mlp_proj" in each.name]
    assert len(native) == 1
    for pipe in made:
        module = denoiser(pipe)[1]
        small = denoiser(vqdq.compress(pipe, RECIPE_ALONE))[1]
        dense = {n for n, part in module.named_modules() if type(part) in (nn.Linear, nn.Conv2d)}
        assert packed(small).keys() == dense
        for name, layer in packed(small).items():
            weight = module.get_submodule(name).get_parameter("weight")
            assert layer.weight.shape == weight.shape
            lost = (layer.weight - weight).square().sum() / weight.square().sum().clamp(min=1e-9)
            assert lost < 0.05, name
