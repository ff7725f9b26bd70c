"""Moments from sampled rows: exact when everything is sampled, unbiased when it is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vqdq.capture.moments import (
    BUFFER_ROWS,
    Moments,
    halves_index,
    input_rows,
    row_count,
    sample_index,
)
from vqdq.errors import UserError
from vqdq.layers.matrix import input_matrix, weight_matrix

convolutions = st.builds(
    lambda c, k, stride, pad, dilation, mode: nn.Conv2d(
        c,
        3,
        k,
        stride=stride,
        padding=pad,
        dilation=dilation,
        padding_mode="zeros" if pad in (0, "same") else mode,
    ),
    st.integers(1, 4),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.just(1) | st.integers(1, 2),
    st.sampled_from([0, 1]),
    st.integers(1, 2),
    st.sampled_from(["zeros", "circular", "replicate", "reflect"]),
)


@settings(max_examples=60)
@given(convolutions, st.integers(0, 2**31))
def test_rows_are_those_of_the_input_matrix(conv: nn.Conv2d, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, conv.in_channels, 8, 7, generator=generator)
    whole = input_matrix(conv, x)
    assert row_count(conv, x) == len(whole)
    index = torch.randint(len(whole), (17,), generator=generator)
    assert torch.equal(input_rows(conv, x, index), whole[index])


def test_rows_of_same_padding_and_of_tokens() -> None:
    conv = nn.Conv2d(2, 3, (3, 2), padding="same")
    x = torch.randn(2, 2, 5, 6)
    index = torch.arange(row_count(conv, x))
    assert torch.equal(input_rows(conv, x, index), input_matrix(conv, x))
    tokens = torch.randn(2, 3, 4)
    picked = input_rows(nn.Linear(4, 5), tokens, torch.tensor([0, 5]))
    assert torch.equal(picked, torch.stack([tokens[0, 0], tokens[1, 2]]))


def test_grouped_convolution_has_no_rows() -> None:
    with pytest.raises(UserError, match="2 groups"):
        input_rows(nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 5, 5), torch.tensor([0]))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5, bias=False),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
    ],
)
def test_output_energy_is_the_trace_of_the_hessian(layer: nn.Module) -> None:
    """‖XWᵀ‖² = n · tr(W H Wᵀ) when every row is sampled, computed by the layer itself."""
    x = torch.randn(40, 6, 9, 7, generator=torch.Generator().manual_seed(0)) + 0.3
    x = x.permute(0, 2, 3, 1) if isinstance(layer, nn.Linear) else x
    count = row_count(layer, x)
    moments = Moments(weight_matrix(layer)[0].shape[1])
    index = halves_index(count, count, 2, torch.Generator().manual_seed(1))
    for part in index.split(333):  # pieces that fit no buffer
        moments.add(input_rows(layer, x, part))
    weight = weight_matrix(layer)[0]
    energy = count * torch.trace(weight @ moments.hessian() @ weight.T)
    output = layer(x).detach()
    torch.testing.assert_close(output.square().sum(), energy, rtol=1e-5, atol=0)
    mean = output.flatten(0, -2).mean(dim=0) if x.shape[-1] == 6 else output.mean(dim=(0, 2, 3))
    torch.testing.assert_close(weight @ moments.mean(), mean, rtol=0, atol=1e-5)
    assert moments.rows == count


@pytest.mark.parametrize("columns", [1, 5, 384, 900])
def test_moments_are_weighted_means(columns: int) -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(BUFFER_ROWS + 88, columns, generator=generator) + 0.5
    second = torch.randn(70, columns, generator=generator)
    moments = Moments(columns)
    moments.add(first, 0.25)
    moments.add(second, 3.0)
    total = 0.25 * len(first) + 3.0 * len(second)
    exact = 0.25 * first.double().T @ first.double() + 3 * second.double().T @ second.double()
    hessian = moments.hessian()
    assert torch.equal(hessian, hessian.T)
    torch.testing.assert_close(hessian.double(), exact / total, rtol=1e-4, atol=1e-5)
    mean = (0.25 * first.double().sum(0) + 3 * second.double().sum(0)) / total
    torch.testing.assert_close(moments.mean().double(), mean, rtol=0, atol=1e-6)
    size = (0.25 * first.double().abs().sum(0) + 3 * second.double().abs().sum(0)) / total
    torch.testing.assert_close(moments.mean_magnitude().double(), size, rtol=0, atol=1e-6)


def test_pieces_do_not_change_the_sums() -> None:
    rows = torch.randn(3 * BUFFER_ROWS // 2, 40, generator=torch.Generator().manual_seed(3))
    whole, pieces = Moments(40), Moments(40)
    whole.add(rows)
    for part in rows.split(37):
        pieces.add(part)
    assert torch.equal(whole.hessian(), pieces.hessian())


def test_denormal_products_are_left_out() -> None:
    moments = Moments(2)
    moments.add(torch.tensor([[1e-30, 1e-17]]))
    assert moments.hessian().tolist() == [[0.0, 0.0], [0.0, pytest.approx(1e-34)]]
    assert float(moments.mean()[0]) == pytest.approx(1e-30)


def test_nothing_seen_is_zero() -> None:
    moments = Moments(3)
    assert torch.equal(moments.hessian(), torch.zeros(3, 3))
    assert torch.equal(moments.mean(), torch.zeros(3))


@settings(max_examples=100)
@given(st.integers(1, 500), st.integers(1, 600), st.integers(0, 2**31))
def test_sampled_rows_are_different_and_spread(total: int, count: int, seed: int) -> None:
    index = sample_index(total, count, torch.Generator().manual_seed(seed))
    count = min(count, total)
    assert len(index) == len(index.unique()) == count
    assert index.min() >= 0
    assert index.max() < total
    ordered = index.sort().values
    if count > 1:  # two neighbours lie in neighbouring stretches
        assert int(ordered.diff().max()) <= 2 * -(-total // count)


def test_sampling_is_unbiased() -> None:
    """Every row comes in equally often: 7 of 24, over 5,000 draws, within 5 standard errors."""
    generator = torch.Generator().manual_seed(4)
    draws, total, count = 5_000, 24, 7
    hits = torch.zeros(total)
    for _ in range(draws):
        hits[sample_index(total, count, generator)] += 1
    share = count / total
    error = (share * (1 - share) / draws) ** 0.5
    assert float((hits / draws - share).abs().max()) < 5 * error


def test_halves_are_sampled_equally() -> None:
    index = halves_index(200, 31, 2, torch.Generator().manual_seed(5))
    assert len(index) == 32
    assert int((index < 100).sum()) == 16
    alone = halves_index(200, 31, 1, torch.Generator().manual_seed(5))
    assert len(alone) == 31
