"""Round to nearest on an even grid: the baseline every method must beat, and the 8-bit choice.

Symmetric grids are ±½, ±1½, … steps (the even-level grid whose MSE-optimal step gives the textbook
.1188, .0374, .0115 at 2, 3, 4 bits); asymmetric ones have an integer zero point, as in Jacob et
al., arXiv 1712.05877, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq import kernels, packing
from vqdq.codecs import register, scales
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_PARTS = 48  # candidate ranges of the MSE search, from the full range down to 1/5 of it


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformParams(Params):
    """Settings of round to nearest."""

    bits: int = param(4, label="Bits per weight", unit="bits", low=2, high=8)
    group_size: int = param(
        0,
        label="Group size",
        help="Weights that share a scale: 0 is a whole row.",
        unit="weights",
        choices=(0, 16, 32, 64, 128),
        advanced=True,
    )
    symmetric: bool = param(
        True,
        label="Symmetric",
        help="One grid around zero; off stores a zero point beside each scale.",
        reference="arXiv 1712.05877, section 2.1",
        advanced=True,
    )
    clip: str = param(
        "mse",
        label="Range",
        help="The largest weight decides the range, or the range of least squared error.",
        choices=("mse", "absmax"),
        advanced=True,
    )


@register
class UniformCodec(Codec[UniformParams]):
    """Round to nearest, per row or per group, bit-packed."""

    name = "uniform"
    title = "Round to nearest"
    summary = "Each weight goes to the nearest of 2^bits even steps: the baseline."
    reference = "Jacob et al., arXiv 1712.05877, section 2"
    settings = UniformParams

    def check(self, shape: WeightShape) -> None:
        size = self.params.group_size
        if size and shape.channels % size:
            fits = [str(item) for item in (128, 64, 32, 16) if shape.channels % item == 0]
            raise UserError(
                f"{shape.channels} input channels cannot be split into groups of {size}.",
                remedy=f"Use group_size {' or '.join([*fits, '0'])} (0: a whole row).",
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        stream = packing.packed_bytes(shape.count, self.params.bits)
        groups = shape.in_features // self._size(shape)
        specs = [
            TensorSpec(name="codes", dtype=torch.uint8, shape=(stream,)),
            TensorSpec(name="scales", dtype=torch.float16, shape=(shape.out_features, groups)),
        ]
        if not self.params.symmetric:
            specs.append(
                TensorSpec(
                    name="zero_points", dtype=torch.uint8, shape=(shape.out_features, groups)
                )
            )
        return tuple(specs)

    def _size(self, shape: WeightShape) -> int:
        return self.params.group_size or shape.in_features

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del stats, generator  # the weight alone decides, and nothing is random
        grouped = weight.reshape(-1, self._size(shape))  # [groups, size]
        step, zero = self._best_range(grouped)
        codes = self._codes(grouped, step, zero)
        stored = {
            "codes": kernels.pack_bits(codes, self.params.bits),
            "scales": step.reshape(shape.out_features, -1).half(),
        }
        if self.params.symmetric:
            return stored
        return stored | {"zero_points": zero.to(torch.uint8).reshape(shape.out_features, -1)}

    def _ranges(self, grouped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns fp16-exact steps and zero points, [groups, n], for n parts of the full range."""
        highest = (1 << self.params.bits) - 1
        parts = torch.ones(1) if self.params.clip == "absmax" else torch.linspace(1.0, 0.2, _PARTS)
        exact = grouped.double()
        if self.params.symmetric:
            spans = 2 * exact.abs().amax(dim=1, keepdim=True) * parts
            return _half_exact(spans / highest), torch.full(spans.shape, highest / 2)
        low = exact.amin(dim=1, keepdim=True).clamp_max(0) * parts
        high = exact.amax(dim=1, keepdim=True).clamp_min(0) * parts
        steps = _half_exact((high - low) / highest)
        zeros = torch.where(steps > 0, -low / steps.clamp_min(1e-30), 0.0)
        return steps, zeros.round().clamp(0, highest).float()

    def _best_range(self, grouped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the step and zero point of every group, [groups]."""
        steps, zeros = self._ranges(grouped)
        if steps.shape[1] == 1:
            return steps[:, 0], zeros[:, 0]
        errors = kernels.grid_errors(grouped, steps, zeros, (1 << self.params.bits) - 1)
        best = errors.argmin(dim=1, keepdim=True)
        return steps.gather(1, best)[:, 0], zeros.gather(1, best)[:, 0]

    def _codes(self, grouped: torch.Tensor, step: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        safe = torch.where(step > 0, step, 1.0)[:, None]
        highest = (1 << self.params.bits) - 1
        return (grouped / safe + zero[:, None]).round().clamp(0, highest).to(torch.uint8)

    def decode(self, packed: Packed) -> torch.Tensor:
        shape, size = packed.shape, self._size(packed.shape)
        codes = kernels.unpack_bits(packed.tensors["codes"].cpu(), self.params.bits, shape.count)
        step = packed.tensors["scales"].cpu().float().reshape(-1, 1)
        if self.params.symmetric:
            zero = torch.tensor(((1 << self.params.bits) - 1) / 2)
        else:
            zero = packed.tensors["zero_points"].cpu().float().reshape(-1, 1)
        return ((codes.reshape(-1, size).float() - zero) * step).reshape(
            shape.out_features, shape.in_features
        )


def _half_exact(step: torch.Tensor) -> torch.Tensor:
    """Returns steps as float32 that fp16 holds exactly: what is searched with is what is stored."""
    return scales.to_half(step.float()).float()
