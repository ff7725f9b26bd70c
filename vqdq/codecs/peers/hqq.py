"""HQQ's own quantizer: groups with a scale and a zero point.

The zero point minimises an l_p norm of the error, p < 1, by half-quadratic splitting
(mobiusml.github.io/hqq_blog).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq.codecs import register
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.peers.library import PeerCodec, load
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_PER_WORD = {2: 4, 3: 10, 4: 2, 8: 1}  # codes in one stored integer; ten of 3 bits fill 30 of 32


@dataclass(frozen=True, kw_only=True, slots=True)
class HqqParams(Params):
    """Settings of HQQ."""

    bits: int = param(4, label="Bits per weight", unit="bits", choices=(2, 3, 4, 8))
    group_size: int = param(
        64,
        label="Group size",
        help="Weights that share a scale and a zero point; the library's default is 64.",
        unit="weights",
        choices=(16, 32, 64, 128),
    )


@register
class HqqCodec(PeerCodec[HqqParams]):
    """`hqq.core.quantize.Quantizer` with its default configuration (axis 1, optimised zeros)."""

    name = "hqq"
    title = "HQQ"
    summary = (
        "The hqq library: groups with fp16 scale and zero point; 3-bit codes take 3.2 bits on disk."
    )
    reference = "github.com/dropbox/hqq"
    settings = HqqParams
    library = "hqq"
    modules = ("hqq", "termcolor")

    def check(self, shape: WeightShape) -> None:
        size, together = self.params.group_size, self._together
        if shape.count % (size * together):
            raise UserError(
                f"HQQ packs {together} groups of {size} together, and {shape.count} weights are "
                f"not a multiple of {size * together}.",
                remedy="Use a smaller group_size, another method, or keep this layer in 16 bits.",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        groups = shape.count // self.params.group_size
        words = -(-groups // _PER_WORD[self.params.bits])
        kind = torch.int32 if self.params.bits == 3 else torch.uint8
        return (
            TensorSpec(name="codes", dtype=kind, shape=(words, self.params.group_size)),
            TensorSpec(name="scales", dtype=torch.float16, shape=(groups, 1)),
            TensorSpec(name="zero_points", dtype=torch.float16, shape=(groups, 1)),
        )

    @property
    def _together(self) -> int:
        return 1 if self.params.bits == 3 else _PER_WORD[self.params.bits]  # 3 bits: it pads

    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        del shape, generator
        quantizer = load("hqq.core.quantize").Quantizer
        codes, meta = quantizer.quantize(
            weight,
            nbits=self.params.bits,
            group_size=self.params.group_size,
            axis=1,
            round_zero=self.params.bits == 4,  # as hqq_base_quant_config does
            device="cpu",
        )
        return {
            "codes": codes,
            "scales": meta["scale"].half(),  # its compute_dtype, float16 by default
            "zero_points": meta["zero"].half(),
        }

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        quantizer = load("hqq.core.quantize").Quantizer
        shape, bits = packed.shape, self.params.bits
        meta = {
            "nbits": bits,
            "group_size": self.params.group_size,
            "shape": (shape.out_features, shape.in_features),
            "scale": packed.tensors["scales"],
            "zero": packed.tensors["zero_points"],
            "axis": 1,
            "packing": quantizer.bit_to_packing[bits],
            "view_as_float": False,
            "compute_dtype": torch.float32,
        }
        return quantizer.dequantize(packed.tensors["codes"], meta)
