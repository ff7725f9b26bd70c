"""Ranges over recorded calls, smoothing that leaves the product alone, and inputs that are bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from tests.models import tiny
from vqdq.calibration import RangeParams
from vqdq.codecs import create
from vqdq.codecs.base import InputStats, WeightShape
from vqdq.errors import UserError
from vqdq.layers.inputs import fold_smoothing
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import compress
from vqdq.models.encoding import encode_layer
from vqdq.models.input_ranges import collect_ranges
from vqdq.models.trajectory import Call, record
from vqdq.progress import Event, silent
from vqdq.recipe import Layer, PlannedLayer, Recipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    made = tiny.pipeline(tmp_path_factory.mktemp("ranges"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def calls(pipe: StableDiffusionPipeline) -> Sequence[Call]:
    prompts = ["a red circle", "a blue square", "a circle"]
    return record(pipe, prompts, steps=3, guidance=2.0, seed=3, batch_size=2).calls


def recipe(method: str = "minmax", pattern: str = "*attn*", **params: Any) -> Recipe:
    rule = {
        "pattern": pattern,
        "method": "int8",
        "activation": {"method": method, "params": params},
    }
    made = Recipe.from_json({"rules": [rule]})
    return replace(made, ranges=RangeParams(prompts=2, steps=2, guidance=2.0))


def inputs_of(
    module: nn.Module, name: str, calls: Sequence[Call]
) -> dict[float, list[torch.Tensor]]:
    """A layer's inputs by noise level, kept by a plain hook."""
    seen: dict[float, list[torch.Tensor]] = {}
    now = 0.0
    handle = module.get_submodule(name).register_forward_pre_hook(
        lambda _module, args: seen.setdefault(now, []).append(args[0])
    )
    with torch.no_grad():
        for call in calls:
            now = call.timestep
            module(*call.args, **call.kwargs)
    handle.remove()
    return seen


def test_every_kind_of_layer(pipe: StableDiffusionPipeline, calls: Sequence[Call]) -> None:
    shapes = {
        "conv_in": (4, 64),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (32, tiny.LENGTH),
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (64, 16),
        "time_embedding.linear_1": (32, 1),
    }
    events: list[Event] = []
    found = collect_ranges(pipe.unet, tuple(shapes), calls, report=events.append)
    assert {event.stage for event in events} == {"ranges"}
    assert events[-1].done == events[-1].total == len(calls)
    for name, (channels, positions) in shapes.items():
        seen = inputs_of(pipe.unet, name, calls)
        ranges = found[name]
        assert ranges.channel_low.shape == (3, channels)
        assert ranges.position_low.shape == (3, positions)
        for at, time in enumerate(sorted(seen, reverse=True)):
            whole = torch.cat(seen[time])  # both batches, both halves
            assert len(whole) == 6
            if whole.ndim == 4:
                whole = whole.flatten(2).transpose(1, 2)
            whole = whole.reshape(6, positions, channels)
            assert ranges.timesteps[at] == time
            assert torch.equal(ranges.channel_high[at], whole.amax((0, 1)))
            assert torch.equal(ranges.position_low[at], whole.amin((0, 2)))


def test_rotated_inputs_are_ranged_as_they_are_rounded(
    pipe: StableDiffusionPipeline, calls: Sequence[Call]
) -> None:
    """Independent of the layer's code: rows times a dense matrix of the rotation."""
    made = compress(pipe, recipe("rotated", pattern="*ff.net.2", rotation=64)).unet
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    layer = made.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    assert layer.input is not None
    turned = layer.input.rows(layer, torch.eye(256)[None])[0]  # [channels, channels]
    torch.testing.assert_close(turned @ turned.T, torch.eye(256), atol=1e-5, rtol=0)
    layer.input.enabled = False
    found = collect_ranges(made, [name], calls[:1])[name]
    ((whole,),) = inputs_of(made, name, calls[:1]).values()
    whole = whole @ turned
    torch.testing.assert_close(found.channel_high[0], whole.amax((0, 1)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.position_low[0], whole.amin((0, 2)), atol=1e-4, rtol=1e-4)


def planned(codec: str, shape: WeightShape, **params: object) -> PlannedLayer:
    made = create(codec, **params)
    return PlannedLayer(
        layer=Layer(name="x", kind="conv2d", shape=shape),
        rule=0,
        method=codec,
        params=made.params,
        storage=made.storage(shape),
    )


@pytest.mark.parametrize("taps", [1, 9])
def test_smoothing_leaves_the_product_alone(taps: int) -> None:
    """W diag(s) with D⁻¹ H D⁻¹ and D⁻¹ μ is encoded, and what is said of it holds of W and x."""
    generator = torch.Generator().manual_seed(0)
    channels = 6
    shape = WeightShape(out_features=8, in_features=channels * taps, taps=taps)
    weight = torch.randn(8, channels * taps, generator=generator)
    inputs = torch.randn(300, channels * taps, generator=generator) + 1
    stats = InputStats(hessian=inputs.T @ inputs / 300, mean=inputs.mean(0), num_samples=300)
    bias = torch.randn(8, generator=generator)
    factors = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0, 0.25]).half()
    plan = planned("uniform", shape, bits=8)
    made = encode_layer(weight, plan, 0, silent, stats=stats, bias=bias, smoothing=factors)
    decoded = fold_smoothing(made.packed.decode(), factors)
    wide = factors.float().repeat(taps)
    held = encode_layer(weight * wide, plan, 0, silent, stats=InputStats(
        hessian=stats.hessian / wide[:, None] / wide, mean=stats.mean / wide, num_samples=300
    ), bias=bias)  # fmt: skip
    assert torch.equal(decoded, held.packed.decode() / wide)
    assert made.bias is not None
    assert held.bias is not None
    assert torch.equal(made.bias, held.bias)
    true, lost = inputs @ weight.T + bias, inputs @ decoded.T + made.bias.float()
    error = (true - lost).square().sum() / (inputs @ weight.T).square().sum()
    assert made.output_error_db == pytest.approx(10 * torch.log10(error).item(), abs=0.1)
    weight_error = (weight - decoded).square().sum() / weight.square().sum()
    assert made.error_db == pytest.approx(10 * torch.log10(weight_error).item(), abs=1e-3)
    assert made.output_error_db < -25


def test_smoothing_takes_outliers_out_of_the_input(pipe: StableDiffusionPipeline) -> None:
    made = compress(pipe, recipe("smooth", pattern="*attn1.to_q", scale="tensor")).unet
    for name, layer in made.named_modules():
        if isinstance(layer, QuantizedLayer):
            weight = pipe.unet.get_submodule(name).weight.detach()
            factors = layer.get_buffer("input_smooth")
            assert factors.dtype == torch.float16
            assert bool((factors > 0).all())
            assert 0.1 < float(factors.float().log().mean().exp()) < 10
            torch.testing.assert_close(layer.dense(torch.float32), weight, atol=0.02, rtol=0.02)


def test_a_layer_that_is_never_reached_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, timestep: object) -> tuple[torch.Tensor]:
            del timestep
            return (self.used(x),)

    x = torch.randn(2, 3, 4)
    call = Call(step=0, timestep=9.0, prompts=(0, 1), args=(x, 9.0), kwargs={}, output=x)
    module = Idle()
    assert set(collect_ranges(module, ["used"], [call])) == {"used"}
    with pytest.raises(UserError, match="never run") as caught:
        collect_ranges(module, ["used", "idle"], [call])
    assert caught.value.where == "idle"
    assert "dynamic" in caught.value.remedy
    module.used = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(UserError, match="groups") as caught:
        collect_ranges(module, ["used"], [call])
    assert caught.value.where == "used"
