"""Layers in 8-bit floats: the sums of their definition on a processor, and on a card with units."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.activations.made_floats import by_row
from tests.layers.test_execution import ROUNDING, quantized
from vqdq import activations
from vqdq.errors import UserError
from vqdq.kernels import backend
from vqdq.kernels.triton import support
from vqdq.layers import card, execution, residency
from vqdq.layers.matrix import from_matrix, to_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OFF = 2**-10 if DEVICE == "cuda" else ROUNDING  # Hopper's units keep about 14 bits of a sum
FLOATS = activations.create("fp8")

LINEAR = [
    (nn.Linear(48, 24), (2, 6, 48)),
    (nn.Linear(33, 10, bias=False), (3, 33)),
    (nn.Linear(64, 48), (5, 64)),
]
CONVOLUTIONS = [
    (nn.Conv2d(16, 24, 1), (2, 16, 4, 5)),
    (nn.Conv2d(16, 24, 3, padding=1, bias=False), (2, 16, 4, 5)),
    (nn.Conv2d(9, 12, 3, stride=2, padding=(2, 1)), (2, 9, 6, 7)),
    (nn.Conv2d(16, 8, (3, 1), dilation=2), (1, 16, 7, 4)),
    (nn.Conv2d(64, 32, 3, padding=1), (1, 64, 3, 3)),
]
ELSEWHERE = [
    (nn.Conv2d(16, 16, 3, padding=1, groups=2), (1, 16, 4, 5), "grouped"),
    (nn.Conv2d(16, 8, 3, padding=1, padding_mode="circular"), (1, 16, 4, 5), "circular"),
]
Packed = QuantizedLinear | QuantizedConv2d


def defined(layer: Packed, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the output and Σ |products| in float64, of floats rounded by their definition."""
    is_map = isinstance(layer, nn.Conv2d)
    codes, scale = by_row((inputs.movedim(1, -1) if is_map else inputs).numpy())
    rows = torch.from_numpy(codes * scale.astype(np.float64)[..., None])
    matrix = to_matrix(layer.dense(torch.float32)).numpy()
    levels, columns = by_row(matrix)
    weight = from_matrix(torch.from_numpy(levels * columns.astype(np.float64)[:, None]), layer)
    bias = torch.zeros(len(matrix)) if layer.bias is None else layer.bias.detach()

    def output(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d):
            return nn.Conv2d._conv_forward(layer, x.movedim(-1, 1), w, b)  # pyright: ignore[reportPrivateUsage]
        return functional.linear(x, w, b)

    whole = output(rows, weight, bias.double())
    return whole, output(rows.abs(), weight.abs(), bias.double().abs())


def kind(layer: Packed) -> execution.Execution:
    assert layer.input is not None
    return execution.how(layer, layer.input)


@pytest.mark.parametrize(("dense", "shape"), LINEAR + CONVOLUTIONS)
def test_the_output_is_that_of_the_definition(
    dense: nn.Linear | nn.Conv2d, shape: tuple[int, ...]
) -> None:
    """Simulated in float32 on a processor, in 8-bit floats where there are units: one function.

    The weight of a trellis is rounded to floats too, although it decodes to int8.
    """
    layer = quantized(copy.deepcopy(dense), FLOATS, "trellis" if shape[1] == 64 else "uniform", 3)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    wanted, size = defined(layer, inputs)
    told = kind(layer)
    assert (told.kind, told.exact) == ("simulated", False)
    assert "from Ada on" in told.reason
    with torch.no_grad():
        found = layer(inputs)
        there = copy.deepcopy(layer).to(DEVICE)
        with backend.interpreted():
            told = kind(there)
            on_card = there(inputs.to(DEVICE)).cpu()
            held = there.held_bytes
    assert ((found.double() - wanted).abs() <= ROUNDING * size).all()
    assert (told.kind, told.reason) == ("fp8", "")
    assert on_card.shape == found.shape
    assert ((on_card.double() - wanted).abs() <= OFF * size).all()
    # what is kept: float32, or a byte a weight, a scale an output and two edges
    weight = layer.packed.shape
    assert layer.held_bytes == 4 * weight.count
    assert held == card.float_bytes(weight.out_features, weight.in_features)
    assert held == weight.count + 4 * weight.out_features + 8


@pytest.mark.parametrize(("dense", "shape", "words"), ELSEWHERE)
def test_what_no_kernel_of_a_card_computes_is_simulated_and_says_why(
    dense: nn.Conv2d, shape: tuple[int, ...], words: str
) -> None:
    layer = quantized(copy.deepcopy(dense), FLOATS)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    wanted, size = defined(layer, inputs)
    with torch.no_grad():
        found = layer(inputs)
        with backend.interpreted():
            told = kind(layer)
            again = layer.to(DEVICE)(inputs.to(DEVICE)).cpu()
    assert told.kind == "simulated"
    assert words in told.reason
    assert ((found.double() - wanted).abs() <= ROUNDING * size).all()
    assert ((again.double() - wanted).abs() <= ROUNDING * size).all()


def test_a_card_without_units_simulates_and_integers_are_another_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = quantized(nn.Linear(16, 8), FLOATS)
    model = nn.Sequential(layer)
    with pytest.raises(UserError, match="not on a processor"):
        residency.set_mode_(model, "integer")
    with backend.interpreted():
        with pytest.raises(UserError, match="rounds inputs to 8-bit floats") as caught:
            residency.set_mode_(model, "integer")
        assert "resident" in (caught.value.remedy or "")
        ampere = support.Card(name="a card", capability=(8, 6))
        monkeypatch.setattr(backend, "refusal", lambda op, _: support.refusal(op, ampere))
        told = kind(layer)
    assert (told.kind, told.reason) == ("simulated", "sm_86 has no units for 8-bit floats")
