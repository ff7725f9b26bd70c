"""GGUF's block types as the `gguf` library itself quantizes them.

It can write Q4_0 to Q8_0 and MXFP4. The K and IQ types it can only read (they are quantized by
ggml's C code), so they are not offered.
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

_BLOCK = 32  # weights
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "MXFP4": 17}


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufParams(Params):
    """Settings of the GGUF block types."""

    kind: str = param(
        "Q4_0",
        label="Type",
        help="Blocks of 32 weights: _0 stores a scale, _1 a minimum beside it.",
        choices=tuple(_BLOCK_BYTES),
    )


@register
class GgufCodec(PeerCodec[GgufParams]):
    """`gguf.quants.quantize` and `dequantize`, blocks as in the file format."""

    name = "gguf"
    title = "GGUF"
    summary = "The gguf library's block types, 32 weights with fp16 scales: 4.25 to 8.5 bits."
    reference = "github.com/ggml-org/llama.cpp, gguf-py"
    settings = GgufParams
    library = "gguf"
    modules = ("gguf", "yaml", "requests", "tqdm")

    def check(self, shape: WeightShape) -> None:
        if shape.in_features % _BLOCK:
            raise UserError(
                f"a row of {shape.in_features} weights cannot be split into GGUF blocks of 32.",
                remedy="Use another method for this layer, or keep it in 16 bits.",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        row = shape.in_features // _BLOCK * _BLOCK_BYTES[self.params.kind]
        return (TensorSpec(name="blocks", dtype=torch.uint8, shape=(shape.out_features, row)),)

    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        del shape, generator
        library = load("gguf")
        kind = library.GGMLQuantizationType[self.params.kind]
        blocks = library.quants.quantize(weight.contiguous().numpy(), kind)
        return {"blocks": torch.from_numpy(blocks)}

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        library = load("gguf")
        kind = library.GGMLQuantizationType[self.params.kind]
        blocks = packed.tensors["blocks"]
        weight = library.quants.dequantize(blocks.cpu().numpy(), kind)
        return torch.from_numpy(weight).to(blocks.device)
