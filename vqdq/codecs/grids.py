"""Even grids: the step and the zero point of each group, from its range or by least error.

Symmetric grids are ±½, ±1½, … steps (the even-level grid whose MSE-optimal step gives the textbook
.1188, .0374, .0115 at 2, 3, 4 bits); asymmetric ones have an integer zero point, as in Jacob et
al., arXiv 1712.05877, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from vqdq import kernels
from vqdq.codecs import scales
from vqdq.codecs.base import EightBit, Packed
from vqdq.codecs.scalar import Grid, ScalarCodec
from vqdq.params import Params, param

_PARTS = 48  # candidate ranges of the MSE search, from the full range down to 1/5 of it


@dataclass(frozen=True, kw_only=True, slots=True)
class EvenParams(Params):
    """Settings of every codec with even grids."""

    bits: int = param(4, label="Bits per weight", unit="bits", low=2, high=8)
    group_size: int = param(
        0,
        label="Group size",
        help="Weights that share a scale: 0 is a whole row.",
        unit="weights",
        choices=(0, 16, 32, 64, 128),
        advanced=True,
    )
    symmetric: bool = param(
        True,
        label="Symmetric",
        help="One grid around zero; off stores a zero point beside each scale.",
        reference="arXiv 1712.05877, section 2.1",
        advanced=True,
    )
    clip: str = param(
        "mse",
        label="Range",
        help="The largest weight decides the range, or the range of least squared error.",
        choices=("mse", "absmax"),
        advanced=True,
    )


P = TypeVar("P", bound=EvenParams)


class EvenCodec(ScalarCodec[P]):
    """Integer levels 0..2**bits - 1 on an even grid for each row or group."""

    @property
    def _bits(self) -> int:
        return self.params.bits

    @property
    def _group_size(self) -> int:
        return self.params.group_size

    @property
    def _stores_zeros(self) -> bool:
        return not self.params.symmetric

    @property
    def _centre(self) -> float:
        return ((1 << self.params.bits) - 1) / 2

    def _table(self) -> torch.Tensor:
        return torch.arange(1 << self.params.bits, dtype=torch.float32)

    def eight_bit(self, packed: Packed) -> EightBit | None:
        """Returns the levels of a grid a row where they are whole numbers of 8 bits: twice code −
        zero at half the step for a symmetric grid, so at most 7 bits.
        """
        grid, shape = self._stored_grid(packed), packed.shape
        if grid.steps.shape[1] > 1:
            return None
        codes = kernels.unpack_bits(packed.tensors["codes"], self._bits, shape.count)
        factor = 2 if self.params.symmetric else 1
        levels = codes.view(shape.out_features, -1).short() * factor
        levels -= (grid.zeros * factor).short()
        low, high = levels.aminmax()
        if int(low) < -128 or int(high) > 127:
            return None
        return EightBit(levels=levels.to(torch.int8), scales=grid.steps[:, 0] / factor)

    def _fit(self, groups: torch.Tensor) -> Grid:
        search, symmetric = self.params.clip == "mse", self.params.symmetric
        return fitted(groups, self.params.bits, symmetric=symmetric, search=search)


def fitted(groups: torch.Tensor, bits: int, *, symmetric: bool, search: bool) -> Grid:
    """Returns the even grid of each row of float32 [n, size], steps exact in fp16.

    Args:
        groups: weights that share a grid.
        bits: codes are 0..2**bits - 1.
        symmetric: zero in the middle of the grid; otherwise an integer zero point is chosen.
        search: the range of least squared error; otherwise that of the largest weights.
    """
    highest = (1 << bits) - 1
    parts = torch.linspace(1.0, 0.2, _PARTS) if search else torch.ones(1)
    steps, zeros = _ranges(groups.double(), parts, highest, symmetric)
    if not search:
        return Grid(steps=steps[:, 0], zeros=zeros[:, 0])
    errors = kernels.grid_errors(groups, steps, zeros, highest)
    best = errors.argmin(dim=1, keepdim=True)
    return Grid(steps=steps.gather(1, best)[:, 0], zeros=zeros.gather(1, best)[:, 0])


def _ranges(
    exact: torch.Tensor, parts: torch.Tensor, highest: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns steps and zero points, [groups, n], for n parts of the full range."""
    if symmetric:
        spans = 2 * exact.abs().amax(dim=1, keepdim=True) * parts
        return half_exact(spans / highest), torch.full(spans.shape, highest / 2)
    low = exact.amin(dim=1, keepdim=True).clamp_max(0) * parts
    high = exact.amax(dim=1, keepdim=True).clamp_min(0) * parts
    steps = half_exact((high - low) / highest)
    zeros = torch.where(steps > 0, -low / steps.clamp_min(1e-30), 0.0)
    return steps, zeros.round().clamp(0, highest).float()


def half_exact(step: torch.Tensor) -> torch.Tensor:
    """Returns steps as float32 that fp16 holds exactly: what is searched with is what is stored."""
    return scales.to_half(step.float()).float()
