"""Distribution-aware group quantization: ranges for groups of pixels or channels (DGQ).

Outliers of a text-to-image denoiser sit in a few fixed channels or in a few fixed pixels. For each
layer, DGQ looks along which of the two the extremes spread more, puts channels or positions of
similar extremes into a few groups by K-means, and gives each group a range of its own (arXiv
2501.04304, section 4.1).

What differs from the paper:

* By default one grouping serves all noise levels, made from the extremes at all of them, and only
  the ranges follow the noise level, linearly between the levels kept. Weights can then be laid out
  by group once, and any number of steps and any scheduler is as good as another. `regroup` groups
  anew at each noise level kept, and takes the nearest one. On the embedded model, activations alone
  at 6 bits, noise predictions keep 22.3 dB with one range, 27.7 with 8 groups for all levels, 28.4
  with 8 groups anew at 8 levels, 28.5 as published at all 20.
* Every range holds 0, so padding and silent inputs stay exactly 0.
* Convolutions are grouped by the pixels or channels of their input map. The paper's patches
  (unfolded, taps times as large) say the same about channels, and blur pixels by the kernel.
* Another resolution takes the groups of the map by nearest neighbour (`places`).

`paper_exact` is the published procedure: groups anew at every level kept (give it as many levels as
steps), the nearest level, ranges without 0 where the data has none. Even so it is not the authors'
code, which

* looks its parameters up by (1000 − t) // (1000 // steps), which for most of its own scheduler's
  steps is one step off: here the noise level itself decides;
* binds a file to one number of steps, one scheduler and one resolution: here none of them matters;
* takes the extremes of time embeddings from the first batch alone: here from all of them, one range
  for the tensor since there is one position;
* gives an empty group the range [0, 1]: here it takes that of the whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vqdq import packing
from vqdq.activations import register
from vqdq.activations.base import (
    ActivationQuantizer,
    Grid,
    InputRanges,
    Site,
    at_levels,
    ranged,
)
from vqdq.activations.kmeans import kmeans
from vqdq.activations.places import places
from vqdq.activations.settings import bits_setting, levels_setting, range_at, range_specs
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_CODE_BITS = 4  # of a group's number
CHANNELS, POSITIONS = 0, 1  # values of the tensor "axis"


@dataclass(frozen=True, kw_only=True, slots=True)
class DgqParams(Params):
    """Settings of distribution-aware groups."""

    bits: int = bits_setting()
    groups: int = param(
        8,
        label="Groups",
        help="Groups of channels or pixels that have a range of their own.",
        choices=(1, 2, 4, 8, 16),
        reference="arXiv 2501.04304, section 5",
    )
    levels: int = levels_setting()
    regroup: bool = param(
        False,
        label="Group at each noise level",
        help="A grouping of its own at each noise level, as published; else one for all.",
        reference="arXiv 2501.04304, section 4.1",
        advanced=True,
    )
    paper_exact: bool = param(
        False,
        label="Exactly as published",
        help="Groups anew at each level kept, the nearest level, and ranges that need not hold 0.",
        reference="arXiv 2501.04304, section 4.1",
        advanced=True,
    )


@register
class DgqQuantizer(ActivationQuantizer[DgqParams]):
    """Asymmetric levels over the range of each group of channels or positions."""

    name = "dgq"
    title = "Distribution-aware groups"
    summary = "Channels or pixels of similar extremes share a range: outliers keep to themselves."
    reference = "DGQ, arXiv 2501.04304, section 4.1"
    settings = DgqParams

    @property
    def bits(self) -> int:
        return self.params.bits

    @property
    def _regroups(self) -> bool:
        return self.params.regroup or self.params.paper_exact

    def _count(self, site: Site) -> int:
        """Returns the number of groups at a site; one position (a time embedding) has one."""
        return 1 if site.positions == 1 else self.params.groups

    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        levels, count = self.params.levels, self._count(site)
        specs = range_specs(levels, count)
        if count > 1:
            groupings = levels if self._regroups else 1
            entries = max(site.channels, site.positions)
            wide = packing.packed_bytes(entries, _CODE_BITS)
            specs += [
                TensorSpec(name="axis", dtype=torch.uint8, shape=(groupings,)),
                TensorSpec(name="groups", dtype=torch.uint8, shape=(groupings, wide)),
            ]
        return tuple(specs)

    def calibrate(self, ranges: InputRanges, site: Site) -> dict[str, torch.Tensor]:
        kept = at_levels(ranges, self.params.levels, pooled=not self.params.paper_exact)
        channels = Extremes(low=kept.channel_low, high=kept.channel_high)
        positions = Extremes(low=kept.position_low, high=kept.position_high)
        stored = {"timesteps": kept.timesteps}
        count = self._count(site)
        if count == 1:
            whole = channels.of_groups(torch.zeros(site.channels, dtype=torch.int64), 1)
            return stored | {"low": whole.low, "high": whole.high}
        if site.positions == 0 or positions.low.shape[1] != site.positions:
            positions = None  # not known, or of another size: groups of channels only
        entries = max(site.channels, site.positions)
        if self._regroups:
            parts = [
                _grouped(channels.at(level), positions and positions.at(level), count, entries)
                for level in range(len(kept.timesteps))
            ]
        else:
            parts = [_grouped(channels, positions, count, entries)]
        return stored | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        (low, high), level = range_at(stored, timestep), 0
        count = self._count(site)
        if self._regroups and timestep is not None:
            level = int((stored["timesteps"] - timestep).abs().argmin())
            low, high = stored["low"][level], stored["high"][level]
        elif self._regroups and count > 1:  # groups differ: only the tensor's range covers all
            low, high, count = low.amin(0, keepdim=True), high.amax(0, keepdim=True), 1
        scale, zero = ranged(low, high, self.bits, with_zero=not self.params.paper_exact)
        if count == 1:
            return Grid(bits=self.bits, axis="tensor", scale=scale[0], zero=zero[0])
        by_position = int(stored["axis"][level]) == POSITIONS
        entries = site.positions if by_position else site.channels
        labels = packing.unpack(stored["groups"][level], _CODE_BITS, entries).to(low.device).long()
        if not by_position:
            return Grid(bits=self.bits, axis="group", scale=scale, zero=zero, index=labels)
        labels = labels[places(site.positions, rows.shape[1], shape)]
        return Grid(bits=self.bits, axis="row", scale=scale[labels], zero=zero[labels])


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """Extremes of channels or of positions, float32 [levels, n]."""

    low: torch.Tensor
    high: torch.Tensor

    @property
    def width(self) -> torch.Tensor:
        """Range of the whole tensor at each level, [levels, 1]; never 0."""
        width = self.high.amax(1, keepdim=True) - self.low.amin(1, keepdim=True)
        return width.clamp_min(1e-30)

    def at(self, level: int) -> Extremes:
        """Returns the extremes at one level, [1, n]."""
        return Extremes(low=self.low[level][None], high=self.high[level][None])

    def spread(self) -> float:
        """Returns how far the extremes lie apart, as a share of the range, mean over levels.

        D = (max_i aᵢᵐᵃˣ − min_i aᵢᵐᵃˣ) + (max_i aᵢᵐⁱⁿ − min_i aᵢᵐⁱⁿ) (section 4.1). The range is
        that of the tensor, the same for channels and positions, so at one level D alone decides.
        """
        apart = sum(side.amax(1) - side.amin(1) for side in (self.low, self.high))
        return float((apart / self.width[:, 0]).mean())

    def groups(self, count: int) -> torch.Tensor:
        """Returns the group of each entry by K-means on (min, max), int64 [n].

        Several levels are as many pairs, each in shares of that level's range.
        """
        points = torch.cat((self.low / self.width, self.high / self.width))
        return kmeans(points.T, count)

    def of_groups(self, labels: torch.Tensor, count: int) -> Extremes:
        """Returns the least low and the largest high of each group, [levels, count].

        A group without entries has the range of the whole tensor.
        """
        shape, index = (len(self.low), count), labels.expand_as(self.low)
        low = self.low.amin(1, keepdim=True).expand(shape).clone()
        high = self.high.amax(1, keepdim=True).expand(shape).clone()
        return Extremes(
            low=low.scatter_reduce(1, index, self.low, "amin", include_self=False),
            high=high.scatter_reduce(1, index, self.high, "amax", include_self=False),
        )


def _grouped(
    channels: Extremes, positions: Extremes | None, count: int, entries: int
) -> dict[str, torch.Tensor]:
    """Returns axis [1], groups [1, bytes], low and high [levels, count] of one grouping."""
    chosen, axis = channels, CHANNELS
    if positions is not None and positions.spread() > channels.spread():
        chosen, axis = positions, POSITIONS
    labels = chosen.groups(count)
    padded = torch.zeros(entries, dtype=torch.int64)
    padded[: len(labels)] = labels
    ranges = chosen.of_groups(labels, count)
    return {
        "low": ranges.low,
        "high": ranges.high,
        "axis": torch.tensor([axis], dtype=torch.uint8),
        "groups": packing.pack(padded, _CODE_BITS)[None],
    }
