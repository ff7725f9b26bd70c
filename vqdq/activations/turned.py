"""What methods share that change the input before it is quantized: the ranges after the change.

The input is smoothed or rotated first, so its outliers are gone, and a plain range will do: the
token's own, taken as it comes, or the tensor's, calibrated.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from vqdq.activations.base import ActivationQuantizer, Axis, Grid, InputRanges, Site
from vqdq.activations.dynamic import DynamicParams, DynamicQuantizer
from vqdq.activations.minmax import MinMaxParams, MinMaxQuantizer
from vqdq.params import Params
from vqdq.tensors import TensorSpec

P = TypeVar("P", bound=Params)


class TurnedQuantizer(ActivationQuantizer[P]):
    """Leaves the grid to the dynamic quantizer, or to the calibrated one."""

    @property
    @abstractmethod
    def plain(self) -> ActivationQuantizer[Any]:
        """What quantizes the changed input."""

    @property
    def bits(self) -> int:
        return self.plain.bits

    @property
    def calibrated(self) -> bool:
        return self.plain.calibrated

    def own_axis(self, site: Site) -> Axis | None:
        return self.plain.own_axis(site)

    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        return self.plain.layout(site)

    def calibrate(self, ranges: InputRanges, site: Site) -> dict[str, torch.Tensor]:
        return self.plain.calibrate(ranges, site)

    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        return self.plain.grid(rows, stored, site, timestep, shape)


def plain_ranges(scale: str, bits: int, levels: int) -> ActivationQuantizer[Any]:
    """Returns the quantizer with a range for each "token", "pixel" or, calibrated, the "tensor".

    Before a convolution a "token" is the whole picture. Elsewhere it is the same as a "pixel".
    """
    if scale == "tensor":
        return MinMaxQuantizer(MinMaxParams(bits=bits, levels=levels))
    return DynamicQuantizer(DynamicParams(bits=bits, pixels=scale == "pixel"))
