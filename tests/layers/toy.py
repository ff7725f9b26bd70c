"""A codec for these tests: rows rounded to a table in fp16, with fp32 maxima."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vqdq import codecs, packing
from vqdq.codecs import register
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyParams(Params):
    bits: int = param(4, label="Bits", low=2, high=8)


@contextmanager
def registered() -> Generator[None, None, None]:
    """Adds the codec to the registry, under a name that no method has, and takes it out again."""
    register(Toy)
    try:
        yield
    finally:
        codecs._registry.pop(Toy.name)


class Toy(Codec[ToyParams]):
    name = "toy-for-tests"
    title = "Toy"
    summary = "Rounds rows."
    reference = "none"
    settings = ToyParams

    def check(self, shape: WeightShape) -> None:
        if shape.out_features == 13:
            raise UserError("13 rows bring bad luck.", remedy="Use 12 or 14.")

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        size = packing.packed_bytes(shape.count, self.params.bits)
        return (
            TensorSpec(name="codes", dtype=torch.uint8, shape=(size,)),
            TensorSpec(name="scales", dtype=torch.float32, shape=(shape.out_features, 1)),
            TensorSpec(name="table", dtype=torch.float16, shape=(2**self.params.bits,)),
        )

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del shape, stats
        levels = 2**self.params.bits
        scales = weight.abs().amax(1, keepdim=True).clamp_min(1e-8)
        noise = torch.rand(weight.shape, generator=generator) * 0.01
        codes = ((weight / scales + 1) / 2 * (levels - 1) + noise).round().clamp(0, levels - 1)
        table = torch.linspace(-1, 1, levels).half()
        packed = packing.pack(codes.to(torch.int32), self.params.bits)
        return {"codes": packed, "scales": scales, "table": table}

    def decode(self, packed: Packed) -> torch.Tensor:
        codes = packing.unpack(packed.tensors["codes"], self.params.bits, packed.shape.count)
        values = packed.tensors["table"].float().cpu()[codes.long()]
        rows = values.reshape(packed.shape.out_features, packed.shape.in_features)
        return (rows * packed.tensors["scales"].cpu()).to(packed.tensors["codes"].device)
