"""SDNQ's weight quantizer: affine groups at 2 to 5 bits, symmetric ones above, and its options.

Its defaults keep scales and zero points in float32 and take smaller groups the fewer the bits, so
that its "2 bits" are 6 on disk. The settings that store less are offered beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from vqdq.codecs import register
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.peers.library import PeerCodec, load
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_RANK = 32  # of its SVD branch, the default
_HADAMARD = 256  # columns of its rotation, the default
_THEIRS = {"codes": "weight", "scales": "scale", "zero_points": "zero_point"}  # ours -> its name
_OURS = {theirs: ours for ours, theirs in _THEIRS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class SdnqParams(Params):
    """Settings of SDNQ."""

    bits: int = param(4, label="Bits per weight", unit="bits", choices=(2, 3, 4, 5, 6, 8))
    group_size: int = param(
        0,
        label="Group size",
        help="Weights that share a scale: 0 lets SDNQ choose by the bits, -1 is a whole row.",
        unit="weights",
        choices=(0, -1, 16, 32, 64, 128),
        advanced=True,
    )
    scales: str = param(
        "float32",
        label="Scales stored in",
        help="Its default is float32; uint8 is its double quantization.",
        choices=("float32", "float16", "uint8"),
    )
    codebook: bool = param(
        False,
        label="Lloyd–Max levels",
        help="A table of 2^bits levels a group instead of even steps.",
        advanced=True,
    )
    hadamard: bool = param(False, label="Hadamard rotation", advanced=True)
    svd: bool = param(
        False,
        label="SVD branch",
        help="Keeps the 32 largest singular directions beside the codes, in 16 bits.",
        reference="arXiv 2411.05007, section 4.2",
        advanced=True,
    )


@register
class SdnqCodec(PeerCodec[SdnqParams]):
    """`sdnq.quantizer.sdnq_quantize_layer_weight` and its dequantizer, as for a linear layer."""

    name = "sdnq"
    title = "SDNQ"
    summary = "The SDNQ library: small groups with fp32 scales by default, 5 bits at 4, 6 at 2."
    reference = "github.com/Disty0/sdnq"
    settings = SdnqParams
    library = "sdnq"
    modules = ("sdnq",)

    def check(self, shape: WeightShape) -> None:
        together = 8 // math.gcd(self.params.bits, 8)
        if shape.count % together:
            raise UserError(
                f"SDNQ packs {together} weights of {self.params.bits} bits together, and "
                f"{shape.count} weights are not a multiple of {together}.",
                remedy="Use another method for this layer, or keep it in 16 bits.",
            )
        if self.params.svd and min(shape.out_features, shape.in_features) < _RANK:
            raise UserError(
                f"SDNQ's SVD branch needs {_RANK} rows and columns.", remedy="Use svd=false."
            )
        if self.params.codebook and self.params.scales == "uint8":
            raise UserError(
                "SDNQ's Lloyd–Max levels are not offered in 8 bits here.",
                remedy="Use scales=float16 or float32.",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        groups, _ = self._groups(shape)
        rows = (shape.out_features, *([groups] if groups > 1 else []))
        levels = 2**self.params.bits if self.params.codebook else 1
        kind = getattr(torch, self.params.scales)
        specs = [
            TensorSpec(name="codes", dtype=self._code_dtype, shape=self._code_shape(shape)),
            TensorSpec(name="scales", dtype=kind, shape=(*rows, levels)),
        ]
        nested = ["scale_2", "scale_zero_point"]
        if self._unsigned and not self.params.codebook:
            specs.append(TensorSpec(name="zero_points", dtype=kind, shape=(*rows, 1)))
            nested += ["zero_point_scale", "zero_point_2"]
        if self.params.scales == "uint8":
            specs += [TensorSpec(name=name, dtype=torch.float32, shape=(1,)) for name in nested]
        if self.params.svd:
            half = torch.float16
            specs += [
                TensorSpec(name="svd_up", dtype=half, shape=(shape.out_features, _RANK)),
                TensorSpec(name="svd_down", dtype=half, shape=(_RANK, shape.in_features)),
            ]
        return tuple(specs)

    @property
    def _unsigned(self) -> bool:
        """Its recommended types are unsigned up to 5 bits; Lloyd–Max levels need them so."""
        return self.params.bits <= 5 or self.params.codebook

    @property
    def _type(self) -> str:
        return f"{'u' if self._unsigned else ''}int{self.params.bits}"

    @property
    def _code_dtype(self) -> torch.dtype:
        return torch.int8 if self._type == "int8" else torch.uint8

    def _code_shape(self, shape: WeightShape) -> tuple[int, ...]:
        bits, count = self.params.bits, shape.count
        if bits == 8:
            groups, size = self._groups(shape)
            return (shape.out_features, groups, size) if groups > 1 else (shape.out_features, size)
        values = 8 // math.gcd(bits, 8)  # that fill whole bytes together
        whole = bits * values // 8
        return (count // values, whole) if whole > 1 else (count // values,)

    def _groups(self, shape: WeightShape) -> tuple[int, int]:
        """Returns groups in a row and weights in a group, as its quantizer finds them."""
        width, size = shape.in_features, self.params.group_size
        if size == 0:  # larger with more bits, and where a branch or a table adds to the cost
            size = 2 ** (2 + self.params.bits + self.params.svd + 3 * self.params.codebook)
        if size < 0 or size >= width:
            return 1, width
        most = width // size if width % size == 0 else width // size - 1  # it skips one count
        groups = next((n for n in range(most, 1, -1) if width % n == 0), 1)
        return groups, width // groups

    def _quantize(
        self, weight: torch.Tensor, shape: WeightShape, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        del shape
        scales = self.params.scales
        with torch.random.fork_rng(devices=[]):  # its SVD draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            _, tensors = load("sdnq.quantizer").sdnq_quantize_layer_weight(
                weight.clone(),  # it works in place
                layer_class_name="Linear",
                weights_dtype=self._type,
                scale_dtype="uint8" if scales == "uint8" else None,
                group_size=self.params.group_size,
                use_svd=self.params.svd,
                use_hadamard=self.params.hadamard,
                use_codebook=self.params.codebook,
                dequantize_fp32=scales != "float16",
                torch_dtype=torch.float16,  # of the model
            )
        stored: dict[str, torch.Tensor] = {k: v for k, v in tensors.items() if v is not None}
        return {_OURS.get(name, name): tensor.contiguous() for name, tensor in stored.items()}

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        stored = {_THEIRS.get(name, name): tensor for name, tensor in packed.tensors.items()}
        return self._dequantizer(packed.shape)(**stored, dtype=torch.float32, skip_compile=True)

    def _dequantizer(self, shape: WeightShape) -> Any:
        groups, size = self._groups(shape)
        plain = torch.Size((shape.out_features, shape.in_features))
        grouped = torch.Size((shape.out_features, groups, size)) if groups > 1 else plain
        levels = 2**self.params.bits if self.params.codebook else 1
        nested = "uint8" if self.params.scales == "uint8" else None
        rotated, block = False, _HADAMARD
        if self.params.hadamard:
            rotated, block = load("sdnq.quant_utils").get_hadamard_group_size(
                shape.in_features, _HADAMARD
            )
        return load("sdnq.dequantizer").SDNQDequantizer(
            result_dtype=torch.float32,
            result_shape=plain if groups > 1 else None,
            original_shape=plain,
            original_stride=[shape.in_features, 1],
            quantized_weight_shape=grouped,
            quantized_scale_shape=torch.Size((*grouped[:-1], levels)),
            quantized_zero_point_shape=torch.Size((*grouped[:-1], 1)),
            weights_dtype=self._type,
            scale_dtype=nested,
            zero_point_dtype=nested,
            hadamard_group_size=block,
            group_size=size if groups > 1 else -1,
            use_hadamard=rotated,
            use_codebook=self.params.codebook,
            layer_class_name="Linear",
        )
