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
from vqdq.activations.turned import TurnedQuantizer, plain_ranges
from vqdq.codecs import rotation
from vqdq.codecs.base import WeightShape
from vqdq.params import Params, param


@dataclass(frozen=True, kw_only=True, slots=True)
class RotatedParams(Params):
    """Settings of rotated inputs."""

    bits: int = param(8, label="Bits of an activation", unit="bits", low=4, high=8)
    rotation: int = param(
        128,
        label="Rotation block",
        help="Largest block of the Hadamard rotation; 128 is the trellis codec's own.",
        unit="channels",
        choices=(64, 128, 256),
        reference="arXiv 2404.00456, section 4",
    )
    scale: str = param(
        "token",
        label="A range for each",
        help="Token (before a convolution: picture, or pixel, which is slower) as it comes, or the"
        " tensor, calibrated.",
        choices=("token", "pixel", "tensor"),
    )
    levels: int = param(
        8,
        label="Noise levels",
        help="Calibrated ranges are kept at so many noise levels, and interpolated between them.",
        low=1,
        high=64,
        advanced=True,
    )
    small: bool = param(
        True,
        label="Small layers too",
        help="Off: layers with fewer than 4 million products a picture, which integers make no"
        " faster, keep 16 bits.",
        advanced=True,
    )


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
