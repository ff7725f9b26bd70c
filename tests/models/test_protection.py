"""Fragile inputs: the cost is that of rounding one input alone, and the recipe keeps the worst."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from tests.models import tiny
from vqdq.calibration import RangeParams
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import set_activations_
from vqdq.models import protection
from vqdq.models.compressor import compress
from vqdq.models.fragility import input_costs
from vqdq.models.pipelines import component
from vqdq.models.trajectory import Call, Trajectories, guided, record, replay
from vqdq.recipe import Recipe, resolve

RECIPE = replace(
    Recipe.from_json(
        {
            "name": "tiny",
            "rules": [
                {"pattern": "conv_*", "method": None},
                {"pattern": "*.attn1.*", "method": "uniform"},
                {
                    "pattern": "*",
                    "method": "int8",
                    "activation": {"method": "minmax", "params": {"bits": 5}},
                },
            ],
        }
    ),
    ranges=RangeParams(prompts=2, steps=3, guidance=2.0),
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    made = tiny.pipeline(tmp_path_factory.mktemp("protection"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def student(pipe: StableDiffusionPipeline) -> nn.Module:
    return compress(pipe, RECIPE).unet


@pytest.fixture(scope="module")
def made(pipe: StableDiffusionPipeline) -> Trajectories:
    prompts = ["a red circle", "a blue square", "a circle", "a square above a circle"]
    return record(pipe, prompts, steps=4, guidance=2.0, seed=3)


@pytest.fixture(scope="module")
def calls(made: Trajectories) -> Sequence[Call]:
    return made.calls


def alone(student: nn.Module, name: str, calls: Sequence[Call]) -> tuple[float, float]:
    """The error of the prediction, raw and guided, with one rounded input: by rounding it."""
    layer = student.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    assert layer.input is not None
    found = torch.zeros(4, dtype=torch.float64)
    set_activations_(student, enabled=False)
    with torch.no_grad():
        for call in calls:
            layer.input.enabled = False
            exact = replay(student, call)
            layer.input.enabled = True
            error = replay(student, call) - exact
            pairs = (error, exact, guided(error, call, 2.0), guided(exact, call, 2.0))
            found += torch.tensor([float(part.double().square().sum()) for part in pairs])
    set_activations_(student, enabled=True)
    return float(found[0] / found[1]), float(found[2] / found[3])


def test_the_cost_is_that_of_rounding_one_input(student: nn.Module, calls: Sequence[Call]) -> None:
    before = [parameter.requires_grad for parameter in student.parameters()]
    costs = input_costs(student, calls, 2.0, probes=24)
    assert [parameter.requires_grad for parameter in student.parameters()] == before
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(layer._forward_hooks for layer in student.modules())
    assert len(costs) > 40
    worst = sorted(costs, key=lambda name: -costs[name].raw)
    for name in (*worst[:3], worst[len(worst) // 2], "time_embedding.linear_2"):
        raw, told = alone(student, name, calls)
        assert costs[name].raw == pytest.approx(raw, rel=0.25)
        assert costs[name].guided == pytest.approx(told, rel=0.3)
        assert costs[name].blend(0.5) == (costs[name].raw + costs[name].guided) / 2


def test_products_and_output_errors_are_counted(student: nn.Module, calls: Sequence[Call]) -> None:
    costs = input_costs(student, calls[:1], 2.0, probes=1)
    conv = costs["up_blocks.0.upsamplers.0.conv"]  # 64 -> 64 channels, 3 x 3, at 8 x 8
    assert conv.macs == 64 * 64 * 9 * 64
    assert costs["time_embedding.linear_1"].macs == 32 * 128
    assert all(5 < cost.output_db < 45 for cost in costs.values())


def test_the_worst_keep_their_inputs(
    pipe: StableDiffusionPipeline, made: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protection, "recorded", lambda *_, **__: made)
    safe, table = protection.protected(pipe, RECIPE, share=0.1)
    assert [row.cost for row in table] == sorted((row.cost for row in table), reverse=True)
    kept = [row.name for row in table if row.kept]
    assert len(kept) == len(table) // 10
    assert kept == [row.name for row in table[: len(kept)]]
    plan = resolve(safe, component(pipe))
    was = resolve(RECIPE, component(pipe))
    for mine, before in zip(plan.layers, was.layers, strict=True):
        assert (mine.method, mine.params) == (before.method, before.params)
        name = mine.layer.name
        assert mine.activation == (None if name in kept else before.activation)
    assert {rule.pattern for rule in safe.rules[: len(kept)]} == {glob.escape(n) for n in kept}
    assert Recipe.from_json(safe.to_json()) == safe
    assert f"{len(kept)} fragile inputs" in safe.title


def test_a_share_of_the_products(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = resolve(RECIPE, component(pipe))
    costs = {
        planned.layer.name: protection.InputCost(
            raw=0.1 if "conv" in planned.layer.name else 1e-6, guided=0.1, output_db=20.0,
            macs=planned.layer.shape.count,
        )
        for planned in plan.activated
    }  # fmt: skip
    monkeypatch.setattr(protection, "_measured", lambda *_: costs)
    made, table = protection.protected(pipe, RECIPE, share=0.5, of="macs")
    whole = sum(row.macs for row in table)
    held = sum(row.macs for row in table if row.kept)
    assert 0.4 * whole < held <= 0.5 * whole
    none, table = protection.protected(pipe, RECIPE, share=0.0)
    assert none == RECIPE
    assert not any(row.kept for row in table)
    assert len(made.rules) > len(RECIPE.rules)


def test_what_cannot_be_protected(pipe: StableDiffusionPipeline) -> None:
    plain = Recipe.from_json({"rules": [{"pattern": "*", "method": "int8"}]})
    with pytest.raises(UserError, match="no input"):
        protection.protected(pipe, plain)
    with pytest.raises(UserError, match="out of range"):
        protection.protected(pipe, RECIPE, share=1.5)
