"""quanto's weight quantizers: affine groups at 2 and 4 bits, symmetric rows at 8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vqdq.codecs import register
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.peers.library import PeerCodec, load
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantoParams(Params):
    """Settings of quanto."""

    bits: int = param(4, label="Bits per weight", unit="bits", choices=(2, 4, 8))


@register
class QuantoCodec(PeerCodec[QuantoParams]):
    """What `quanto.quantize(model, weights=qint4)` stores of a 16-bit model.

    Group size as its `QModuleMixin` chooses it: 128, or the next lower multiple of 32 that divides
    the row, or the whole row. Scales and shifts take the dtype of the model, here float16.
    """

    name = "quanto"
    title = "quanto"
    summary = "The optimum-quanto library: groups of 128 with fp16 scale and shift; rows at 8 bits."
    reference = "github.com/huggingface/optimum-quanto"
    settings = QuantoParams
    library = "optimum-quanto"
    modules = ("optimum.quanto",)

    def check(self, shape: WeightShape) -> None:
        if self._groups(shape)[0] == 1:
            raise UserError(
                "quanto cannot quantize a weight that is a single group.",
                remedy="Use another method for this layer, or keep it in 16 bits.",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        groups, size = self._groups(shape)
        per_byte = 8 // self.params.bits
        kind = torch.int8 if self.params.bits == 8 else torch.uint8
        specs = [
            TensorSpec(name="codes", dtype=kind, shape=(-(-groups // per_byte), size)),
            TensorSpec(name="scales", dtype=torch.float16, shape=(groups, 1)),
        ]
        if self.params.bits < 8:
            specs.append(TensorSpec(name="shifts", dtype=torch.float16, shape=(groups, 1)))
        return tuple(specs)

    def _groups(self, shape: WeightShape) -> tuple[int, int]:
        """Returns how many groups there are and how many weights are in each."""
        size = self._group_size(shape) or shape.in_features
        return shape.count // size, size

    def _group_size(self, shape: WeightShape) -> int | None:
        width = shape.in_features
        if self.params.bits == 8 or width <= 128:
            return None
        return next((size for size in (128, 96, 64, 32) if width % size == 0), None)

    @property
    def _kind(self) -> str:
        return f"qint{self.params.bits}"

    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        del generator
        library, kind = load("optimum.quanto"), self._kind
        if self.params.bits == 8:
            scales = library.AbsmaxOptimizer()(weight, qtype=library.qtypes[kind], axis=0).half()
            return {"codes": self._quantized(weight, scales, None, None)._data, "scales": scales}
        size = self._group_size(shape)
        scales, shifts = library.MaxOptimizer()(
            weight, qtype=library.qtypes[kind], axis=0, group_size=size
        )
        scales, shifts = scales.half(), shifts.half()  # rounded before the codes are chosen
        quantized = self._quantized(weight, scales, shifts, size)
        return {"codes": quantized._data._data, "scales": scales, "shifts": shifts}

    def _quantized(
        self,
        weight: torch.Tensor,
        scales: torch.Tensor,
        shifts: torch.Tensor | None,
        group_size: int | None,
    ) -> Any:
        library = load("optimum.quanto")
        return load("optimum.quanto.tensor.weights").quantize_weight(
            weight,
            library.qtypes[self._kind],
            0,
            scales.float(),
            None if shifts is None else shifts.float(),
            group_size=group_size,
            optimized=False,
        )

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        library = load("optimum.quanto")
        shape, stored = packed.shape, packed.tensors
        size, stride = (shape.out_features, shape.in_features), (shape.in_features, 1)
        kind, scales = library.qtypes[self._kind], stored["scales"].float()
        if self.params.bits == 8:
            codes = stored["codes"]
            return library.WeightQBytesTensor(
                kind, 0, size, stride, codes, scales, None
            ).dequantize()
        groups, width = self._groups(shape)
        codes = load("optimum.quanto.tensor.packed").PackedTensor(
            stored["codes"], self.params.bits, (groups, width), (width, 1)
        )
        return library.WeightQBitsTensor(
            kind, 0, self._group_size(shape), size, stride, codes, scales, stored["shifts"].float()
        ).dequantize()
