"""Every family: layers in their order, and a compressed folder that diffusers opens by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqdq
from tests.models import families
from vqdq.models.compressor import compress_folder
from vqdq.models.denoisers import denoiser, layers_of, skeleton
from vqdq.models.sources import presets_folder
from vqdq.recipe import load_recipe

INTEGER = load_recipe("w8a8", presets_folder())


def _executed(model: torch.nn.Module, run: Any) -> list[str]:
    seen: dict[str, None] = {}
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return list(seen)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_compressed_folders_open_in_diffusers_and_draw_the_same(family: str, tmp_path: Path):
    pipe, call = families.build(family)
    name, model = denoiser(pipe)
    order = _executed(model, lambda: families.draw(pipe, call))
    found = layers_of(skeleton({**model.config, "_class_name": type(model).__name__}))
    assert [layer.name for layer in found if layer.positions] == order
    absent = {key: None for key, part in pipe.components.items() if part is None}
    pipe.save_pretrained(tmp_path / "source")
    made = compress_folder(tmp_path / "source", INTEGER, tmp_path / "small")
    assert made.measured_bytes == made.predicted_bytes
    assert len(made.plan.quantized) >= 0.5 * len(made.plan.layers)
    opened = DiffusionPipeline.from_pretrained(tmp_path / "small", **absent)
    opened.set_progress_bar_config(disable=True)
    assert sum(hasattr(part, "packed") for part in getattr(opened, name).modules()) == len(
        made.plan.quantized
    )
    latent = families.draw(opened, call)
    assert torch.equal(latent, families.draw(vqdq.compress(pipe, INTEGER), call))
    assert torch.isfinite(latent).all()
