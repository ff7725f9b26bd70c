"""Lloyd–Max: the scalar levels of least squared error on a Gaussian, scaled to each row or group.

Max, IRE Transactions on Information Theory 6 (1960); Lloyd, IEEE Transactions on Information Theory
28 (1982). On N(0,1) the errors are .3634, .1175, .03454, .009497 at 1 to 4 bits: the most that one
level a weight can do at a fixed rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from vqdq import kernels
from vqdq.codecs import register, scales
from vqdq.codecs.scalar import Grid, ScalarCodec
from vqdq.kernels.reference import midpoints
from vqdq.params import Params, param

_LEAST = 0.85  # smallest scale tried, in standard deviations; the largest reaches every weight
_TRIED = 16
_ROUNDS = 3  # scale fits after that: nearest levels, then least squares
_FINEST = 4096  # levels are multiples of 1/4096: no machine's erf decides the last bit


@dataclass(frozen=True, kw_only=True, slots=True)
class LloydMaxParams(Params):
    """Settings of Lloyd–Max."""

    bits: int = param(4, label="Bits per weight", unit="bits", low=1, high=6)
    group_size: int = param(
        0,
        label="Group size",
        help="Weights that share a scale: 0 is a whole row.",
        unit="weights",
        choices=(0, 16, 32, 64, 128),
        advanced=True,
    )


@register
class LloydMaxCodec(ScalarCodec[LloydMaxParams]):
    """Gaussian levels times a scale of least squared error."""

    name = "lloyd_max"
    title = "Lloyd–Max"
    summary = "Each weight goes to the nearest of the 2^bits levels that suit a Gaussian best."
    reference = "Lloyd 1982; compared in QTIP, arXiv 2406.11235, section 2"
    settings = LloydMaxParams

    @property
    def _bits(self) -> int:
        return self.params.bits

    @property
    def _group_size(self) -> int:
        return self.params.group_size

    @property
    def _refits(self) -> bool:
        return True

    def _table(self) -> torch.Tensor:
        return gaussian_levels(self.params.bits)

    def _fit(self, groups: torch.Tensor) -> Grid:
        low = scales.row_rms(groups) * _LEAST
        high = torch.maximum(groups.abs().amax(dim=1) / self._table()[-1], low)
        parts = torch.linspace(0, 1, _TRIED).square()
        tried = low[:, None] + (high - low)[:, None] * parts  # [groups, tried]
        errors = kernels.table_errors(groups, tried, self._table())
        steps = tried.gather(1, errors.argmin(dim=1, keepdim=True))[:, 0]
        for _ in range(_ROUNDS):
            steps = scales.fitted_scales(groups, self._nearest(groups, steps))
        steps = scales.to_half(steps).float()
        return Grid(steps=steps, zeros=torch.zeros_like(steps))

    def _nearest(self, groups: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        table = self._table()
        return table[torch.bucketize(scales.unit_rows(groups, steps), midpoints(table))]


@cache
def gaussian_levels(bits: int) -> torch.Tensor:
    """Returns the levels of least squared error on N(0,1), float32 [2**bits], ascending.

    The fixed point of Lloyd's method: boundaries halfway between levels, levels at the mean of the
    density between boundaries, (φ(a) − φ(b)) / (Φ(b) − Φ(a)). It starts from the quantiles of
    N(0, 3), where the levels lie for many bits (Panter and Dite 1951).
    """
    count = 1 << bits
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = torch.special.ndtri(shares) * 3**0.5
    ends = torch.tensor([torch.inf], dtype=torch.float64)
    for _ in range(100 * count):  # the error shrinks by about 1 − 8/count² a round
        bounds = torch.cat((-ends, (levels[1:] + levels[:-1]) / 2, ends))
        density = torch.exp(-bounds.square() / 2) / (2 * torch.pi) ** 0.5
        mass = torch.special.ndtr(bounds).diff()
        levels = -density.diff() / mass
    return ((levels * _FINEST).round() / _FINEST).float()
