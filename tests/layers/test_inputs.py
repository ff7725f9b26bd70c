"""A layer with a quantized input: refuses what is no number, follows the noise, can be copied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.layers.test_execution import no_step, quantized
from vqdq import activations
from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear


def calibrated(layer: nn.Linear | nn.Conv2d) -> QuantizedLinear | QuantizedConv2d:
    """Returns a layer with ranges that shrink with the noise."""
    stored = {
        "input_timesteps": torch.tensor([900.0, 100.0]),
        "input_low": torch.tensor([-4.0, -2.0]),
        "input_high": torch.tensor([4.0, 2.0]),
    }
    quantizer = activations.create("minmax", bits=8, levels=2)
    return quantized(layer, quantizer, stored=stored)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("name", ["dynamic", "minmax"])
def test_what_is_no_number_names_the_layer(
    bad: float, simulated: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if simulated:
        monkeypatch.setattr("vqdq.layers.execution.step", no_step)
    for layer, shape in ((nn.Linear(8, 5), (2, 4, 8)), (nn.Conv2d(8, 5, 3), (2, 8, 4, 4))):
        dynamic = name == "dynamic"
        packed = quantized(layer, activations.create("dynamic")) if dynamic else calibrated(layer)
        inputs = torch.zeros(shape)
        with torch.no_grad():
            packed(inputs)
            inputs.view(-1)[21] = bad
            with pytest.raises(UserError, match="NaN or infinite") as raised:
                packed(inputs)
        assert raised.value.where == "the layer"


def test_ranges_follow_the_noise_level() -> None:
    packed = calibrated(nn.Linear(8, 5))
    assert packed.input is not None
    rows = torch.linspace(-5, 5, 16).reshape(1, 2, 8)
    weight = packed.dense(torch.float32)
    for timestep, reach in ((None, 4.0), (900.0, 4.0), (500.0, 3.0), (0.0, 2.0)):
        packed.input.level.timestep = timestep
        step = 2 * reach / 255
        middle = round(reach / step)
        codes = (rows / step).round().add(middle).clamp(0, 255)
        wanted = (codes - middle) * step @ weight.T + packed.get_parameter("bias")
        with torch.no_grad():
            assert torch.allclose(packed(rows), wanted, atol=2 * step)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    """Rounded once, from what float32 gives."""
    generator = torch.Generator().manual_seed(1)
    rows, maps = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 8, 5, 4)
    for layer, inputs in ((nn.Linear(8, 5), rows), (nn.Conv2d(8, 5, 3, padding=1), maps)):
        for packed in (quantized(layer, activations.create("dynamic")), calibrated(layer)):
            with torch.no_grad():
                found = packed(inputs.to(dtype))
                assert found.dtype == dtype
                assert torch.equal(found, packed(inputs.to(dtype).float()).to(dtype))


def test_a_layer_can_be_copied_after_it_ran() -> None:
    packed = calibrated(nn.Conv2d(8, 5, 3, padding=1))
    maps = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        wanted = packed(maps)
        assert torch.equal(copy.deepcopy(packed)(maps), wanted)
        moved = packed.to(torch.bfloat16)
        assert moved.get_buffer("input_low").dtype == torch.float32
