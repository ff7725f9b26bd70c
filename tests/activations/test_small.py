"""Layers so small that 8 bits are no faster keep their input, where a method is told so."""

from __future__ import annotations

import pytest

from vqdq import activations
from vqdq.activations.base import FEWEST_PRODUCTS, Site


@pytest.mark.parametrize("method", ["dynamic", "fp8", "rotated"])
def test_small_layers_are_spared_only_on_request(method: str) -> None:
    site = Site(channels=64, positions=FEWEST_PRODUCTS // 64 // 32, taps=1)
    assert 64 * site.positions * 32 == FEWEST_PRODUCTS
    told = activations.create(method, small=False)
    assert not told.spares(site, 32)
    assert told.spares(site, 31)
    assert not activations.create(method).spares(site, 1)


def test_every_tap_counts_and_an_unknown_size_is_never_small() -> None:
    told = activations.create("dynamic", small=False)
    positions = FEWEST_PRODUCTS // 64 // 32 // 8
    assert told.spares(Site(channels=64, positions=positions, taps=1), 32)
    assert not told.spares(Site(channels=64, positions=positions, taps=9), 32)
    assert not told.spares(Site(channels=4, positions=0), 4)


def test_no_other_method_spares_a_layer() -> None:
    for name in activations.names():
        assert not activations.create(name).spares(Site(channels=2, positions=2), 2), name
