"""Layers that learn: the same outputs at the start, exact gradients, codes untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqdq import activations
from vqdq.activations.base import Site
from vqdq.codecs import encode
from vqdq.layers.inputs import LayerInput, NoiseLevel
from vqdq.layers.matrix import from_matrix, weight_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear, pack
from vqdq.layers.trainable import trainable

ADDITIVE = {"num_codebooks": 2, "codebooks": "layer", "rounds": 0, "beam": 2}


def linear(method: str = "uniform", **params: object) -> QuantizedLinear:
    torch.manual_seed(0)
    dense = nn.Linear(16, 24)
    layer = pack(dense, encode(dense.weight, method, **params))
    assert isinstance(layer, QuantizedLinear)
    return layer


def convolution(method: str = "uniform", **params: object) -> QuantizedConv2d:
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    matrix, taps = weight_matrix(dense)
    layer = pack(dense, encode(matrix, method, taps=taps, **params))
    assert isinstance(layer, QuantizedConv2d)
    return layer


def inputs(layer: nn.Module) -> torch.Tensor:
    shape = (3, 16) if isinstance(layer, nn.Linear) else (3, 8, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


LAYERS = [linear, convolution]


@pytest.mark.parametrize("make", LAYERS)
def test_it_starts_as_the_layer_it_copies(make: type[nn.Module]) -> None:
    layer = make()
    twin = trainable(layer, torch.float32)
    x = inputs(layer)
    torch.testing.assert_close(twin(x), layer(x))
    low = trainable(layer, torch.bfloat16)
    assert low.weight.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = low(x)
        assert float((rough - layer(x)).norm() / layer(x).norm()) < 0.01


@pytest.mark.parametrize("make", LAYERS)
def test_the_learnt_rows_are_the_old_ones_times_their_factor(make: type[nn.Module]) -> None:
    layer = make()
    twin = trainable(layer, torch.float32)
    assert twin.change is not None
    steps = torch.linspace(-0.3, 0.3, len(twin.change))
    twin.change.data.copy_(steps)
    learnt, before = twin.learnt(), layer.packed
    expected = before.decode() * (1 + steps)[:, None]
    torch.testing.assert_close(learnt.decode(), expected, rtol=1e-3, atol=1e-5)
    assert learnt.storage == before.storage
    assert torch.equal(learnt.tensors["codes"], before.tensors["codes"])
    x = inputs(layer)
    stored = pack(_dense(layer), learnt)
    torch.testing.assert_close(twin(x), stored(x), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("make", LAYERS)
def test_gradients_are_those_of_the_whole_weight(make: type[nn.Module]) -> None:
    layer = make()
    twin = trainable(layer, torch.float32)
    x = inputs(layer).requires_grad_(True)
    output = twin(x)
    push = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    change, bias, by_input = torch.autograd.grad((output * push).sum(), [twin.change, twin.bias, x])
    dense = _dense(layer)
    dense.weight = nn.Parameter(from_matrix(layer.packed.decode(), layer))
    again = x.detach().clone().requires_grad_(True)
    (dense(again) * push).sum().backward()
    assert dense.weight.grad is not None
    # w = (1 + change) w0, so d/dchange = <dW, w0> by row
    expected = (dense.weight.grad * dense.weight).flatten(1).sum(1)
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, dense.bias.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_input, again.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", LAYERS)
def test_codebooks_learn_where_a_layer_has_its_own(make: type[nn.Module]) -> None:
    layer = make("additive", **ADDITIVE)  # type: ignore[call-arg]
    twin = trainable(layer, torch.float32)
    assert twin.codebooks is not None
    x = inputs(layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=1e-4, atol=1e-4)
    target = torch.randn(twin(x).shape, generator=torch.Generator().manual_seed(3))
    # Decoding is linear in the codebooks, so the slope along any direction is exact.
    gradient = torch.autograd.grad((twin(x) * target).sum(), twin.codebooks)[0]
    whole_steps = torch.randint(-8, 9, gradient.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        before = (twin(x) * target).sum()
        twin.codebooks += whole_steps / 128
        rise = (twin(x) * target).sum() - before
    expected = (gradient * whole_steps / 128).sum()
    torch.testing.assert_close(rise, expected, rtol=1e-3, atol=1e-2)
    learnt = twin.learnt()
    assert learnt.storage == layer.packed.storage
    assert torch.equal(learnt.tensors["codes"], layer.packed.tensors["codes"])
    assert not torch.equal(learnt.tensors["codebooks"], layer.packed.tensors["codebooks"])
    torch.testing.assert_close(pack(_dense(layer), learnt)(x), twin(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", LAYERS)
def test_smoothed_weights_learn_through_their_factors(make: type[nn.Module]) -> None:
    """W diag(s) is stored: what computes is W, and codebooks learn by the slope that W has."""
    layer = make("additive", **ADDITIVE)  # type: ignore[call-arg]
    shape = layer.packed.shape
    site = Site(channels=shape.channels, taps=shape.taps)
    factors = torch.logspace(-0.5, 0.5, shape.channels).half()
    given = LayerInput(activations.create("smooth"), site, NoiseLevel(), where="x")
    layer.quantize_input_(given, {"input_smooth": factors})
    given.enabled = False
    twin = trainable(layer, torch.float32)
    x = inputs(layer)
    whole = layer.packed.decode() / factors.float().repeat(shape.taps)
    plain = _dense(layer)
    plain.weight = nn.Parameter(from_matrix(whole, layer))
    torch.testing.assert_close(twin(x), plain(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)
    target = torch.randn(twin(x).shape, generator=torch.Generator().manual_seed(3))
    gradient = torch.autograd.grad((twin(x) * target).sum(), twin.codebooks)[0]
    whole_steps = torch.randint(-8, 9, gradient.shape, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        before = (twin(x) * target).sum()
        twin.codebooks += whole_steps / 128
        rise = (twin(x) * target).sum() - before
    expected = (gradient * whole_steps / 128).sum()
    torch.testing.assert_close(rise, expected, rtol=1e-3, atol=1e-2)


def test_codebooks_stay_when_told_and_where_they_are_universal() -> None:
    assert (
        trainable(linear("additive", **ADDITIVE), torch.float32, learn_codebooks=False).codebooks
        is None
    )
    shared = linear("additive", **(ADDITIVE | {"codebooks": "universal"}))
    assert trainable(shared, torch.float32).codebooks is None


def test_nothing_is_shared_with_the_layer_it_copies() -> None:
    layer = linear()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    twin = trainable(layer, torch.float32)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert sorted(key for key, p in twin.named_parameters() if p.requires_grad) == [
        "bias",
        "change",
    ]


def _dense(layer: nn.Module) -> nn.Linear | nn.Conv2d:
    """Returns a dense layer of the same settings and the same bias."""
    if isinstance(layer, nn.Conv2d):
        made: nn.Linear | nn.Conv2d = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    else:
        made = nn.Linear(16, 24)
    made.bias = nn.Parameter(layer.bias.detach().clone())  # type: ignore[union-attr]
    return made
