"""Eight bits a weight, symmetric and per row: what an int8 product takes as it is (the W8 of W8A8).

The grid is −127 … 127 steps (arXiv 2004.09602, section 3.1.2), so that zero is a level; `uniform`
with 8 bits has levels at half steps, which no int8 product can use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq import kernels
from vqdq.codecs import grids, register
from vqdq.codecs.base import EightBit, Packed, WeightShape
from vqdq.codecs.scalar import Grid, ScalarCodec
from vqdq.params import Params, param

_LARGEST = 127
_RANGES = 24  # candidates of the search, from the largest weight down to two thirds of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Params(Params):
    """Settings of 8-bit weights."""

    clip: str = param(
        "mse",
        label="Range",
        help="The largest weight decides the range, or the range of least squared error.",
        choices=("mse", "absmax"),
        advanced=True,
    )


@register
class Int8Codec(ScalarCodec[Int8Params]):
    """Codes 0 … 254 stand for −127 … 127 steps of a row's fp16 scale."""

    name = "int8"
    title = "8-bit integers"
    summary = "One byte a weight, as an integer product takes it: the weights of W8A8."
    reference = "arXiv 2004.09602, section 3.1.2"
    settings = Int8Params

    @property
    def _bits(self) -> int:
        return 8

    @property
    def _group_size(self) -> int:
        return 0

    @property
    def _centre(self) -> float:
        return float(_LARGEST)

    @property
    def _refits(self) -> bool:
        return self.params.clip == "mse"

    def _table(self) -> torch.Tensor:
        return torch.arange(2 * _LARGEST + 1, dtype=torch.float32)

    def _fit(self, groups: torch.Tensor) -> Grid:
        search = self.params.clip == "mse"
        parts = torch.linspace(1.0, 2 / 3, _RANGES) if search else torch.ones(1)
        largest = groups.double().abs().amax(dim=1, keepdim=True)
        steps = grids.half_exact(largest * parts / _LARGEST)
        zeros = torch.full(steps.shape, self._centre)
        if search:
            best = kernels.grid_errors(groups, steps, zeros, 2 * _LARGEST).argmin(1, keepdim=True)
            steps, zeros = steps.gather(1, best), zeros.gather(1, best)
        return Grid(steps=steps[:, 0], zeros=zeros[:, 0])

    def eight_bit(self, packed: Packed) -> EightBit:
        """Returns the levels and scales as they are stored."""
        shape: WeightShape = packed.shape
        codes = kernels.unpack_bits(packed.tensors["codes"], 8, shape.count)
        levels = (codes.int() - _LARGEST).to(torch.int8)
        return EightBit(
            levels=levels.reshape(shape.out_features, shape.in_features),
            scales=packed.tensors["scales"].float().reshape(-1),
        )
