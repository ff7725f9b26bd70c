"""8-bit floats: the rounding of their definition, and the error that their steps leave."""

from __future__ import annotations

from math import erf, log10, sqrt

import numpy as np
import pytest
import torch

from tests.activations.made_floats import LARGEST, by_row, e4m3
from vqdq import activations
from vqdq.activations.base import Grid, Site, dequantize, fake_quantize, quantize

SITE = Site(channels=320, positions=16)
NONE: dict[str, torch.Tensor] = {}


def grid_of(rows: torch.Tensor, name: str = "fp8", site: Site = SITE) -> Grid:
    return activations.create(name).grid(rows, NONE, site, 500.0)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_definition_has_the_published_values() -> None:
    """448 at most, 2**-6 the smallest normal, 2**-9 the smallest of all, and ties go to even."""
    exact = [448, 416, 240, 1, 1.125, 2**-6, 2**-9, 7 * 2**-9, 0]
    assert e4m3(exact).tolist() == exact
    given = [464, 1.0625, 1.1875, 2**-10, 3 * 2**-10, -1.1, 17]
    assert e4m3(given).tolist() == [448, 1, 1.25, 0, 2**-8, -1.125, 16]


@pytest.mark.parametrize("taps", [1, 9])
def test_codes_are_those_of_the_definition_at_every_size(taps: int) -> None:
    """Sizes over 12 powers of ten; a convolution has a scale for each pixel too."""
    site = Site(channels=320, positions=16, taps=taps)
    rows = noise(3, 16, 320) * torch.exp(noise(3, 16, 320, seed=2) * 5)
    grid = grid_of(rows, site=site)
    codes, scale = by_row(rows.numpy())
    assert (grid.axis, grid.code, grid.bits) == ("row", "fp8", 8)
    np.testing.assert_array_equal(grid.scale.numpy(), scale)
    np.testing.assert_array_equal(quantize(rows, grid).numpy(), codes)
    np.testing.assert_array_equal(
        dequantize(quantize(rows, grid), grid).numpy(), codes.astype(np.float32) * scale[..., None]
    )
    assert (np.abs(codes).max(-1) == LARGEST).all()
    assert (codes == 0).any()  # some are smaller than 2**-10 steps


def gaussian_db(largest: float) -> float:
    """The signal-to-noise ratio of unit Gaussian values whose scale takes `largest` to 448: the sum
    of step²/12 over the powers of two, by how many values lie in each.
    """

    def below(value: float) -> float:
        return erf(value * largest / LARGEST / sqrt(2))

    error = below(2.0**-6) * 4.0**-9 / 12
    for exponent in range(-6, 9):
        share = below(2.0 ** (exponent + 1)) - below(2.0**exponent)
        error += share * 4.0 ** (exponent - 3) / 12
    return -10 * log10(error * (largest / LARGEST) ** 2)


@pytest.mark.parametrize("largest", [5.0, 11.0, 50.0, 400.0])
def test_the_error_of_gaussian_values_hardly_depends_on_an_outlier(largest: float) -> None:
    """About 31.5 dB whatever sets the scale, where even levels lose 6 dB with each doubling."""
    rows = noise(2, 64, 1024).clamp(-4.9, 4.9)
    rows[..., 7] = largest
    others = torch.arange(1024) != 7

    def db(name: str) -> float:
        off = (fake_quantize(rows, grid_of(rows, name)) - rows)[..., others]
        return -10 * log10(float(off.square().mean() / rows[..., others].square().mean()))

    assert db("fp8") == pytest.approx(gaussian_db(largest), abs=0.1)
    assert db("fp8") == pytest.approx(31.6, abs=0.6)
    even = -10 * log10((largest - float(rows.amin((2,)).mean())) ** 2 / 255**2 / 12)
    if largest < 100:  # beyond, its steps are wider than the values
        assert db("dynamic") == pytest.approx(even, abs=0.5)
    assert (db("fp8") > db("dynamic")) == (largest > 20)
