"""Smoothing and rotation: the published factors, unchanged products, and outliers that are gone."""

from __future__ import annotations

import pytest
import torch

from tests.activations.made import decibels, noise, power, ranges_of
from vqdq import activations, kernels
from vqdq.activations.base import Site, fake_quantize
from vqdq.codecs.trellis import TrellisParams

TIMES = [900.0, 500.0, 100.0]
WIDTH = 64
SITE = Site(channels=WIDTH, positions=16)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outlying() -> torch.Tensor:
    inputs = normal(3, 2, 16, WIDTH)
    inputs[..., [5, 33]] *= 40
    return inputs


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("taps", [1, 9])
def test_factors_are_the_published_ones_up_to_one_constant(alpha: float, taps: int) -> None:
    inputs, weight = outlying(), normal(24, taps * WIDTH, seed=1)
    site = Site(channels=WIDTH, positions=16, taps=taps)
    quantizer = activations.create("smooth", alpha=alpha)
    found = quantizer.smoothing(ranges_of(inputs, TIMES), weight, site)
    largest = inputs.abs().amax((0, 1, 2)).double()
    columns = weight.reshape(24, taps, WIDTH).abs().amax((0, 1)).double()
    expected = largest**alpha / columns ** (1 - alpha)
    ratio = found.double() / expected
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=2e-3)  # fp16
    assert float(found.double().log().mean()) == pytest.approx(0, abs=1e-3)
    assert torch.equal(found, found.half().float())


def test_at_one_half_inputs_and_columns_are_equally_large() -> None:
    inputs, weight = outlying(), normal(24, WIDTH, seed=1)
    factors = activations.create("smooth").smoothing(ranges_of(inputs, TIMES), weight, SITE)
    ratio = (inputs / factors).abs().amax((0, 1, 2)) / (weight * factors).abs().amax(0)
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=4e-3)


def test_silent_channels_and_zero_columns_are_left_alone() -> None:
    inputs, weight = outlying(), normal(24, WIDTH, seed=1)
    inputs[..., 7] = 0
    weight[:, 9] = 0
    quantizer = activations.create("smooth")
    factors = quantizer.smoothing(ranges_of(inputs, TIMES), weight, SITE)
    assert factors[7] == factors[9] == 1
    assert bool(torch.isfinite(factors).all())
    assert bool((factors > 0).all())
    none = quantizer.smoothing(ranges_of(torch.zeros(1, 1, 16, WIDTH)), weight, SITE)
    assert torch.equal(none, torch.ones(WIDTH))


def test_extreme_ratios_stay_within_fp16() -> None:
    inputs, weight = outlying(), normal(24, WIDTH, seed=1)
    inputs[..., 0] *= 1e20
    inputs[..., 1] *= 1e-20
    quantizer = activations.create("smooth", alpha=1.0)
    factors = quantizer.smoothing(ranges_of(inputs, TIMES), weight, SITE)
    assert bool(torch.isfinite(factors.half()).all())
    assert float(factors.min()) >= 0.9e-4


@pytest.mark.parametrize(
    ("channels", "taps", "largest", "block"),
    [
        (320, 1, 128, 64),
        (1280, 9, 256, 256),
        (768, 1, 128, 128),
        (48, 1, 128, 16),
        (100, 1, 128, 0),
        (3, 9, 64, 0),
        (24, 1, 64, 0),
        (64, 4, 128, 64),
    ],
)
def test_the_block_is_the_largest_power_of_two_that_divides_the_channels(
    channels: int, taps: int, largest: int, block: int
) -> None:
    site = Site(channels=channels, positions=16, taps=taps)
    for name in ("rotated", "smooth"):
        assert activations.create(name, rotation=largest).rotation_block(site) == block
    assert activations.create("smooth").rotation_block(site) == 0


def test_rotated_inputs_meet_the_trellis_in_its_own_basis() -> None:
    assert activations.create("rotated").params.rotation == TrellisParams().rotation


@pytest.mark.parametrize("name", ["rotated", "smooth"])
def test_the_range_comes_from_the_input_or_from_calibration(name: str) -> None:
    token, tensor = (activations.create(name, scale=scale) for scale in ("token", "tensor"))
    assert not token.calibrated
    assert token.layout(SITE) == ()
    assert tensor.calibrated
    inputs = noise(3, 2, 16, WIDTH)
    stored = tensor.calibrate(ranges_of(inputs, TIMES), SITE)
    dynamic, plain = activations.create("dynamic"), activations.create("minmax")
    for own, other, kept in ((token, dynamic, {}), (tensor, plain, stored)):
        found, expected = (item.grid(inputs[1], kept, SITE, 500.0, None) for item in (own, other))
        assert found.axis == expected.axis
        assert torch.equal(found.scale, expected.scale)
        assert torch.equal(found.zero, expected.zero)


@pytest.mark.parametrize("name", ["rotated", "smooth"])
def test_before_a_convolution_the_range_is_of_the_picture_or_of_the_pixel(name: str) -> None:
    site = Site(channels=WIDTH, positions=16, taps=9)
    rows = noise(2, 16, WIDTH)
    for scale, axis in (("token", "sample"), ("pixel", "row")):
        for place, expected in ((site, axis), (SITE, "row")):
            quantizer = activations.create(name, scale=scale)
            assert quantizer.grid(rows, {}, place, None).axis == expected
            assert quantizer.own_axis(place) == expected


def test_rotation_takes_the_outlier_of_a_channel_apart() -> None:
    """One outlier of A in a block of n becomes n values of A/√n: the range falls by √n.

    Without noise the gain is exactly n; here the noise around it keeps some of it.
    """
    rows = normal(1, 256, WIDTH)
    rows[..., 5] += 300
    turned = kernels.hadamard(rows.reshape(-1, WIDTH).contiguous(), WIDTH).reshape(rows.shape)
    quantizer = activations.create("rotated", bits=6)
    plain, better = (
        power(fake_quantize(item, quantizer.grid(item, {}, SITE, None)) - item)
        for item in (rows, turned)
    )
    lone = 300.0 / 63  # its step: from about 0 to 300
    spread = (2 * 300 / WIDTH**0.5) / 63  # from −A/√n to A/√n
    assert plain < lone**2 / 12 + 1  # many of the small values just round to zero
    assert decibels(plain / better) > 5
    assert better == pytest.approx(spread**2 / 12, rel=0.35)
