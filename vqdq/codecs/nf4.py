"""NF4: sixteen levels at quantiles of a Gaussian, times the largest weight of each small group.

QLoRA, arXiv 2305.14314, section 3. What differs, and why: the largest magnitude is kept in fp16
instead of fp32 (half the bytes, no measurable error); double quantization keeps it in 8 even steps
of the largest of 256, not as an 8-bit float around their mean: as many bits, and no sign to spend.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch

from vqdq.codecs import grids, register, scales
from vqdq.codecs.base import Packed, WeightShape
from vqdq.codecs.scalar import Grid, ScalarCodec
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_BLOCK = 256  # scales that share a second scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Nf4Params(Params):
    """Settings of NF4."""

    group_size: int = param(
        64,
        label="Group size",
        help="Weights that share a scale.",
        unit="weights",
        choices=(32, 64, 128, 256),
        reference="arXiv 2305.14314, section 3",
    )
    double_quant: bool = param(
        False,
        label="Double quantization",
        help="Keep the scales in 8 bits, with one 16-bit scale for 256 of them.",
        reference="arXiv 2305.14314, section 3",
        advanced=True,
    )


@register
class Nf4Codec(ScalarCodec[Nf4Params]):
    """The 4-bit NormalFloat of QLoRA, in groups, with feedback where there is a Hessian."""

    name = "nf4"
    title = "NF4"
    summary = "Sixteen levels at Gaussian quantiles, one scale for 64 weights: QLoRA's 4 bits."
    reference = "QLoRA, arXiv 2305.14314, section 3"
    settings = Nf4Params

    @property
    def _bits(self) -> int:
        return 4

    @property
    def _group_size(self) -> int:
        return self.params.group_size

    def _static_groups(self, shape: WeightShape) -> bool:
        del shape  # the largest weights decide, and double quantization needs all of them at once
        return True

    def _table(self) -> torch.Tensor:
        return normal_float_levels()

    def _fit(self, groups: torch.Tensor) -> Grid:
        steps = grids.half_exact(groups.abs().amax(dim=1))
        return Grid(steps=steps, zeros=torch.zeros_like(steps))

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        """Returns codes and one fp16 scale a group, or one byte a group and fp16 for 256 bytes."""
        codes, plain = super().layout(shape)
        if not self.params.double_quant:
            return codes, plain
        blocks = -(-plain.shape[0] * plain.shape[1] // _BLOCK)
        return (
            codes,
            TensorSpec(name="scales", dtype=torch.uint8, shape=plain.shape),
            TensorSpec(name="block_scales", dtype=torch.float16, shape=(blocks,)),
        )

    def _grid(self, weight: torch.Tensor, shape: WeightShape) -> Grid:
        grid = super()._grid(weight, shape)
        if not self.params.double_quant:
            return grid
        return replace(grid, steps=_wide(*_narrow(grid.steps)))  # what will be stored

    def _stored(self, grid: Grid) -> dict[str, torch.Tensor]:
        if not self.params.double_quant:
            return super()._stored(grid)
        narrow, blocks = _narrow(grid.steps)
        return {"scales": narrow, "block_scales": blocks}

    def _stored_grid(self, packed: Packed) -> Grid:
        if not self.params.double_quant:
            return super()._stored_grid(packed)
        steps = _wide(packed.tensors["scales"], packed.tensors["block_scales"])
        return Grid(steps=steps, zeros=torch.zeros_like(steps))

    def rescaled(self, packed: Packed, factors: torch.Tensor) -> Packed:
        """Returns `packed` with its scales moved, quantized twice again where they were."""
        if not self.params.double_quant:
            return super().rescaled(packed, factors)
        grid = self._stored_grid(packed)
        moved = grid.steps * factors.to(grid.steps.device).float().reshape(-1, 1)
        stored = self._stored(replace(grid, steps=moved))
        return replace(packed, tensors={**packed.tensors, **stored})


def _narrow(steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns steps in 255ths of the largest of their block, uint8, and the largest, fp16."""
    flat = steps.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).reshape(-1, _BLOCK)
    largest = scales.to_half(padded.amax(dim=1))
    safe = torch.where(largest > 0, largest.float(), 1.0)[:, None]
    narrow = (padded / safe * 255).round().clamp(0, 255).to(torch.uint8)
    return narrow.reshape(-1)[: len(flat)].reshape(steps.shape), largest


def _wide(narrow: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Returns the steps that `_narrow` stands for, float32."""
    shares = (largest.float() / 255).repeat_interleave(_BLOCK)[: narrow.numel()]
    return narrow.float() * shares.reshape(narrow.shape)


@cache
def normal_float_levels() -> torch.Tensor:
    """Returns the sixteen levels of NF4, float32, ascending from −1 to 1 with an exact zero.

    Eight quantiles of N(0,1) on the positive side and seven on the negative, at even shares between
    ½ and 1 − δ, δ = ½ (1/32 + 1/30), divided by the largest (arXiv 2305.14314, section 3 and
    appendix E).
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8, dtype=torch.float64)[:-1])
    zero = torch.zeros(1, dtype=torch.float64)
    levels = torch.cat((below, zero, above)).sort().values
    return (levels / levels.max()).float()
