"""More families: compressed folders that diffusers opens by itself and that draw the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import vqdq
from tests.models import more_families
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import compress_folder
from vqdq.recipe import Recipe

RULES = [{"pattern": "*", "method": "uniform", "params": {"bits": 4, "clip": "absmax"}}]
OTHERS = {"stable_cascade_prior": "text_encoder", "flux_2": "vae"}
FEW = {"kandinsky_3": "*_blocks.1.*"}  # it has 250 layers, however small


def packed(model: torch.nn.Module) -> set[str]:
    return {name for name, part in model.named_modules() if isinstance(part, QuantizedLayer)}


@pytest.mark.filterwarnings("ignore:.FluxPosEmbed")  # diffusers' own Chroma uses it
@pytest.mark.parametrize("family", more_families.MORE)
def test_compressed_folders_open_in_diffusers_and_draw_the_same(
    family: str, tmp_path: Path
) -> None:
    pipe, call = more_families.build(family)
    other = OTHERS.get(family)
    rules = [{**RULES[0], "pattern": FEW.get(family, "*")}]
    values: dict[str, Any] = {"name": "four", "rules": rules}
    if other is not None:
        values["components"] = {other: {"rules": RULES}}
    recipe = Recipe.from_json(values)
    absent = {key: None for key, part in pipe.components.items() if part is None}
    pipe.save_pretrained(tmp_path / "source")
    made = compress_folder(tmp_path / "source", recipe, tmp_path / "small")
    small = vqdq.compress(pipe, recipe)
    opened = DiffusionPipeline.from_pretrained(tmp_path / "small", **absent)
    opened.set_progress_bar_config(disable=True)
    assert made.measured_bytes == made.predicted_bytes < made.plan.reference_bytes
    for plan in (made.plan, *made.plan.others):
        one, two = (getattr(each, plan.component.name) for each in (opened, small))
        assert packed(one) == packed(two) == {item.layer.name for item in plan.quantized}
        assert len(plan.quantized) == len(plan.layers) or (family in FEW and plan.quantized)
        state = two.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())
    latent = more_families.draw(opened, call)
    assert torch.equal(latent, more_families.draw(small, call))
    assert torch.isfinite(latent).all()
