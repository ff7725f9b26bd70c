"""A layer with a quantized input: refuses what is no number, follows the noise, can be copied."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.layers.test_execution import no_step, quantized
from vqdq import activations
from vqdq.errors import UserError
from vqdq.layers import integer
from vqdq.layers.execution import KEPT_FORMS
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
@pytest.mark.parametrize("name", ["dynamic", "fp8", "minmax"])
def test_what_is_no_number_names_the_layer(
    bad: float, simulated: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if simulated:
        monkeypatch.setattr("vqdq.layers.execution.step", no_step)
    for layer, shape in ((nn.Linear(8, 5), (2, 4, 8)), (nn.Conv2d(8, 5, 3), (2, 8, 4, 4))):
        own = name != "minmax"
        packed = quantized(layer, activations.create(name)) if own else calibrated(layer)
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


@pytest.mark.parametrize("name", ["dynamic", "minmax"])
def test_gradients_pass_as_if_nothing_were_rounded(name: str) -> None:
    for layer, shape in (
        (nn.Linear(8, 5), (2, 4, 8)),
        (nn.Conv2d(8, 5, 3, padding=1), (2, 8, 4, 4)),
    ):
        dynamic = name == "dynamic"
        packed = quantized(layer, activations.create("dynamic")) if dynamic else calibrated(layer)
        inputs = torch.randn(shape, requires_grad=True)
        output = packed(inputs)
        with torch.no_grad():
            assert torch.equal(output, packed(inputs))
        sources = (inputs, packed.get_parameter("bias"))
        output.square().sum().backward()
        plain = packed.unrounded(inputs)
        wanted = torch.autograd.grad(plain, sources, 2 * output.detach())
        for source, gradient in zip(sources, wanted, strict=True):
            assert source.grad is not None
            torch.testing.assert_close(source.grad, gradient)


def test_inputs_without_a_batch_or_without_anything_have_the_shape_of_a_dense_layer() -> None:
    dense = {
        "linear": (nn.Linear(8, 5), [(8,), (0, 8), (2, 0, 8)]),
        "convolution": (nn.Conv2d(8, 5, 3, padding=1), [(8, 4, 4), (0, 8, 4, 4)]),
    }
    with torch.no_grad():
        for layer, shapes in dense.values():
            for packed in (quantized(layer, activations.create("dynamic")), calibrated(layer)):
                for shape in shapes:
                    inputs = torch.ones(shape)
                    assert packed(inputs).shape == layer(inputs).shape
                    if inputs.numel():
                        assert torch.equal(packed(inputs), packed(inputs[None])[0])


def test_a_compiled_model_gives_the_same() -> None:
    model = nn.Sequential(quantized(nn.Linear(8, 8), activations.create("dynamic")), nn.SiLU())
    rows = torch.randn(2, 4, 8)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        assert torch.equal(compiled(rows), model(rows))


def test_groups_that_change_leave_no_more_weights_than_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vqdq.layers.integer_groups.MOST_STACKED", 0)
    made: list[weakref.ref[torch.Tensor]] = []
    split = integer.group_parts

    def counted(*args: Any) -> integer.Parts:
        part = split(*args)
        made.append(weakref.ref(part.sums))
        return part

    monkeypatch.setattr("vqdq.layers.integer.group_parts", counted)
    levels, codes = 5, [0x10, 0x01, 0x11, 0x00]
    groups = [[first, second, 0x10, 0x10] for first in codes for second in codes][3 : 3 + levels]
    stored = {
        "input_timesteps": torch.linspace(900, 100, levels),
        "input_low": torch.tensor([-1.0, -3.0]).repeat(levels, 1),
        "input_high": torch.tensor([1.0, 3.0]).repeat(levels, 1),
        "input_axis": torch.zeros(levels, dtype=torch.uint8),
        "input_groups": torch.tensor(groups, dtype=torch.uint8),
    }
    quantizer = activations.create("dgq", groups=2, levels=levels, regroup=True)
    packed = quantized(nn.Linear(8, 5), quantizer, stored=stored)
    assert packed.input is not None
    for timestep in (*stored["input_timesteps"].tolist(), 900.0):
        packed.input.level.timestep = timestep
        with torch.no_grad():
            packed(torch.randn(1, 2, 8))
    gc.collect()
    assert len(made) == levels + 1
    assert sum(part() is not None for part in made) == KEPT_FORMS
