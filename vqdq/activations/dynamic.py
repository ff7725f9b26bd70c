"""A scale for each token, or for each picture, taken from the input itself as it comes.

Nothing is calibrated and nothing is stored, so every prompt, resolution, scheduler and step count
is as good as any other. One scale a token is finer than any grouping of tokens; a convolution mixes
its pixels, so there the scale belongs to the picture, or to the pixel at the price of one product a
tap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vqdq.activations import register
from vqdq.activations.base import ActivationQuantizer, Axis, Grid, Site, is_small, ranged
from vqdq.activations.settings import bits_setting, small_setting
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicParams(Params):
    """Settings of the dynamic quantizer."""

    bits: int = bits_setting()
    pixels: bool = param(
        False,
        label="A scale for each pixel",
        help="Convolutions too get a scale a pixel, not one a picture: finer, but slower.",
        advanced=True,
    )
    small: bool = small_setting()


@register
class DynamicQuantizer(ActivationQuantizer[DynamicParams]):
    """Asymmetric levels over each row's own range."""

    name = "dynamic"
    title = "Dynamic, a scale for each token"
    summary = "Each token's own range, taken as it comes; nothing to calibrate."
    reference = "arXiv 2206.01861, section 4.2"
    settings = DynamicParams

    @property
    def bits(self) -> int:
        return self.params.bits

    @property
    def calibrated(self) -> bool:
        return False

    def spares(self, site: Site, outputs: int) -> bool:
        return not self.params.small and is_small(site, outputs)

    def axis(self, site: Site) -> Axis:
        """Returns what has a scale of its own at a site."""
        return "row" if site.taps == 1 or self.params.pixels else "sample"

    def own_axis(self, site: Site) -> Axis | None:
        return self.axis(site)

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
        del stored, timestep, shape
        axis = self.axis(site)
        dims = (2,) if axis == "row" else (1, 2)
        scale, zero = ranged(rows.amin(dims), rows.amax(dims), self.bits)
        return Grid(bits=self.bits, axis=axis, scale=scale, zero=zero)
