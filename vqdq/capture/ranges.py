"""Extremes of what comes into a place of a model, by channel, by position and by noise level.

Exact: nothing is sampled, every prompt and both guidance halves count. Kept are 4 vectors a level
and place, so steps · (channels + positions) · 8 bytes each, whatever the number of prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from vqdq.activations.base import InputRanges


class RangeCollector:
    """Running extremes of rows [batch, positions, channels], by place and noise level.

    A level is what the denoiser was told, not the number of the step: samplers that call twice at
    one level (PNDM, Heun) have one range there, and different calls may have different steps.
    """

    def __init__(self) -> None:
        self._places: dict[str, dict[float, _Extremes]] = {}

    def add(self, place: str, timestep: float, rows: torch.Tensor) -> None:
        """Widens the extremes of `place` to rows [batch, positions, channels].

        Rows that are NaN leave NaN, `vqdq.activations.base.finite` tells it.
        """
        values = rows.detach()
        low, high = values.amin(0).float(), values.amax(0).float()  # [positions, channels]
        fresh = _Extremes(
            channel_low=low.amin(0).cpu(),
            channel_high=high.amax(0).cpu(),
            position_low=low.amin(1).cpu(),
            position_high=high.amax(1).cpu(),
        )
        levels = self._places.setdefault(place, {})
        known = levels.get(timestep)
        levels[timestep] = fresh if known is None else known.joined(fresh)

    @property
    def bytes(self) -> int:
        """Memory of everything that is kept."""
        return sum(level.bytes for levels in self._places.values() for level in levels.values())

    def ranges(self, place: str) -> InputRanges:
        """Returns what came in at `place`, of no level when nothing did.

        Inputs of different sizes are lined up at their first position; where a level saw fewer
        positions than another, the rest have the extremes of the levels that saw them.
        """
        levels = self._places.get(place, {})
        times = sorted(levels, reverse=True)
        if not times:
            nothing = torch.empty(0, 0)
            return InputRanges(
                timesteps=torch.empty(0),
                channel_low=nothing,
                channel_high=nothing,
                position_low=nothing,
                position_high=nothing,
            )
        found = [levels[time] for time in times]
        return InputRanges(
            timesteps=torch.tensor(times, dtype=torch.float32),
            channel_low=torch.stack([level.channel_low for level in found]),
            channel_high=torch.stack([level.channel_high for level in found]),
            position_low=_filled([level.position_low for level in found], math.inf),
            position_high=_filled([level.position_high for level in found], -math.inf),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Extremes:
    """Of one place at one level, float32: channels [channels], positions [positions]."""

    channel_low: torch.Tensor
    channel_high: torch.Tensor
    position_low: torch.Tensor
    position_high: torch.Tensor

    def joined(self, other: _Extremes) -> _Extremes:
        size = max(len(self.position_low), len(other.position_low))
        return _Extremes(
            channel_low=torch.minimum(self.channel_low, other.channel_low),
            channel_high=torch.maximum(self.channel_high, other.channel_high),
            position_low=torch.minimum(
                _longer(self.position_low, size, math.inf),
                _longer(other.position_low, size, math.inf),
            ),
            position_high=torch.maximum(
                _longer(self.position_high, size, -math.inf),
                _longer(other.position_high, size, -math.inf),
            ),
        )

    @property
    def bytes(self) -> int:
        return 8 * (len(self.channel_low) + len(self.position_low))


def _longer(values: torch.Tensor, size: int, fill: float) -> torch.Tensor:
    return functional.pad(values, (0, size - len(values)), value=fill)


def _filled(levels: list[torch.Tensor], fill: float) -> torch.Tensor:
    """Returns [levels, positions]; what a level lacks comes from those that have it."""
    size = max(len(level) for level in levels)
    wide = torch.stack([_longer(level, size, fill) for level in levels])
    over_all = wide.amin(0) if fill > 0 else wide.amax(0)
    lengths = torch.tensor([len(level) for level in levels])
    lacking = torch.arange(size) >= lengths[:, None]
    return torch.where(lacking, over_all, wide)
