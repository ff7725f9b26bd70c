"""Statistics of tensors: compiled loops against plain torch, and both against the definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdq.kernels import statistics_cpu as compiled
from vqdq.kernels import statistics_reference as plain
from vqdq.kernels.statistics import BINS, SCORE_BINS, SIDE

QUICK = settings(max_examples=25)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def batches(draw: st.DrawFn) -> torch.Tensor:
    """Draws [2 · samples, rows, columns] of many sizes of value, zeros and what is no number."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (2 * draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 70)))
    octaves = torch.randn(shape, generator=generator) * draw(st.sampled_from((1, 6)))
    x = torch.randn(shape, generator=generator) * octaves.exp2()
    x[..., :: draw(st.integers(1, 5))] *= draw(st.sampled_from((0.0, -0.0, 1.0, 1e30)))
    for value in draw(st.lists(st.sampled_from((torch.nan, -torch.nan, torch.inf, -torch.inf)))):
        at = torch.randint(x.numel(), (1,), generator=generator)
        x.view(-1)[at] = value
    return x.transpose(1, 2) if draw(st.booleans()) else x


@QUICK
@given(batches(), st.sampled_from((1, 3, 5)), st.booleans())
def test_blocks_are_those_of_the_definition(
    x: torch.Tensor, stride: int, channels_first: bool
) -> None:
    found = compiled.block_statistics(x, 2, stride, channels_first=channels_first)
    again = plain.block_statistics(x, 2, stride, channels_first=channels_first)
    np.testing.assert_array_equal(found.limits, again.limits)
    np.testing.assert_array_equal(found.counts, again.counts)
    bad = (~torch.isfinite(x)).reshape(2, -1).sum(1).numpy()
    for block in (found, again):
        counted = np.zeros(2, np.int64) if block.nonfinite is None else block.nonfinite
        np.testing.assert_array_equal(counted, bad)
    good = torch.where(torch.isfinite(x), x, 0.0).reshape(2, -1)[:, ::stride].double().numpy()
    powers = np.stack([good**power for power in (1, 2, 3, 4)], axis=1)  # [halves, 4, values]
    for block in (found, again):
        off = abs(block.sums - powers.sum(axis=2))
        assert (off <= 1e-12 * abs(powers).sum(axis=2)).all()
    mended = torch.where(torch.isfinite(x), x, 0.0).unflatten(0, (2, -1))
    rows, columns = (
        (mended.amin((1, 3)), mended.amax((1, 3))),
        (
            mended.amin((1, 2)),
            mended.amax((1, 2)),
        ),
    )
    both = (*rows, *columns) if channels_first else (*columns, *rows)
    np.testing.assert_array_equal(found.limits, torch.cat(both, dim=1).numpy())


@QUICK
@given(batches())
def test_bins_are_the_leading_bits(x: torch.Tensor) -> None:
    values = torch.where(torch.isfinite(x), x, 0.0)[0]
    octaves = 2.0 ** np.arange(-12, 12)
    sizes = np.append((octaves[:, None] * (1 + np.arange(8) / 8)).ravel(), 2.0**12)
    assert len(sizes) == SIDE + 1
    for rows in (values, values.T, values.contiguous(), values.T.contiguous()):
        counts = np.zeros((2, len(rows), BINS), np.int32)
        compiled.add_counts(rows, counts[0])
        plain.add_counts(rows, counts[1])
        np.testing.assert_array_equal(counts[0], counts[1])
        cells = np.searchsorted(sizes, abs(rows.double().numpy()), side="right").clip(max=SIDE)
        signed = SIDE + np.where(rows.numpy() < 0, -cells, cells)
        np.testing.assert_array_equal(counts[0, 0], np.bincount(signed[0], minlength=BINS))


@QUICK
@given(batches(), st.sampled_from((1, 3)), st.integers(0, 9))
def test_sketches_are_signed_sums(x: torch.Tensor, stride: int, sample: int) -> None:
    y = x.flatten(1).clamp(-1e6, 1e6)
    length = len(range(0, y.shape[1], stride))
    signs = torch.randint(0, 2, (length,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    totals, energies = np.zeros((2, 2, 7)), np.zeros((2, 2))
    before = y.clone()
    for index, module in enumerate((compiled, plain)):
        module.add_sketch(y, signs, sample, stride, totals[index], energies[index])
    assert torch.equal(y.nan_to_num(5), before.nan_to_num(5))  # what is watched stays as it is
    taken = y.nan_to_num(0, 0, 0).double().numpy().reshape(2, -1, y.shape[1])[:, :, ::stride]
    expected = np.zeros((2, 7))
    for index in range(taken.shape[1]):
        for place in range(length):
            sign = float(signs[(place - 7919 * (sample + index)) % length])
            expected[:, place % 7] += sign * taken[:, index, place]
    scale = abs(taken).sum(axis=(1, 2)) + 1e-30
    assert (abs(totals - expected).max(axis=2) <= 1e-12 * scale).all()
    np.testing.assert_allclose(energies, [(taken**2).sum(axis=(1, 2))] * 2, rtol=1e-12)


@QUICK
@given(st.integers(0, 2**31), st.sampled_from((np.int32, np.int64)))
def test_quantiles_are_equal_and_right_in_even_bins(seed: int, kind: type) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 3, (9, 11)).astype(kind)
    counts[0] = 0
    edges, levels = np.linspace(-1, 1, 12), np.array([0.0, 0.01, 0.5, 0.99, 1.0])
    low, high = -generator.random(9) - 0.5, generator.random(9) + 0.5
    found = compiled.bin_quantiles(counts, low, high, edges, levels)
    np.testing.assert_array_equal(found, plain.bin_quantiles(counts, low, high, edges, levels))
    flat = np.full((1, 11), 100, kind)  # evenly spread: a quantile is its level
    ends = np.array([-1.0]), np.array([1.0])
    even = compiled.bin_quantiles(flat, *ends, edges, levels)[:, 0]
    np.testing.assert_allclose(even, 2 * levels - 1, atol=1e-9)


@QUICK
@given(st.integers(0, 2**31))
def test_scores_are_counted_by_half_octaves(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = (6 * torch.randn(3, 5, 24, generator=generator)).softmax(-1)
    scores[0, 0, :5] = torch.tensor([0.0, 1.0, 0.5, 2.0**-24, 2.0**-24.5])
    groups = np.arange(24) % 3
    found = compiled.score_counts(scores, groups, 4)
    np.testing.assert_array_equal(found, plain.score_counts(scores, groups, 4))
    for group in range(4):
        values = scores.double().numpy()[..., groups == group].ravel()
        cells = np.floor(2 * (np.log2(np.maximum(values, 1e-30)) + 24)) + 1
        cells = cells.clip(0, SCORE_BINS - 1).astype(int)
        np.testing.assert_array_equal(found[group], np.bincount(cells, minlength=SCORE_BINS))


@QUICK
@given(batches(), st.sampled_from(("tensor", "row", "channel")), st.sampled_from((1, 2, 3)))
def test_codes_are_counted_as_they_are_rounded(x: torch.Tensor, axis: str, halves: int) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = {"tensor": (), "row": (len(x), x.shape[1], 1), "channel": (x.shape[2],)}[axis]
    scale = torch.rand(shape, generator=generator) + 0.01
    zero = torch.round(15 * torch.rand(shape, generator=generator))
    counts = np.zeros((2, halves, 18), np.int64)
    compiled.add_codes(x, scale, zero, 15, counts[0])
    plain.add_codes(x, scale, zero, 15, counts[1])
    np.testing.assert_array_equal(counts[0], counts[1])
    codes = (torch.round(x * scale.reciprocal()) + zero).nan_to_num(0.0).clamp(-1, 16).long()
    whole = len(x) % halves == 0  # else every half counts all
    first = codes[: len(x) // halves] if whole else codes
    expected = torch.bincount(first.reshape(-1) + 1, minlength=18).numpy()
    np.testing.assert_array_equal(counts[0, 0], expected)
