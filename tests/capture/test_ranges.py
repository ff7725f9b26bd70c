"""Extremes of what comes in: exact against the whole data, whatever pieces it came in."""

from __future__ import annotations

import pytest
import torch

from vqdq.activations.base import finite
from vqdq.capture.ranges import RangeCollector
from vqdq.errors import UserError


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pieces_make_the_whole() -> None:
    """PNDM calls twice at one level and prompts come in batches: one range a level, falling."""
    data = {999.0: rows(6, 5, 3), 500.0: rows(6, 5, 3, seed=1), 20.0: rows(6, 5, 3, seed=2)}
    collector = RangeCollector()
    for part in (slice(0, 4), slice(4, 6)):
        for time in (500.0, 999.0, 20.0):
            collector.add("x", time, data[time][part])
    found = collector.ranges("x")
    assert found.timesteps.tolist() == [999.0, 500.0, 20.0]
    whole = torch.stack(list(data.values()))
    assert torch.equal(found.channel_low, whole.amin((1, 2)))
    assert torch.equal(found.channel_high, whole.amax((1, 2)))
    assert torch.equal(found.position_low, whole.amin((1, 3)))
    assert torch.equal(found.position_high, whole.amax((1, 3)))
    assert collector.bytes == 3 * (3 + 5) * 2 * 4


def test_strided_and_half_precision_rows() -> None:
    maps = rows(2, 3, 4, 4).half()
    collector = RangeCollector()
    collector.add("conv", 1.0, maps.flatten(2).transpose(1, 2))
    found = collector.ranges("conv")
    assert found.channel_low.dtype == torch.float32
    assert torch.equal(found.channel_high[0], maps.amax((0, 2, 3)).float())
    assert torch.equal(found.position_low[0], maps.amin((0, 1)).flatten().float())


def test_inputs_of_other_sizes_are_lined_up() -> None:
    """A longer text at one level: the others know nothing of its end, so they take its range."""
    short, long = rows(1, 2, 3), rows(1, 4, 3, seed=1)
    collector = RangeCollector()
    collector.add("text", 10.0, short)
    collector.add("text", 5.0, long)
    collector.add("text", 5.0, short)
    found = collector.ranges("text")
    assert found.position_low.shape == (2, 4)
    assert torch.equal(found.position_low[0, :2], short[0].amin(1))
    assert torch.equal(found.position_low[0, 2:], long[0, 2:].amin(1))
    assert torch.equal(found.position_high[1, :2], torch.cat([short, long[:, :2]]).amax((0, 2)))
    assert torch.equal(found.channel_high[1], torch.cat([short, long], 1).amax((0, 1)))
    finite(found, "text")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_is_seen(value: float) -> None:
    collector = RangeCollector()
    for seed in range(3):
        data = rows(2, 4, 3, seed=seed)
        if seed == 1:
            data[1, 2, 0] = value
        collector.add("bad", 7.0, data)
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        finite(collector.ranges("bad"), "bad")
    assert caught.value.where == "bad"


def test_a_place_that_nothing_reached() -> None:
    found = RangeCollector().ranges("silent")
    assert len(found.timesteps) == 0
    with pytest.raises(UserError, match="never run") as caught:
        finite(found, "silent")
    assert caught.value.where == "silent"
