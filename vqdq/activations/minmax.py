"""The baselines that distribution-aware groups are measured against: calibrated minimum and
maximum, one range for the whole tensor or one for each channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vqdq.activations import register
from vqdq.activations.base import (
    ActivationQuantizer,
    Grid,
    InputRanges,
    Site,
    at_levels,
    ranged,
)
from vqdq.activations.settings import bits_setting, levels_setting, range_at, range_specs
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class MinMaxParams(Params):
    """Settings of the calibrated minimum and maximum."""

    bits: int = bits_setting()
    granularity: str = param(
        "tensor",
        label="One range for",
        help="The whole tensor, or each channel: no integer kernel keeps channels apart.",
        choices=("tensor", "channel"),
    )
    levels: int = levels_setting()


@register
class MinMaxQuantizer(ActivationQuantizer[MinMaxParams]):
    """Asymmetric levels over a calibrated range that follows the noise level."""

    name = "minmax"
    title = "Calibrated range"
    summary = "One range for each layer, or for each of its channels, from calibration prompts."
    reference = "arXiv 1712.05877, section 3.1"
    settings = MinMaxParams

    @property
    def bits(self) -> int:
        return self.params.bits

    @property
    def _by_channel(self) -> bool:
        return self.params.granularity == "channel"

    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        levels = self.params.levels
        shape = (site.channels,) if self._by_channel else ()
        return tuple(range_specs(levels, *shape))

    def calibrate(self, ranges: InputRanges, site: Site) -> dict[str, torch.Tensor]:
        del site
        kept = at_levels(ranges, self.params.levels)
        low, high = kept.channel_low, kept.channel_high
        if not self._by_channel:
            low, high = low.amin(1), high.amax(1)
        return {"timesteps": kept.timesteps, "low": low, "high": high}

    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        del rows, site, shape
        low, high = range_at(stored, timestep)
        scale, zero = ranged(low, high, self.bits)
        axis = "channel" if self._by_channel else "tensor"
        return Grid(bits=self.bits, axis=axis, scale=scale, zero=zero)
