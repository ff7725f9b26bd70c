"""Calibrated positions at other resolutions, against torch's own nearest neighbour."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vqdq.activations.places import places


@pytest.mark.parametrize("now", [(8, 8), (4, 4), (16, 16), (6, 10), (12, 8), (3, 5)])
def test_maps_are_resized_by_nearest_neighbour(now: tuple[int, int]) -> None:
    known = torch.arange(64.0).reshape(1, 1, 8, 8)
    expected = functional.interpolate(known, size=now, mode="nearest-exact").long().flatten()
    assert torch.equal(places(64, now[0] * now[1], now), expected)


def test_square_token_maps_are_resized_as_maps() -> None:
    assert torch.equal(places(64, 256), places(64, 256, (16, 16)))
    assert torch.equal(places(64, 16), places(64, 16, (4, 4)))


def test_as_many_positions_stay_where_they_are() -> None:
    for known, shape in ((77, None), (64, None), (64, (8, 8)), (96, (12, 8)), (1, (1, 1))):
        assert torch.equal(places(known, known, shape), torch.arange(known))


def test_the_same_count_in_another_shape_is_another_map() -> None:
    assert not torch.equal(places(64, 64, (4, 16)), torch.arange(64))


def test_a_map_that_is_not_square_has_the_nearest_ratio() -> None:
    """96 = 12 x 8 pixels; at twice the size each one is seen four times."""
    found = places(96, 384, (24, 16)).reshape(24, 16)
    assert torch.equal(found[::2, ::2], torch.arange(96).reshape(12, 8))
    assert torch.equal(found[1::2, 1::2], torch.arange(96).reshape(12, 8))


def test_text_keeps_its_places_and_the_rest_takes_the_last() -> None:
    assert places(77, 5).tolist() == [0, 1, 2, 3, 4]
    assert places(5, 8).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


def test_tokens_that_are_no_square_follow_the_raster() -> None:
    assert places(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
