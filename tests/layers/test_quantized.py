"""Packed layers compute with the decoded weight, bit for bit; no cast reaches their tensors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Generator

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.layers.toy import Toy, registered
from vqdq.codecs import encode
from vqdq.codecs.base import Packed
from vqdq.errors import UserError
from vqdq.layers.matrix import from_matrix, weight_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLinear, Residency, pack, unpack


@pytest.fixture(autouse=True)
def _toy() -> Generator[None, None, None]:
    with registered():
        yield


RESIDENCIES: tuple[Residency, ...] = ("resident", "streaming")


def packed_of(layer: nn.Module) -> Packed:
    matrix, taps = weight_matrix(layer)
    return encode(matrix, Toy.name, taps=taps, seed=3)


def conv() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, padding_mode="circular")


@pytest.mark.parametrize("residency", RESIDENCIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_linear_equals_decode_then_linear(residency: Residency, dtype: torch.dtype) -> None:
    dense = nn.Linear(10, 6)
    layer = pack(dense, packed_of(dense), residency=residency).to(dtype)
    x = torch.randn(4, 10, dtype=dtype)
    weight = packed_of(dense).decode().to(dtype)
    expected = functional.linear(x, weight, dense.bias.to(dtype))
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)  # from the kept weight, or decoded again


@pytest.mark.parametrize("residency", RESIDENCIES)
def test_convolution_equals_decode_then_conv(residency: Residency) -> None:
    dense = conv()
    layer = pack(dense, packed_of(dense), residency=residency)
    x = torch.randn(2, 8, 9, 9)
    twin = copy.deepcopy(dense)
    twin.weight.data = from_matrix(packed_of(dense).decode(), dense)
    assert torch.equal(layer(x), twin(x))
    assert layer.extra_repr() == dense.extra_repr()


def test_tensors_are_plain_buffers_with_their_names() -> None:
    model = nn.Sequential(nn.Linear(10, 6))
    model[0] = pack(model[0], packed_of(model[0]))
    assert set(model.state_dict()) == {"0.bias", "0.codes", "0.scales", "0.table"}
    assert [name for name, _ in model.named_parameters()] == ["0.bias"]
    assert all(type(buffer) is torch.Tensor for buffer in model.buffers())


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float"])
def test_no_cast_touches_what_is_stored(cast: str) -> None:
    dense = nn.Linear(10, 6)
    stored = packed_of(dense)
    layer = getattr(nn.Sequential(pack(dense, stored)), cast)()[0]
    for name, tensor in stored.tensors.items():
        assert layer.packed.tensors[name].dtype == tensor.dtype
        assert torch.equal(layer.packed.tensors[name], tensor)
    assert layer.weight.dtype == layer.bias.dtype
    assert torch.equal(layer.to(torch.float32).weight, stored.decode())


def test_type_and_device_moves_keep_dtypes() -> None:
    dense = nn.Linear(10, 6)
    layer = pack(dense, packed_of(dense))
    layer.type(torch.float64)
    assert layer.get_buffer("codes").dtype == torch.uint8
    assert layer.weight.dtype == torch.float64
    ghost = copy.deepcopy(layer).to("meta")
    assert ghost.get_buffer("table").dtype == torch.float16
    assert ghost.get_buffer("table").is_meta
    assert ghost.weight.shape == (6, 10)
    assert ghost.weight.is_meta


def test_copies_and_pickles_compute_the_same() -> None:
    dense = conv()
    layer = pack(dense, packed_of(dense))
    x = torch.randn(1, 8, 5, 5)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_residency_keeps_one_decoded_weight_or_none() -> None:
    dense = nn.Linear(10, 6)
    x = torch.randn(1, 10)
    resident, streaming = (pack(dense, packed_of(dense), residency=r) for r in RESIDENCIES)
    first, again = resident.dense(torch.float32), resident.dense(torch.float32)
    assert first is again
    assert streaming.dense(torch.float32) is not streaming.dense(torch.float32)
    resident.release()
    assert resident.dense(torch.float32) is not first
    assert torch.equal(resident(x), streaming(x))


def test_new_state_reaches_the_forward() -> None:
    """A kept weight must not outlive the tensors it was decoded from."""
    one, two = nn.Linear(10, 6), nn.Linear(10, 6)
    layer, other = pack(one, packed_of(one)), pack(two, packed_of(two))
    x = torch.randn(1, 10)
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


def test_a_weight_kept_in_inference_mode_serves_gradients() -> None:
    dense = nn.Linear(10, 6)
    layer = pack(dense, packed_of(dense))
    with torch.inference_mode():
        layer(torch.randn(1, 10))
    x = torch.randn(1, 10, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], packed_of(dense).decode().sum(0))


def test_merging_an_adapter_raises() -> None:
    """The statements with which adapter libraries merge; without the guard they change nothing."""
    dense = nn.Linear(10, 6)
    layer = pack(dense, packed_of(dense))
    before = layer.weight.clone()
    delta = torch.ones(6, 10)
    with pytest.raises(UserError, match="merged"):
        layer.weight.data += delta
    with pytest.raises(UserError, match="merged"):
        layer.weight.data = delta
    with pytest.raises(UserError, match="merged"):
        layer.weight.add_(delta)
    with pytest.raises(UserError, match="merged"):
        layer.weight[0] = 1
    with pytest.raises(UserError, match="merged"):
        nn.init.zeros_(layer.weight)
    assert torch.equal(layer.weight, before)
    assert type(layer.weight + delta) is torch.Tensor
    assert torch.equal(delta.clone().add_(layer.weight), delta + before)


def test_constructors_are_those_of_the_dense_layers() -> None:
    """Adapters build their own layers with type(base)(...): these must be ordinary dense layers."""
    dense = conv()
    quantized = pack(dense, packed_of(dense))
    adapter = type(quantized)(8, 4, 3, 2, 1, bias=False)
    assert isinstance(adapter, nn.Conv2d)
    assert adapter.weight.requires_grad
    assert adapter(torch.randn(1, 8, 6, 6)).shape == (1, 4, 3, 3)
    twin = QuantizedLinear(3, 2).to(torch.float64)
    assert twin.weight.dtype == torch.float64
    assert isinstance(twin.weight, nn.Parameter)
    assert set(QuantizedConv2d(1, 1, 1).state_dict()) == {"weight", "bias"}


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"6 x 10 .* needs 7 x 10"):
        pack(nn.Linear(10, 7), packed_of(nn.Linear(10, 6)))
    with pytest.raises(UserError, match="no weight"):
        pack(nn.LayerNorm(10), packed_of(nn.Linear(10, 6)))


def test_unpack_gives_the_dense_layer_back() -> None:
    dense = conv()
    layer = pack(dense, packed_of(dense))
    plain = unpack(layer)
    assert type(plain) is nn.Conv2d
    assert torch.equal(plain.weight, from_matrix(packed_of(dense).decode(), dense))
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(plain(x), layer(x))
    assert plain.extra_repr() == dense.extra_repr()
