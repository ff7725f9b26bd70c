"""A convolution is a matrix times its patches, exactly, and its weight survives the trip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.matrix import from_matrix, input_matrix, kind_of, to_matrix, weight_matrix

convolutions = st.builds(
    lambda groups, c, o, k, stride, pad, dilation, mode: nn.Conv2d(
        groups * c,
        groups * o,
        k,
        stride=stride,
        padding=pad,
        dilation=dilation,
        groups=groups,
        padding_mode=mode if pad else "zeros",
    ),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(1, 2),
    st.sampled_from(["zeros", "circular", "replicate", "reflect"]),
)


@settings(max_examples=60)
@given(convolutions)
def test_convolution_weight_round_trips(conv: nn.Conv2d) -> None:
    matrix, taps = weight_matrix(conv)
    kh, kw = conv.kernel_size
    channels = conv.in_channels // conv.groups
    assert taps == kh * kw
    assert matrix.shape == (conv.out_channels, taps * channels)
    assert torch.equal(from_matrix(matrix, conv), conv.weight)
    column = (taps - 1) * channels
    assert torch.equal(matrix[:, column], conv.weight[:, 0, kh - 1, kw - 1])


@settings(max_examples=40)
@given(convolutions, st.integers(0, 2**31))
def test_convolution_is_matrix_times_patches(conv: nn.Conv2d, seed: int) -> None:
    if conv.groups > 1:
        with pytest.raises(UserError, match="groups"):
            input_matrix(conv, torch.zeros(1, conv.in_channels, 8, 8))
        return
    conv = conv.double()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, conv.in_channels, 8, 7, generator=generator, dtype=torch.float64)
    y = conv(x)
    rows = input_matrix(conv, x) @ weight_matrix(conv)[0].T + conv.bias
    ours = rows.reshape(2, *y.shape[2:], conv.out_channels).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, y, rtol=0, atol=1e-12)


def test_output_energy_is_the_trace_of_the_hessian() -> None:
    """‖XWᵀ‖² = n · tr(W H Wᵀ) with H = XᵀX / n, for a strided convolution."""
    conv = nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False).double()
    x = torch.randn(3, 6, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = input_matrix(conv, x)
    hessian = rows.T @ rows / len(rows)
    weight = weight_matrix(conv)[0]
    energy = len(rows) * torch.trace(weight @ hessian @ weight.T)
    torch.testing.assert_close(conv(x).square().sum(), energy, rtol=1e-12, atol=0)


def test_linear_is_its_own_matrix() -> None:
    layer = nn.Linear(7, 3)
    matrix, taps = weight_matrix(layer)
    assert taps == 1
    assert matrix.data_ptr() == layer.weight.data_ptr()
    assert to_matrix(layer.weight) is layer.weight
    assert input_matrix(layer, torch.zeros(2, 4, 7)).shape == (8, 7)


def test_only_plain_layers_count() -> None:
    class Gated(nn.Linear):
        pass

    assert kind_of(nn.Linear(2, 2)) == "linear"
    assert kind_of(nn.Conv2d(2, 2, 1)) == "conv2d"
    assert kind_of(Gated(2, 2)) is None
    assert kind_of(nn.GroupNorm(1, 2)) is None
    with pytest.raises(UserError, match="GroupNorm"):
        weight_matrix(nn.GroupNorm(1, 2))


@pytest.mark.parametrize("kernel", [1, (1, 3), 3])
def test_a_weight_comes_back_with_the_strides_of_a_new_one(kernel: int | tuple[int, int]) -> None:
    conv = nn.Conv2d(6, 4, kernel)
    matrix, _ = weight_matrix(conv)
    found = from_matrix(matrix.clone(), conv)
    assert torch.equal(found, conv.weight)
    assert found.stride() == conv.weight.stride()  # others are taken for channels last
