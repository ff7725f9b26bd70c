"""Weights as 16-bit floating point: for experiments that quantize only what goes into a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq.codecs import register
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.codecs.scales import to_half
from vqdq.params import Params
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfParams(Params):
    """There is nothing to set."""


@register
class HalfCodec(Codec[HalfParams]):
    """Each weight rounded to fp16."""

    name = "half"
    title = "16-bit floats"
    summary = "Weights as they are, in fp16: to quantize activations alone."
    reference = "binary16 of IEEE 754; mixed precision as in arXiv 1710.03740"
    settings = HalfParams
    row_scales = False

    def check(self, shape: WeightShape) -> None:
        """Every shape can be encoded."""

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        """Returns one fp16 value a weight."""
        size = (shape.out_features, shape.in_features)
        return (TensorSpec(name="values", dtype=torch.float16, shape=size),)

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del shape, stats, generator
        return {"values": to_half(weight.contiguous())}

    def decode(self, packed: Packed) -> torch.Tensor:
        """Returns the values, float32 [out, in]."""
        return packed.tensors["values"].float()
