"""Codes used and clipped, extremes of every step, kept values: against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vqdq import codecs
from vqdq.activations import create
from vqdq.activations.base import Grid, Site, quantize
from vqdq.capture import ActivationRecord, record
from vqdq.capture.codes import Codes
from vqdq.capture.kept import Keeper
from vqdq.capture.streams import spread_of
from vqdq.layers.surgery import quantize_, quantize_inputs_
from vqdq.views.values import code_words


class _Net(nn.Module):
    """Two linear layers that read the same tokens, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(32, 16)
        self.second = nn.Linear(32, 16)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, sample, timestep, tokens):
        return self.first(tokens), self.second(tokens), self.conv(sample), timestep


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(2, 6, 4, 5, generator=generator),
            torch.randn(2, 9, 32, generator=generator) + 0.2,
        )
        for _ in range(2)
    ]


def _draw(net: nn.Module, batches) -> None:
    for sample, tokens in batches:
        with torch.no_grad():
            net(sample, 900.0, tokens)
            net(2 * sample, 100.0, 3 * tokens)


def _quantized(bits: int = 4) -> _Net:
    net = _Net()
    names = ("first", "second")
    packed = {
        name: codecs.encode(net.get_submodule(name).weight, "uniform", bits=8) for name in names
    }
    quantize_(net, packed)
    quantizer = create("dynamic", bits=bits)
    quantize_inputs_(net, {"first": (quantizer, Site(channels=32))}, {"first": {}})
    return net


def _guided(net: nn.Module, **options) -> ActivationRecord:
    with record(net, guided=True, **options) as recorder:
        _draw(net, _batches())
    return recorder.result()


def test_extremes_of_channels_and_positions_are_exact_at_every_step():
    found = _guided(_Net())
    tokens = torch.stack([tokens for _, tokens in _batches()])  # [pictures, halves, 9, 32]
    sample = torch.stack([sample for sample, _ in _batches()])  # [pictures, halves, 6, 4, 5]
    for step, scale in enumerate((1.0, 3.0)):
        series = found.series["first"]
        values = scale * tokens
        np.testing.assert_allclose(series.channel_low[:, step], values.amin((0, 2)))
        np.testing.assert_allclose(series.channel_high[:, step], values.amax((0, 2)))
        np.testing.assert_allclose(series.position_low[:, step], values.amin((0, 3)))
        np.testing.assert_allclose(series.position_high[:, step], values.amax((0, 3)))
        assert (series.histogram[:, step].sum(axis=1) == 2 * 9 * 32).all()
    maps = found.series["conv"]
    assert maps.positions == (4, 5)
    np.testing.assert_allclose(maps.channel_high[:, 0], sample.amax((0, 3, 4)))
    np.testing.assert_allclose(maps.position_absmax[:, 0], sample.abs().amax((0, 2)).flatten(1))


def test_spread_is_that_of_the_paper():
    found = _guided(_Net())
    tokens = torch.stack([tokens for _, tokens in _batches()]).double().numpy()
    row = found.layers.index("first")
    for half in (0, 1):
        x = tokens[:, half].reshape(-1, 32)
        high, low = x.max(0), x.min(0)
        expected = (high.max() - high.min()) + (low.max() - low.min())
        assert found.scalars.channel_spread[half, row, 0] == pytest.approx(expected, rel=1e-6)
        pixels = tokens[:, half].transpose(1, 0, 2).reshape(9, -1)
        high, low = pixels.max(1), pixels.min(1)
        expected = (high.max() - high.min()) + (low.max() - low.min())
        assert found.scalars.position_spread[half, row, 0] == pytest.approx(expected, rel=1e-6)
    # One channel that reaches 10 and −4 while the others stay within ±1.
    low, high = np.array([[-1.0, -4.0, -1.0]]), np.array([[1.0, 10.0, 1.0]])
    assert spread_of(low, high).tolist() == [12.0]


def test_scalars_equal_the_direct_computation():
    found = _guided(_Net()).scalars
    tokens = torch.stack([tokens for _, tokens in _batches()]).double().numpy()
    row = 0  # the layer that runs first
    for half in (0, 1):
        x = 3 * tokens[:, half]
        assert found.minimum[half, row, 1] == pytest.approx(x.min(), rel=1e-6)
        assert found.maximum[half, row, 1] == pytest.approx(x.max(), rel=1e-6)
        assert found.mean[half, row, 1] == pytest.approx(x.mean(), rel=1e-4)
        assert found.rms[half, row, 1] == pytest.approx((x**2).mean() ** 0.5, rel=1e-5)
        assert found.outliers[half, row, 1] == pytest.approx((abs(x) >= 6).mean())
        assert found.p99[half, row, 1] == pytest.approx(np.quantile(abs(x), 0.99), rel=0.06)
    assert np.isnan(found.clipped).all()  # nothing is rounded


def test_codes_are_those_that_the_layer_rounds_to():
    net = _quantized()
    found = _guided(net, detail=("first",))
    row, other = found.layers.index("first"), found.layers.index("second")
    assert np.isnan(found.scalars.used[:, other]).all()
    tokens = torch.stack([tokens for _, tokens in _batches()])
    for half in (0, 1):
        counts = np.zeros(16, np.int64)
        for picture in tokens:
            grid = create("dynamic", bits=4).grid(picture, {}, Site(channels=32), 900.0)
            codes = quantize(picture, grid)[half].long().reshape(-1)
            counts += torch.bincount(codes, minlength=16).numpy()
        seen = found.codes["first", 0]
        np.testing.assert_array_equal(seen.counts[half], counts)
        assert found.scalars.used[half, row, 0] == pytest.approx((counts > 0).mean())
        assert found.scalars.clipped[half, row, 0] == 0  # a dynamic range holds everything
    assert (seen.method, seen.bits, seen.counted.tolist()) == ("dynamic", 4, [576, 576])


def test_values_beyond_the_levels_are_counted_as_clipped():
    grid = Grid(bits=4, axis="tensor", scale=torch.tensor(1.0), zero=torch.tensor(4.0))
    rows = torch.tensor([-7.0, -4.4, 0.0, 3.0, 11.4, 12.0, 30.0, 0.2]).reshape(1, 8, 1)
    counter = Codes(1, "made", 4)
    counter.update(rows, grid)
    found = counter.result()
    assert (found.below.tolist(), found.above.tolist()) == ([1], [2])
    assert found.clipped.tolist() == [3 / 8]
    assert found.counts[0, [0, 4, 7, 15]].tolist() == [2, 2, 1, 3]
    assert found.used.tolist() == [4 / 16]
    assert found.levels()[[0, -1]].tolist() == [-4.0, 11.0]


def test_inputs_are_shown_as_they_are_rotated():
    net = _Net()
    packed = {"first": codecs.encode(net.first.weight, "uniform", bits=8)}
    quantize_(net, packed)
    quantizer = create("rotated", bits=8)
    block = quantizer.rotation_block(Site(channels=32))
    assert block == 32
    quantize_inputs_(net, {"first": (quantizer, Site(channels=32))}, {"first": {}})
    found = _guided(net, detail=("first",))
    before, after = found.details["first", 0], found.turned["first", 0]
    x = torch.cat([tokens[1] for _, tokens in _batches()])
    turned = net.get_submodule("first").input.rows(net.get_submodule("first"), x[None])[0]
    np.testing.assert_allclose(after.absmax[1], turned.abs().amax(0), rtol=1e-6)
    assert not np.allclose(before.absmax, after.absmax)
    np.testing.assert_allclose(turned.square().sum(1), x.square().sum(1), rtol=1e-5)


def test_layers_that_are_given_the_same_tensor_have_the_same_numbers():
    found = _guided(_Net(), detail_steps=(0,))
    a, b = found.layers.index("first"), found.layers.index("second")
    for name in ("absmax", "kurtosis", "p99", "channel_spread"):
        values = getattr(found.scalars, name)
        np.testing.assert_array_equal(values[:, a], values[:, b])


def test_one_layer_and_step_keeps_its_values():
    found = _guided(_Net(), keep=("first", 1)).kept
    assert found is not None
    tokens = torch.stack([tokens for _, tokens in _batches()])
    np.testing.assert_allclose(found.values, 3 * tokens.transpose(0, 1).numpy(), rtol=1e-6)
    assert found.whole
    np.testing.assert_array_equal(found.surface, np.abs(found.values).max(1))
    assert _guided(_Net()).kept is None


def test_the_budget_is_kept():
    keeper = Keeper(budget=4 * 2 * 100 * 8)  # one sample of 100 positions
    keeper.add(torch.ones(2, 3, 100, 8))
    found = keeper.result(name="a", step=0, halves=("uncond", "cond"), positions=(10, 10))
    assert found is not None
    assert (found.values.shape, found.values.nbytes) == ((2, 1, 100, 8), keeper.budget)
    assert not found.whole
    narrow = Keeper(budget=4 * 2 * 10 * 8)
    narrow.add(torch.arange(100.0)[None, None, :, None].expand(2, 1, 100, 8))
    thinned = narrow.result(name="a", step=0, halves=("uncond", "cond"), positions=(100,))
    assert thinned is not None
    assert thinned.kept.tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    np.testing.assert_array_equal(thinned.values[0, 0, :, 0], thinned.kept)


def test_extremes_that_do_not_fit_are_given_up_but_not_their_spread():
    whole, thin = _guided(_Net()), _guided(_Net(), series_bytes=1 << 14)
    assert np.isfinite(whole.series["first"].channel_low).all()
    assert np.isfinite(thin.series["first"].channel_low[:, 0]).all()
    assert np.isnan(thin.series["first"].channel_low[:, 1]).all()
    for name in ("absmax", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(thin.scalars, name), getattr(whole.scalars, name))


def test_everything_comes_back_from_disk(tmp_path):
    net = _quantized()
    saved = _guided(net, detail=("first",), keep=("first", 0))
    saved.save(tmp_path / "record.npz")
    found = ActivationRecord.load(tmp_path / "record.npz")
    assert found.codes["first", 1].axis == saved.codes["first", 1].axis
    np.testing.assert_array_equal(found.codes["first", 1].counts, saved.codes["first", 1].counts)
    np.testing.assert_array_equal(found.series["conv"].histogram, saved.series["conv"].histogram)
    assert found.series["conv"].positions == (4, 5)
    assert found.kept is not None
    assert saved.kept is not None
    np.testing.assert_array_equal(found.kept.values, saved.kept.values)
    np.testing.assert_array_equal(found.scalars.clipped, saved.scalars.clipped)


def test_extremes_on_disk_have_three_digits(tmp_path):
    saved = _guided(_Net())
    saved.save(tmp_path / "record.npz")
    found = ActivationRecord.load(tmp_path / "record.npz").series["first"]
    exact = saved.series["first"]
    np.testing.assert_allclose(found.channel_high, exact.channel_high, rtol=2**-11)
    assert np.isnan(found.channel_low[:, 2:]).all()


def test_codes_of_8_bit_floats_are_counted_and_have_uneven_levels(tmp_path):
    """1.0 is 448 steps of its own scale; below it lie 126 magnitudes of either sign, and 0."""
    rows = torch.tensor([448.0, -448.0, 416.0, 1.0, -1.06, 2**-9, 2**-11, 0.0]).reshape(1, 1, 8)
    counter = Codes(1, "fp8", 8, "fp8")
    counter.update(rows, create("fp8").grid(rows, {}, Site(channels=8), None))
    found = counter.result()
    levels = found.levels()
    assert (found.total, len(levels), float(found.scale[0])) == (253, 253, 1.0)
    assert (np.diff(levels) > 0).all()
    np.testing.assert_array_equal(levels, -levels[::-1])
    seen = np.repeat(levels, found.counts[0]).tolist()
    assert seen == [-448.0, -1.0, 0.0, 0.0, 2**-9, 1.0, 416.0, 448.0]
    assert found.clipped.tolist() == [0.0]
    assert code_words(found, half="all", halves=("all",)).startswith("253 levels: 246 never occur")
    net = _quantized(8)
    quantize_inputs_(net, {"first": (create("fp8"), Site(channels=32))}, {"first": {}})
    saved = _guided(net, detail=("first",))
    saved.save(tmp_path / "record.npz")
    back = ActivationRecord.load(tmp_path / "record.npz").codes["first", 0]
    np.testing.assert_array_equal(back.levels(3), saved.codes["first", 0].levels(3))
    assert (back.code, back.counted.tolist()) == ("fp8", [576, 576])
