"""Trellis-coded quantization: each weight is read from a window of L bits of one bit stream.

The code of QTIP (arXiv 2406.11235: bit-shift trellis section 3.1, tail-biting section 3.2), written
anew. What differs, and why: a trained universal table instead of a computed code (L ≤ 12 fits a
cache, and training it gains most at small L); one sequence runs down all rows of a column instead
of a 16×16 tile, so that error feedback can go column by column without loss; only the input side is
rotated; one fp16 scale a row, refitted by least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq import kernels, packing
from vqdq.codecs import register, rotation, scales, tables
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TrellisParams(Params):
    """Settings of the trellis codec."""

    bits: int = param(
        3, label="Bits per weight", unit="bits", low=2, high=4, reference="arXiv 2406.11235"
    )
    state_bits: int = param(
        12,
        label="State bits",
        help="Window read for each weight: 12 is best, 10 encodes four times faster.",
        unit="bits",
        choices=(8, 10, 12),
        reference="arXiv 2406.11235, section 3.1",
        advanced=True,
    )
    rotation: int = param(
        128,
        label="Rotation block",
        help="Largest block of the Hadamard rotation of the inputs; 0 rotates nothing.",
        choices=(0, 64, 128, 256),
        reference="arXiv 2402.04396, section 3",
        advanced=True,
    )


@register
class TrellisCodec(Codec[TrellisParams]):
    """Bit-shift trellis along the output rows, after a random Hadamard rotation of the inputs."""

    name = "trellis"
    title = "Trellis"
    summary = "Each weight is read from overlapping bits of one stream: least error at every size."
    reference = "QTIP, arXiv 2406.11235, section 3"
    settings = TrellisParams

    def check(self, shape: WeightShape) -> None:
        need = -(-self.params.state_bits // self.params.bits)
        if shape.out_features < need:
            raise UserError(
                f"{shape.out_features} output rows are fewer than the {need} that a trellis of "
                f"{self.params.state_bits} state bits closes on.",
                remedy='Use "uniform" or keep this layer in 16 bits.',
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        code_bytes = packing.packed_bytes(shape.out_features, self.params.bits)
        specs = [
            TensorSpec(name="codes", dtype=torch.uint8, shape=(code_bytes, shape.in_features)),
            TensorSpec(name="scales", dtype=torch.float16, shape=(shape.out_features,)),
        ]
        if rotation.block_size(shape, self.params.rotation):
            specs.append(rotation.spec(shape))
        return tuple(specs)

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del stats  # the weight alone decides
        block = rotation.block_size(shape, self.params.rotation)
        stored = rotation.random_signs(shape.in_features, generator)
        rotated = rotation.rotate(weight, stored, block)
        start = scales.to_half(scales.row_rms(rotated)).float()
        unit = scales.unit_rows(rotated, start)
        table = tables.trellis(self.params.bits, self.params.state_bits)
        units = kernels.COST_UNITS / tables.TRELLIS_STEP
        targets = (unit * units).round().clamp(-32000, 32000).to(torch.int16)
        codes = kernels.trellis_encode(targets, table, self.params.bits)
        levels = kernels.trellis_decode(codes, table, self.params.bits, shape.out_features)
        fitted = scales.fitted_scales(rotated, levels.float() * tables.TRELLIS_STEP)
        packed = {"codes": codes, "scales": scales.to_half(fitted)}
        return packed if block == 0 else packed | {"signs": stored}

    def levels(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the rotated weight as int8 [out, in] and its float32 row scales [out]."""
        table = tables.trellis(self.params.bits, self.params.state_bits)
        rows = packed.shape.out_features
        levels = kernels.trellis_decode(
            packed.tensors["codes"].cpu(), table, self.params.bits, rows
        )
        return levels, packed.tensors["scales"].cpu().float() * tables.TRELLIS_STEP

    def decode(self, packed: Packed) -> torch.Tensor:
        levels, row_scales = self.levels(packed)
        block = rotation.block_size(packed.shape, self.params.rotation)
        scaled = levels.float() * row_scales[:, None]
        if block == 0:
            return scaled
        return rotation.unrotate(scaled, packed.tensors["signs"].cpu(), block)
