"""Round to nearest on an even grid: the baseline every method must beat, and the 8-bit choice.

With a Hessian the steps stay those of least squared error, the columns are rounded with feedback,
and a row's step is refitted at the end; `gptq` is the same with the settings that were published.
"""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.codecs import register
from vqdq.codecs.base import WeightShape
from vqdq.codecs.grids import EvenCodec, EvenParams


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformParams(EvenParams):
    """Settings of round to nearest."""


@register
class UniformCodec(EvenCodec[UniformParams]):
    """Round to nearest, per row or per group, bit-packed."""

    name = "uniform"
    title = "Round to nearest"
    summary = "Each weight goes to the nearest of 2^bits even steps: the baseline."
    reference = "Jacob et al., arXiv 1712.05877, section 2"
    settings = UniformParams

    @property
    def _refits(self) -> bool:
        return self.params.clip == "mse"

    def _static_groups(self, shape: WeightShape) -> bool:
        return self.params.clip == "absmax" or super()._static_groups(shape)
