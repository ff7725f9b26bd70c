"""Trellis-coded quantization: each weight is read from a window of L bits of one bit stream.

The code of QTIP (arXiv 2406.11235: bit-shift trellis section 3.1, tail-biting section 3.2), written
anew. What differs, and why: a trained universal table instead of a computed code (up to L = 12 it
fits the first cache, and training it gains most at small L); sequences run down 256 rows of a
column instead of over a 16×16 tile, so that error feedback goes column by column without loss; the
output side is rotated only on request (it gains 2 %); one fp16 scale a row, refitted in closed
form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vqdq import kernels, packing
from vqdq.codecs import feedback, register, rotation, scales, tables
from vqdq.codecs.base import (
    Codec,
    EightBit,
    InputStats,
    Packed,
    WeightShape,
)
from vqdq.errors import UserError
from vqdq.kernels import few_rows
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class TrellisParams(Params):
    """Settings of the trellis codec."""

    bits: int = param(
        3, label="Bits per weight", unit="bits", low=2, high=6, reference="arXiv 2406.11235"
    )
    state_bits: int = param(
        12,
        label="State bits",
        help="Window read for each weight: 16 is best, 10 encodes three times faster than 12.",
        unit="bits",
        choices=(8, 10, 12, 14, 16),
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
    output_rotation: int = param(
        0,
        label="Output rotation block",
        help="Largest block of a rotation of the outputs, 0 for none; decoding takes longer.",
        choices=(0, 64, 128, 256),
        reference="arXiv 2402.04396, section 3",
        advanced=True,
    )


@dataclass(kw_only=True, slots=True)
class _Begun:
    """A layer on its way: [rows, columns] each.

    Attributes:
        rotated: the weight; wanted: int16 targets of `kernels.trellis_encode`, or for feedback the
            rows of power 1 in the order of `order`.
        signs, row_signs: of the rotations.
        hessian, damping: of the rotated inputs; order, factor: of the feedback.
    """

    rotated: torch.Tensor
    wanted: torch.Tensor | None
    signs: torch.Tensor
    row_signs: torch.Tensor
    hessian: torch.Tensor | None
    damping: float
    order: torch.Tensor | None
    factor: torch.Tensor | None

    def taken(self) -> torch.Tensor:
        """Returns what is wanted, once."""
        wanted, self.wanted = self.wanted, None
        assert wanted is not None
        return wanted


@register
class TrellisCodec(Codec[TrellisParams]):
    """Bit-shift trellis along the output rows, after a random Hadamard rotation of the inputs.

    The tensor "codes" is uint8 [rows*bits/8, columns], see `kernels.trellis_encode`.
    """

    name = "trellis"
    title = "Trellis"
    summary = "Each weight is read from overlapping bits of one stream: least error at every size."
    reference = "QTIP, arXiv 2406.11235, section 3"
    settings = TrellisParams
    uses_hessian = True
    batched_search = "trellis_encode"

    def check(self, shape: WeightShape) -> None:
        bits, state_bits = self.params.bits, self.params.state_bits
        allowed = [wide for few, wide in tables.TRELLIS_SHAPES if few == bits]
        if state_bits not in allowed:
            raise UserError(
                f"there is no table for {bits} bits with {state_bits} state bits.",
                remedy=f"Use {' or '.join(map(str, allowed))} state bits.",
            )
        need = -(-state_bits // bits)
        if shape.out_features < need:
            raise UserError(
                f"{shape.out_features} output rows are fewer than the {need} that a trellis of "
                f"{state_bits} state bits closes on.",
                remedy='Use "uniform" or keep this layer in 16 bits.',
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        code_bytes = packing.packed_bytes(shape.out_features, self.params.bits)
        specs = [
            TensorSpec(name="codes", dtype=torch.uint8, shape=(code_bytes, shape.in_features)),
            TensorSpec(name="scales", dtype=torch.float16, shape=(shape.out_features,)),
        ]
        if self._block(shape):
            specs.append(rotation.spec(shape))
        if self._row_block(shape):
            specs.append(replace(rotation.spec(_turned(shape)), name="row_signs"))
        return tuple(specs)

    def _block(self, shape: WeightShape) -> int:
        return rotation.block_size(shape, self.params.rotation)

    def _row_block(self, shape: WeightShape) -> int:
        return rotation.block_size(_turned(shape), self.params.output_rotation)

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        begun = self._begun(weight, shape, stats, generator)
        (codes,) = self._searched([begun], shape)
        return self._ended(begun, codes, shape)

    def encode_each(
        self,
        weights: Sequence[torch.Tensor],
        *,
        taps: int,
        stats: Sequence[InputStats | None],
        generators: Sequence[torch.Generator],
    ) -> list[Packed]:
        shape, *_ = [
            self._checked(weight, taps, known) for weight, known in zip(weights, stats, strict=True)
        ]
        begun: list[_Begun] = []
        for weight, known, generator in zip(weights, stats, generators, strict=True):
            wide = weight.detach().float().cpu()
            begun.append(self._begun(wide, shape, known or InputStats(), generator))
        return [
            Packed(
                codec=self.name,
                params=self.params,
                shape=shape,
                tensors=self._ended(each, codes, shape),
            )
            for each, codes in zip(begun, self._searched(begun, shape), strict=True)
        ]

    def _begun(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> _Begun:
        """Returns what there is to search for: rows of one power, rotated."""
        block, row_block = self._block(shape), self._row_block(shape)
        signs = rotation.random_signs(shape.in_features, generator)
        row_signs = rotation.random_signs(shape.out_features, generator)
        rotated = rotation.rotate(weight, signs, block)
        start = scales.to_half(scales.row_rms(rotated)).float()
        unit = scales.unit_rows(rotated, start)
        unit = _rows(rotation.rotate, unit, row_signs, row_block)
        hessian, order, factor = stats.hessian, None, None
        if hessian is None:
            unit *= kernels.COST_UNITS / tables.TRELLIS_STEP  # a copy of ours
            unit = unit.round_().clamp_(-32000, 32000).to(torch.int16)
        else:
            hessian = rotation.rotate_hessian(hessian.cpu(), signs, block)
            order = feedback.strongest_first(hessian)
            factor = feedback.factor(hessian, stats.damping, order).unit
            unit = unit[:, order]
        return _Begun(
            rotated=rotated,
            wanted=unit,
            signs=signs,
            row_signs=row_signs,
            hessian=hessian,
            damping=stats.damping,
            order=order,
            factor=factor,
        )

    def _searched(self, begun: Sequence[_Begun], shape: WeightShape) -> list[torch.Tensor]:
        """Returns the codes of layers of one shape, and forgets what they were searched for.

        Without feedback all columns are alike, whichever layer they belong to.
        """
        bits, table = self.params.bits, tables.trellis(self.params.bits, self.params.state_bits)
        wanted = [each.taken() for each in begun]
        orders = [each.order for each in begun if each.order is not None]
        if not orders:
            whole = wanted[0] if len(wanted) == 1 else torch.cat(wanted, dim=1)
            del wanted
            return list(kernels.trellis_encode(whole, table, bits).split(shape.in_features, dim=1))
        steps = torch.full((shape.out_features,), tables.TRELLIS_STEP)
        factors = [each.factor for each in begun if each.factor is not None]
        if len(begun) == 1:
            codes = [kernels.trellis_feedback(wanted[0], steps, factors[0], table, bits)]
        else:
            size = steps.expand(len(begun), -1)
            found = kernels.trellis_feedback(
                torch.stack(wanted), size, torch.stack(factors), table, bits
            )
            codes = list(found)
        # columns are stored as they stand
        return [each[:, order.argsort()] for each, order in zip(codes, orders, strict=True)]

    def _ended(
        self, begun: _Begun, codes: torch.Tensor, shape: WeightShape
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors of a layer whose codes were found, with scales fitted to them."""
        bits, block, row_block = self.params.bits, self._block(shape), self._row_block(shape)
        codes = codes.contiguous()
        tensors: dict[str, torch.Tensor] = {}
        if block:
            tensors["signs"] = begun.signs
        if row_block:
            tensors["row_signs"] = begun.row_signs
        table = tables.trellis(bits, self.params.state_bits)
        levels = kernels.trellis_decode(codes, table, bits, shape.out_features)
        values = levels.float().mul_(tables.TRELLIS_STEP)
        del levels
        values = _rows(rotation.unrotate, values, begun.row_signs, row_block)
        fitted = scales.fitted_scales(begun.rotated, values, begun.hessian, begun.damping)
        return {"codes": codes, "scales": scales.to_half(fitted), **tensors}

    def levels(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the rotated weight as int8 [out, in] and its float32 row scales [out].

        With an output rotation the levels are those of the rotated rows, and the scales apply after
        they are rotated back.
        """
        codes, rows = packed.tensors["codes"], packed.shape.out_features
        table = tables.trellis(self.params.bits, self.params.state_bits, codes.device)
        levels = kernels.trellis_decode(codes, table, self.params.bits, rows)
        return levels, packed.tensors["scales"].float() * tables.TRELLIS_STEP

    def eight_bit(self, packed: Packed) -> EightBit | None:
        """Returns the table's levels in the rotated basis; None where no input can meet them there:
        rotated outputs, or a rotation with other signs for each tap of a convolution.
        """
        block = self._block(packed.shape)
        if self._row_block(packed.shape) or (block and packed.shape.taps > 1):
            return None
        levels, row_scales = self.levels(packed)
        signs = packed.tensors["signs"] if block else None
        return EightBit(levels=levels, scales=row_scales, block=block, signs=signs)

    def decode(self, packed: Packed) -> torch.Tensor:
        return self.decode_as(packed, torch.float32)

    def decode_as(self, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        block, row_block = self._block(packed.shape), self._row_block(packed.shape)
        tensors = packed.tensors
        if row_block:
            levels, row_scales = self.levels(packed)
            values = _rows(rotation.unrotate, levels.float(), tensors["row_signs"], row_block)
            scaled = values * row_scales[:, None]
            whole = rotation.unrotate(scaled, tensors["signs"], block) if block else scaled
            return whole.to(dtype)
        return kernels.trellis_weight(*self._coded(packed), dtype)

    def product(
        self, packed: Packed, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        if self._row_block(packed.shape) or not few_rows.takes(rows):
            return None
        return few_rows.trellis_product(rows, *self._coded(packed), bias)

    def _coded(
        self, packed: Packed
    ) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor, int]:
        """Returns codes, table, bits, scales, signs and block, as `kernels.trellis_weight` asks."""
        columns, codes = packed.shape.in_features, packed.tensors["codes"]
        block = self._block(packed.shape)
        ones = torch.ones(0 if block else columns, device=codes.device)
        signs = rotation.signs(packed.tensors["signs"], columns) if block else ones
        table = tables.trellis(self.params.bits, self.params.state_bits, codes.device)
        steps = packed.tensors["scales"].float() * tables.TRELLIS_STEP
        return codes, table, self.params.bits, steps, signs, max(block, 1)


def _turned(shape: WeightShape) -> WeightShape:
    """Returns the shape of the transposed weight, whose columns are the outputs."""
    return WeightShape(out_features=shape.in_features, in_features=shape.out_features)


def _rows(
    turn: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    weight: torch.Tensor,
    signs: torch.Tensor,
    block: int,
) -> torch.Tensor:
    """Returns the weight with its rows, instead of its columns, rotated or rotated back."""
    return weight if block == 0 else turn(weight.T.contiguous(), signs, block).T.contiguous()
