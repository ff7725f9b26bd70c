"""bitsandbytes' 4-bit types: blocks scaled by their largest magnitude, NF4 or FP4 levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq.codecs import register
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.peers.library import PeerCodec, load
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_NESTED_BLOCK = 256  # blocks whose scales share a scale when they are quantized again


@dataclass(frozen=True, kw_only=True, slots=True)
class BnbParams(Params):
    """Settings of bitsandbytes."""

    kind: str = param(
        "nf4",
        label="Type",
        help="Quantiles of a Gaussian, or a 4-bit float.",
        choices=("nf4", "fp4"),
        reference="arXiv 2305.14314, section 3",
    )
    block_size: int = param(
        64,
        label="Block size",
        help="Weights that share a scale; the library's default is 64.",
        unit="weights",
        choices=(32, 64, 128, 256),
        advanced=True,
    )
    double_quant: bool = param(
        False,
        label="Double quantization",
        help="Quantizes the scales to 8 bits, too.",
        reference="arXiv 2305.14314, section 3",
    )


@register
class BnbCodec(PeerCodec[BnbParams]):
    """`bitsandbytes.functional.quantize_4bit` and `dequantize_4bit`, on the CPU."""

    name = "bnb"
    title = "bitsandbytes"
    summary = "The bitsandbytes library: NF4 or FP4 in blocks of 64 with fp32 scales, 4.5 bits."
    reference = "Dettmers et al., arXiv 2305.14314, section 3"
    settings = BnbParams
    library = "bitsandbytes"
    modules = ("bitsandbytes",)

    def check(self, shape: WeightShape) -> None:
        if shape.count % 2:
            raise UserError(
                f"bitsandbytes packs two weights in a byte, and {shape.count} is odd.",
                remedy="Use another method for this layer, or keep it in 16 bits.",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        """Returns every tensor of its state dict; the offset it writes as text is a tensor here."""
        blocks = -(-shape.count // self.params.block_size)
        wide = torch.float32
        codes = TensorSpec(name="codes", dtype=torch.uint8, shape=(shape.count // 2,))
        levels = TensorSpec(name="quant_map", dtype=wide, shape=(16,))
        if not self.params.double_quant:
            return codes, levels, TensorSpec(name="absmax", dtype=wide, shape=(blocks,))
        nested = -(-blocks // _NESTED_BLOCK)
        return (
            codes,
            levels,
            TensorSpec(name="absmax", dtype=torch.uint8, shape=(blocks,)),
            TensorSpec(name="nested_absmax", dtype=wide, shape=(nested,)),
            TensorSpec(name="nested_quant_map", dtype=wide, shape=(256,)),
            TensorSpec(name="nested_offset", dtype=wide, shape=(1,)),
        )

    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        del shape, generator
        codes, state = load("bitsandbytes.functional").quantize_4bit(
            weight.contiguous(),
            blocksize=self.params.block_size,
            compress_statistics=self.params.double_quant,
            quant_type=self.params.kind,
        )
        stored = {"codes": codes.reshape(-1), "quant_map": state.code, "absmax": state.absmax}
        if state.nested:
            stored |= {
                "nested_absmax": state.state2.absmax,
                "nested_quant_map": state.state2.code,
                "nested_offset": state.offset.reshape(1),
            }
        return {name: tensor.clone() for name, tensor in stored.items()}

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        library, stored = load("bitsandbytes.functional"), packed.tensors
        shape, nested = packed.shape, None
        if self.params.double_quant:
            nested = library.QuantState(
                absmax=stored["nested_absmax"],
                code=stored["nested_quant_map"],
                blocksize=_NESTED_BLOCK,
                dtype=torch.float32,
            )
        state = library.QuantState(
            absmax=stored["absmax"],
            shape=torch.Size((shape.count,)),  # flat: a row of odd width would be compiled first
            code=stored["quant_map"],
            blocksize=self.params.block_size,
            quant_type=self.params.kind,
            dtype=torch.float32,
            offset=stored["nested_offset"][0] if nested is not None else None,
            state2=nested,
        )
        flat = library.dequantize_4bit(stored["codes"].reshape(-1, 1), state)
        return flat.reshape(shape.out_features, shape.in_features)
