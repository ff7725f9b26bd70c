"""GPTQ: an even grid over the full range of each row, rounded column by column with feedback.

The defaults are those that were published (arXiv 2210.17323, section 4, and its code): lopsided
min-max grids, a whole row to a grid, columns as they stand. What differs: steps are stored in fp16;
the damping is a setting of calibration (published: 1 % of the mean diagonal).
"""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.codecs import register
from vqdq.codecs.base import WeightShape
from vqdq.codecs.grids import EvenCodec, EvenParams
from vqdq.params import param


@dataclass(frozen=True, kw_only=True, slots=True)
class GptqParams(EvenParams):
    """Settings of GPTQ."""

    symmetric: bool = param(
        False,
        label="Symmetric",
        help="One grid around zero; off stores a zero point beside each scale, as published.",
        reference="arXiv 2210.17323, section 4",
        advanced=True,
    )
    clip: str = param(
        "absmax",
        label="Range",
        help="The largest weight decides the range, as published, or that of least squared error.",
        choices=("absmax", "mse"),
        reference="arXiv 2210.17323, section 4",
        advanced=True,
    )
    act_order: bool = param(
        False,
        label="Strong inputs first",
        help="Round the columns with the strongest inputs first; groups keep grids of their own.",
        reference="GPTQ's code, --act-order with --static-groups",
        advanced=True,
    )


@register
class GptqCodec(EvenCodec[GptqParams]):
    """Even grids with error feedback; stored as `uniform` is."""

    name = "gptq"
    title = "GPTQ"
    summary = "Round to nearest, each column making good what the columns before it lost."
    reference = "GPTQ, arXiv 2210.17323, section 3"
    settings = GptqParams
    needs_hessian = True

    @property
    def _strongest_first(self) -> bool:
        return self.params.act_order

    def _static_groups(self, shape: WeightShape) -> bool:
        return self.params.act_order or super()._static_groups(shape)
