"""Quantized inputs away from their calibration: other batches, sizes, samplers, texts, and NaN."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from tests.models import tiny
from vqdq import activations
from vqdq.calibration import RangeParams
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.models.compressor import compress
from vqdq.models.generate import generate
from vqdq.models.input_groups import watching
from vqdq.models.input_ranges import collect_ranges
from vqdq.models.trajectory import record, replay
from vqdq.recipe import Recipe

METHODS = activations.names()
FIRST = "down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    made = tiny.pipeline(tmp_path_factory.mktemp("odd"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def small(pipe: StableDiffusionPipeline) -> Mapping[str, StableDiffusionPipeline]:
    """The model by method, calibrated with 3 steps of DDIM on 8 x 8 latents in batches of 16."""
    return {method: compress(pipe, recipe(method)) for method in METHODS}


def recipe(method: str) -> Recipe:
    kind = activations.get(method)
    scale = {"scale": "tensor"} if "scale" in kind.settings.__dataclass_fields__ else {}
    rules = [
        {"pattern": "conv_*", "method": None},
        {"pattern": "*", "method": "int8", "activation": {"method": method, "params": scale}},
    ]
    made = Recipe.from_json({"name": method, "rules": rules})
    return replace(made, ranges=RangeParams(prompts=8, steps=3, guidance=2.0))


def arguments(pipe: Any, batch: int, height: int = 8, width: int = 8) -> dict[str, torch.Tensor]:
    """Noise and texts: the model's own kind of input."""
    prompts = ["a red circle", "a square", "", "blue", "a circle above a square"][:batch]
    with torch.no_grad():
        text = pipe.encode_prompt(prompts, "cpu", 1, False)[0]
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 4, height, width, generator=generator)
    return {"sample": sample, "encoder_hidden_states": text}


def predicted(pipe: Any, given: Mapping[str, torch.Tensor], timestep: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipe.unet(timestep=timestep, **given).sample


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Error power over signal power."""
    return float((found - expected).square().sum() / expected.square().sum())


@pytest.mark.parametrize("method", METHODS)
def test_other_batches(
    pipe: StableDiffusionPipeline, small: Mapping[str, Any], method: str
) -> None:
    """A picture does not depend on what is beside it.

    Layer by layer: a sum in another order may turn one code over, and that goes on growing.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, _layer: object, inputs: torch.Tensor) -> None:
        seen[name] = inputs.clone()

    unet = small[method].unet
    layers = {n: layer for n, layer in unet.named_modules() if isinstance(layer, QuantizedLayer)}
    with watching(unet, layers, keep):
        predicted(small[method], arguments(pipe, 5), 700)
    for name, layer in layers.items():
        rows = len(seen[name]) // 5 if len(seen[name]) % 5 == 0 else 0
        with torch.no_grad():
            together, alone = layer.forward(seen[name]), layer.forward(seen[name][-rows:])
        assert distance(together[-rows:], alone) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(12, 12), (6, 10), (16, 16)])
def test_other_resolutions(
    pipe: StableDiffusionPipeline, small: Mapping[str, Any], method: str, size: tuple[int, int]
) -> None:
    own, other = arguments(pipe, 2), arguments(pipe, 2, *size)
    found = predicted(small[method], other, 700)
    assert found.shape == (2, 4, *size)
    before = distance(predicted(small[method], own, 700), predicted(pipe, own, 700))
    after = distance(found, predicted(pipe, other, 700))
    assert before < 0.02
    assert after < max(4 * before, 0.005)


@pytest.mark.parametrize("method", METHODS)
def test_other_noise_levels(
    pipe: StableDiffusionPipeline, small: Mapping[str, Any], method: str
) -> None:
    """Between the calibrated ones, beyond them, fractions, and different ones in a batch."""
    given = arguments(pipe, 2)
    for timestep in (0, 999, 333.25, torch.tensor(700), torch.tensor([700.0, 20.0])):
        exact = predicted(pipe, given, timestep)
        assert distance(predicted(small[method], given, timestep), exact) < 0.03


@pytest.mark.parametrize(
    "scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, PNDMScheduler]
)
def test_other_schedulers_and_numbers_of_steps(
    pipe: StableDiffusionPipeline, small: Mapping[str, Any], scheduler: Any
) -> None:
    settings = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    given = pipe.scheduler
    for steps in (4, 7):
        pipe.scheduler = scheduler.from_config(given.config, **settings)
        small["dgq"].scheduler = scheduler.from_config(given.config, **settings)
        try:
            made = record(pipe, ["a red circle"], steps=steps, guidance=2.0)
            drawn = record(small["dgq"], ["a red circle"], steps=steps, guidance=2.0)
        finally:
            pipe.scheduler, small["dgq"].scheduler = given, copy.deepcopy(given)
        assert bool(torch.isfinite(drawn.latents).all())
        # The first input is noise, as in calibration; later ones depend on the sampler, because
        # this model is not trained and its latents grow.
        with torch.no_grad():
            found = replay(small["dgq"].unet, made.calls[0])
        assert distance(found, made.calls[0].output) < 0.02


def test_a_schedule_that_calls_twice_at_a_level(pipe: StableDiffusionPipeline) -> None:
    """PNDM: as many ranges as levels, not as calls."""
    given = pipe.scheduler
    pipe.scheduler = PNDMScheduler.from_config(given.config, skip_prk_steps=True)
    try:
        made = record(pipe, ["a circle"], steps=4, guidance=2.0)
    finally:
        pipe.scheduler = given
    times = [call.timestep for call in made.calls]
    assert len(times) == 5
    found = collect_ranges(pipe.unet, [FIRST], made.calls)[FIRST]
    assert found.timesteps.tolist() == sorted(set(times), reverse=True)
    assert len(found.timesteps) == 4


@pytest.mark.parametrize("method", METHODS)
def test_empty_and_endless_prompts(small: Mapping[str, Any], method: str) -> None:
    request = {"seed": 3, "steps": 1, "guidance": 2.0}
    empty = generate(small[method], prompt="", **request)
    assert bool(torch.isfinite(empty.latents).all())
    cut = generate(small[method], prompt="red circle " * 150, **request)
    assert "end was not read" in cut.notice
    assert bool(torch.isfinite(cut.latents).all())
    with pytest.raises(UserError, match="10000 characters are too many") as caught:
        generate(small[method], prompt="x" * 10_000, **request)
    assert caught.value.where == "prompt"
    # Past our own check the tokenizer cuts it, so it is the prompt of its first tokens.
    drawn = [
        small[method](
            prompt,
            num_inference_steps=1,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        ).images
        for prompt in ("red " * 2500, "red " * 20)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_names_the_layer(
    small: Mapping[str, Any], method: str, value: float
) -> None:
    unet = small[method].unet
    bias = unet.conv_in.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[3] = value
    try:
        with pytest.raises(UserError, match="NaN or infinite") as caught:
            predicted(small[method], arguments(small[method], 1), 400)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert caught.value.where in ("down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.conv2")
    assert bool(torch.isfinite(predicted(small[method], arguments(small[method], 1), 400)).all())


def test_what_overflows_in_calibration_is_named(pipe: StableDiffusionPipeline) -> None:
    """The first layer whose input is bad, in the order in which they run."""
    calls = record(pipe, ["a circle"], steps=1, guidance=2.0).calls
    layer = pipe.unet.get_submodule("mid_block.resnets.0.conv1")
    names = [
        "time_embedding.linear_1",
        "mid_block.resnets.0.conv1",
        "mid_block.resnets.0.conv2",
        "mid_block.resnets.1.conv1",
    ]
    handle = layer.register_forward_hook(lambda _m, _x, output: output * float("inf"))
    try:
        with pytest.raises(UserError, match="NaN or infinite on the calibration") as caught:
            collect_ranges(pipe.unet, names, calls)
    finally:
        handle.remove()
    assert caught.value.where == "mid_block.resnets.0.conv2"
