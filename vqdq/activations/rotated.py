"""A Hadamard rotation of the input: an outlier in one channel becomes a little in every channel.

x Wᵀ = (x S H)(W S H)ᵀ for ±1 on the diagonal of S and an orthonormal block-diagonal H (QuaRot,
arXiv 2404.00456, section 4). The weight meets the input in the same basis: that of the trellis
codec where it has one, so that its own int8 levels are used as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vqdq.activations import register
from vqdq.activations.base import ActivationQuantizer, Site, is_small
from vqdq.activations.settings import bits_setting, levels_setting, scale_setting, small_setting
from vqdq.activations.turned import TurnedQuantizer, plain_ranges
from vqdq.codecs import rotation
from vqdq.codecs.base import WeightShape
from vqdq.params import Params, param


@dataclass(frozen=True, kw_only=True, slots=True)
class RotatedParams(Params):
    """Settings of rotated inputs."""

    bits: int = bits_setting()
    rotation: int = param(
        128,
        label="Rotation block",
        help="Largest block of the Hadamard rotation; 128 is the trellis codec's own.",
        unit="channels",
        choices=(64, 128, 256),
        reference="arXiv 2404.00456, section 4",
    )
    scale: str = scale_setting()
    levels: int = levels_setting("Calibrated ranges")
    small: bool = small_setting()


@register
class RotatedQuantizer(TurnedQuantizer[RotatedParams]):
    """Plain ranges of the rotated input."""

    name = "rotated"
    title = "Rotated inputs"
    summary = "A Hadamard rotation spreads outliers over all channels, and one range will do."
    reference = "QuaRot, arXiv 2404.00456, section 4"
    settings = RotatedParams

    @property
    def plain(self) -> ActivationQuantizer[Any]:
        return plain_ranges(self.params.scale, self.params.bits, self.params.levels)

    def spares(self, site: Site, outputs: int) -> bool:
        return not self.params.small and is_small(site, outputs)

    def rotation_block(self, site: Site) -> int:
        return fitting_block(site, self.params.rotation)


def fitting_block(site: Site, largest: int) -> int:
    """Returns the block that a site's channels can be rotated in; 0 when there is none from 16."""
    if not largest:
        return 0
    shape = WeightShape(out_features=1, in_features=site.channels * site.taps, taps=site.taps)
    return rotation.block_size(shape, largest)
