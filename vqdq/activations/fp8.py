"""8-bit floats with a scale for each token or pixel, taken from the input itself as it comes.

e4m3 has 8 levels to each power of two over 15 of them (and even ones below): an outlier that sets
the scale leaves small values their 4 significant bits, where even levels leave them few or none. A
plain value has 4 significant bits where 8-bit integers give it up to 8. Cards from Ada on multiply
such floats as fast as bytes; nothing else here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vqdq.activations import register
from vqdq.activations.base import ActivationQuantizer, Axis, Code, Grid, Site, is_small
from vqdq.activations.settings import small_setting
from vqdq.kernels import fp8
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Params(Params):
    """Settings of 8-bit floats."""

    bits: int = param(8, label="Bits of an activation", unit="bits", choices=(8,))
    small: bool = small_setting()


@register
class Fp8Quantizer(ActivationQuantizer[Fp8Params]):
    """e4m3 over each row's own range: its largest magnitude becomes 448, the largest float.

    The format is Micikevicius et al., arXiv 2209.05433, section 3. They scale a whole tensor; here
    each token or pixel has a scale of its own, as in ZeroQuant (arXiv 2206.01861, section 4.2),
    which a card's kernel applies where it adds up a tap. So a convolution needs no other scale. The
    weight beside it is rounded to e4m3 too, with a scale for each output.
    """

    name = "fp8"
    title = "8-bit floats, a scale for each token"
    summary = "e4m3 in each token's or pixel's own range; multiplied as such on cards from Ada on."
    reference = "arXiv 2209.05433, section 3; arXiv 2206.01861, section 4.2"
    settings = Fp8Params

    @property
    def bits(self) -> int:
        return self.params.bits

    @property
    def code(self) -> Code:
        return "fp8"

    @property
    def calibrated(self) -> bool:
        return False

    def spares(self, site: Site, outputs: int) -> bool:
        return not self.params.small and is_small(site, outputs)

    def own_axis(self, site: Site) -> Axis | None:
        del site
        return "row"

    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        del site
        return ()

    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        del stored, site, timestep, shape
        scale = fp8.scales_of(rows.float())
        return Grid(
            bits=self.bits, axis="row", scale=scale, zero=torch.zeros_like(scale), code=self.code
        )
