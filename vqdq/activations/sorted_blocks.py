"""Groups that an integer kernel likes: channels sorted by range, cut into equal blocks.

K-means makes groups of any size, and a product over 17 channels is hardly cheaper than one over
128. Here every block but the last has the same number of channels; a block is one int8 product with
one scale, on channels that were put in order once, when the weight was laid out. Sorting puts
outliers together, as Atom does with its 128 largest channels (arXiv 2310.19102, section 4.1).
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
class SortedParams(Params):
    """Settings of sorted blocks."""

    bits: int = bits_setting()
    block: int = param(
        128,
        label="Channels in a block",
        help="Channels of similar range that share a scale; fewer are finer, and slower.",
        unit="channels",
        choices=(32, 64, 128, 256),
    )
    levels: int = levels_setting()


@register
class SortedQuantizer(ActivationQuantizer[SortedParams]):
    """Asymmetric levels over the range of each block of sorted channels."""

    name = "sorted"
    title = "Sorted blocks"
    summary = "Channels sorted by range and cut into equal blocks: groups that run as integers."
    reference = "after arXiv 2310.19102, section 4.1"
    settings = SortedParams

    @property
    def bits(self) -> int:
        return self.params.bits

    def _blocks(self, site: Site) -> int:
        return -(-site.channels // self.params.block)

    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        levels, blocks = self.params.levels, self._blocks(site)
        specs = range_specs(levels, blocks)
        if blocks > 1:
            specs.append(TensorSpec(name="groups", dtype=torch.int16, shape=(site.channels,)))
        return tuple(specs)

    def calibrate(self, ranges: InputRanges, site: Site) -> dict[str, torch.Tensor]:
        kept, blocks = at_levels(ranges, self.params.levels), self._blocks(site)
        low, high = kept.channel_low.float(), kept.channel_high.float()
        order = by_range(low, high)
        cuts = range(0, site.channels, self.params.block)
        parts = [order[start : start + self.params.block] for start in cuts]
        stored = {
            "timesteps": kept.timesteps,
            "low": torch.stack([low[:, part].amin(1) for part in parts], dim=1),
            "high": torch.stack([high[:, part].amax(1) for part in parts], dim=1),
        }
        if blocks > 1:
            groups = torch.empty(site.channels, dtype=torch.int16)
            groups[order] = (torch.arange(site.channels) // self.params.block).short()
            stored["groups"] = groups
        return stored

    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        del rows, shape
        low, high = range_at(stored, timestep)
        scale, zero = ranged(low, high, self.bits)
        if self._blocks(site) == 1:
            return Grid(bits=self.bits, axis="tensor", scale=scale[0], zero=zero[0])
        index = stored["groups"].long()
        return Grid(bits=self.bits, axis="group", scale=scale, zero=zero, index=index)


def by_range(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Returns the channels by rising range, int64 [channels]; equal ones keep their order.

    The range holds 0, as it will be quantized; at each of several levels it counts as a share of
    that level's largest.

    Args:
        low, high: [levels, channels].
    """
    width = high.clamp_min(0) - low.clamp_max(0)
    share = width / width.amax(1, keepdim=True).clamp_min(1e-30)
    return share.mean(0).argsort(stable=True)
