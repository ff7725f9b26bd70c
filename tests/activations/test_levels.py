"""Fewer noise levels than steps: what is kept still holds what was thinned out."""

from __future__ import annotations

import torch

from vqdq.activations.base import InputRanges, at_levels, interpolated


def _ranges(steps: int, seed: int = 0) -> InputRanges:
    generator = torch.Generator().manual_seed(seed)

    def made(width: int) -> torch.Tensor:
        return torch.rand((steps, width), generator=generator)

    return InputRanges(
        timesteps=torch.linspace(999, 1, steps),
        channel_low=-made(5),
        channel_high=made(5),
        position_low=-made(3),
        position_high=made(3),
    )


def test_interpolation_between_kept_levels_holds_every_step_of_the_calibration() -> None:
    ranges = _ranges(20)
    for count in (1, 2, 3, 8, 20, 31):
        kept = at_levels(ranges, count)
        assert kept.channel_high.shape == (count, 5)
        assert kept.position_low.shape == (count, 3)
        for step, time in enumerate(ranges.timesteps.tolist()):
            high = interpolated(kept.timesteps, kept.channel_high, time)
            low = interpolated(kept.timesteps, kept.channel_low, time)
            assert bool((high >= ranges.channel_high[step] - 1e-6).all()), (count, step)
            assert bool((low <= ranges.channel_low[step] + 1e-6).all()), (count, step)


def test_as_many_levels_as_steps_are_the_steps() -> None:
    ranges = _ranges(7)
    for pooled in (True, False):
        kept = at_levels(ranges, 7, pooled=pooled)
        assert torch.equal(kept.channel_low, ranges.channel_low)
        assert torch.equal(kept.position_high, ranges.position_high)


def test_levels_that_are_not_pooled_are_single_steps() -> None:
    ranges = _ranges(20)
    kept = at_levels(ranges, 3, pooled=False)
    assert torch.equal(kept.channel_high, ranges.channel_high[[0, 10, 19]])
