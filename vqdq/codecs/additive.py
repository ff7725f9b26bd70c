"""Additive quantization: groups of weights as sums of codewords, one from each codebook.

The weight quantizer of VQDM (arXiv 2409.00492, section 3; AQLM, arXiv 2401.06118, section 3). What
differs, and why: codebooks are refitted in closed form instead of by Adam; under a Hessian, groups
are encoded once with error feedback instead of by coordinate descent (.0101 of the power against
.0263 at 3 bits on inputs with a 1/i spectrum); small layers share codebooks trained once on
Gaussian vectors, because their own would cost more than the codes (24 bits a weight at 64×64); a
Hadamard rotation makes weights as Gaussian as those codebooks expect (it can be switched off).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from vqdq import kernels, packing
from vqdq.codecs import block_feedback, codebooks, feedback, register, rotation, scales, tables
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_AUTO_BITS = 0.1  # "auto": a layer has its own codebooks where they cost at most this much a weight
_SAMPLE = 1 << 18  # vectors that a layer's codebooks are trained on, of all in larger layers
_SIZES = (16, 8, 4)
Found: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, fp16 scales, codebooks


@dataclass(frozen=True, kw_only=True, slots=True)
class AdditiveParams(Params):
    """Settings of the additive codec; num_codebooks * codeword_bits / group_size bits a weight."""

    num_codebooks: int = param(
        3,
        label="Codebooks",
        help="Codewords added up for a group; in groups of 8, each is one bit a weight.",
        low=1,
        high=4,
        reference="arXiv 2409.00492, section 3",
    )
    codeword_bits: int = param(
        8,
        label="Bits a codeword",
        help="A codebook has two to this power of codewords; fewer bits make rates in between.",
        unit="bits",
        choices=(4, 5, 6, 7, 8),
        reference="arXiv 2409.00492, section 4.1",
        advanced=True,
    )
    group_size: int = param(
        8,
        label="Group size",
        help="Neighbouring input channels coded together.",
        unit="weights",
        choices=(4, 8, 16),
        reference="arXiv 2409.00492, section 3",
    )
    codebooks: str = param(
        "auto",
        label="Codebooks kept",
        help="A layer's own, one universal set, or own ones where they cost at most 0.1 bit.",
        choices=("auto", "layer", "universal"),
        advanced=True,
    )
    rotation: int = param(
        256,
        label="Rotation block",
        help="Largest block of the Hadamard rotation of the inputs. VQDM has none (0); on the demo "
        "model it lowers the 3-bit error by 20 %, under its Hessians by 30 %.",
        choices=(0, 64, 128, 256),
        reference="arXiv 2402.04396, section 3",
        advanced=True,
    )
    beam: int = param(
        8,
        label="Beam",
        help="Partial sums kept in the search: more is better and slower.",
        low=1,
        high=32,
        reference="arXiv 2401.06118, section 3.3",
        advanced=True,
    )
    rounds: int = param(
        8,
        label="Training rounds",
        help="How often codes and codebooks (under a Hessian, scales too) are refitted, at most.",
        low=0,
        high=100,
        advanced=True,
    )
    tolerance: float = param(
        0.001,
        label="Tolerance",
        help="Stop when a round improves the error by a smaller share (VQDM: 0.01).",
        low=0.0,
        high=1.0,
        reference="arXiv 2409.00492, section 4.1",
        advanced=True,
    )


@register
class AdditiveCodec(Codec[AdditiveParams]):
    """Sums of codewords for groups of input channels, with one scale a row."""

    name = "additive"
    title = "Additive codebooks"
    summary = "Groups of weights become sums of codewords: the vector quantizer of VQDM."
    reference = "VQDM, arXiv 2409.00492, section 3"
    settings = AdditiveParams
    uses_hessian = True

    def check(self, shape: WeightShape) -> None:
        if shape.channels % self.params.group_size:
            fits = [str(size) for size in _SIZES if shape.channels % size == 0]
            remedy = (
                f"Use group_size {' or '.join(fits)}."
                if fits
                else 'Use "trellis" or "uniform", or keep this layer in 16 bits.'
            )
            raise UserError(
                f"{shape.channels} input channels cannot be split into groups of "
                f"{self.params.group_size}.",
                remedy=remedy,
            )

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        groups = shape.in_features // self.params.group_size
        codes = (shape.out_features, groups, self.params.num_codebooks)
        if self.params.codeword_bits < 8:  # a dense stream; eight bits need no packing
            codes = (packing.packed_bytes(math.prod(codes), self.params.codeword_bits),)
        specs = [
            TensorSpec(name="codes", dtype=torch.uint8, shape=codes),
            TensorSpec(name="scales", dtype=torch.float16, shape=(shape.out_features,)),
        ]
        if self._own_codebooks(shape):
            specs.append(
                TensorSpec(name="codebooks", dtype=torch.float16, shape=self._codebook_shape())
            )
        if rotation.block_size(shape, self.params.rotation):
            specs.append(rotation.spec(shape))
        return tuple(specs)

    def _codebook_shape(self) -> tuple[int, int, int]:
        return (self.params.num_codebooks, 1 << self.params.codeword_bits, self.params.group_size)

    def _own_codebooks(self, shape: WeightShape) -> bool:
        if self.params.codebooks != "auto":
            return self.params.codebooks == "layer"
        spec = TensorSpec(name="", dtype=torch.float16, shape=self._codebook_shape())
        return 8 * spec.num_bytes <= _AUTO_BITS * shape.count

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        block = rotation.block_size(shape, self.params.rotation)
        stored = rotation.random_signs(shape.in_features, generator)
        weight = rotation.rotate(weight, stored, block)
        row_scales = scales.to_half(scales.row_rms(weight))
        unit = scales.unit_rows(weight, row_scales.float())
        books, grid, own = self._universal(), codebooks.GRID, self._own_codebooks(shape)
        if own:
            grid = codebooks.grid_for(unit)
            books = self._trained(unit, grid, generator)
        if stats.hessian is None or not bool(stats.hessian.diagonal().any()):
            found = self._nearest(weight, unit, books, grid, own and self.params.rounds > 0)
        else:
            seen = rotation.rotate_hessian(stats.hessian.cpu().float(), stored, block)
            learn = own and self.params.rounds > 0
            found = self._under_hessian(weight, books, grid, learn, seen, stats.damping)
        codes, row_scales, values = found
        packed = {"codes": self._stored_codes(codes, shape), "scales": row_scales}
        if self._own_codebooks(shape):
            packed["codebooks"] = values.half()
        if block:
            packed["signs"] = stored
        return packed

    def _trained(self, unit: torch.Tensor, grid: int, generator: torch.Generator) -> torch.Tensor:
        """Returns codebooks trained on the layer's own vectors, starting from the universal."""
        vectors = codebooks.to_grid(unit, grid).reshape(-1, self.params.group_size)
        if len(vectors) > _SAMPLE:
            vectors = vectors[torch.randperm(len(vectors), generator=generator)[:_SAMPLE]]
        return codebooks.refine(
            vectors,
            codebooks.rounded(self._universal() * (grid / codebooks.GRID)),
            beam=self.params.beam,
            rounds=self.params.rounds,
            tolerance=self.params.tolerance,
        )

    def _nearest(
        self, weight: torch.Tensor, unit: torch.Tensor, books: torch.Tensor, grid: int, learn: bool
    ) -> Found:
        """Returns codes, scales and codebooks with the least squared error of the weight."""
        vectors = codebooks.to_grid(unit, grid).reshape(-1, self.params.group_size)
        codes = kernels.additive_encode(vectors, books, self.params.beam)
        if learn:
            books = codebooks.refit(vectors, codes, books)
        values = books.float() / grid
        fitted = scales.fitted_scales(weight, self._levels(codes, values, len(weight)))
        return codes, scales.to_half(fitted), values

    def _under_hessian(
        self,
        weight: torch.Tensor,
        books: torch.Tensor,
        grid: int,
        learn: bool,
        hessian: torch.Tensor,
        damping: float,
    ) -> Found:
        """Returns codes, scales and codebooks with a small tr(Δ H Δᵀ): the best of all rounds.

        A round encodes with error feedback for the present scales and codebooks, and refits both to
        the codes it found. The groups with the strongest inputs go first: 0.45 to 0.6 dB on layers
        of the demo model.
        """
        size = self.params.group_size
        sequence = feedback.strongest_first(hessian, size)[::size] // size
        order = (sequence[:, None] * size + torch.arange(size)).reshape(-1)
        weight, hessian = weight[:, order], hessian[order[:, None], order]
        groups = block_feedback.by_groups(feedback.factor(hessian, damping), size)
        row_scales = scales.to_half(scales.row_rms(weight))
        best, least = None, float("inf")
        for _ in range(max(1, self.params.rounds)):
            unit = scales.unit_rows(weight, row_scales.float())
            codes = kernels.additive_feedback(
                unit * grid, groups.unit, groups.metric, books, self.params.beam
            )
            values = books.float() / grid
            if learn:
                wide = block_feedback.refit(
                    weight, codes, row_scales.float(), values, hessian, damping
                )
                books = codebooks.to_grid(wide, grid)
                values = books.float() / grid
            levels = self._levels(codes, values, len(weight))
            row_scales = scales.to_half(scales.fitted_scales(weight, levels, hessian, damping))
            decoded = levels * row_scales.float()[:, None]
            loss = block_feedback.weighted_loss(weight, decoded, hessian, damping)
            enough = loss >= (1 - self.params.tolerance) * least
            if loss < least or best is None:
                best, least = (codes, row_scales, values), loss
            if enough:
                break
        assert best is not None
        codes, row_scales, values = best
        placed = codes.reshape(len(weight), -1, codes.shape[1])[:, sequence.argsort()]
        return placed.reshape(codes.shape), row_scales, values

    def _levels(self, codes: torch.Tensor, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Returns the sums of codewords without scales, float32 [rows, columns]."""
        return kernels.additive_decode(codes, values, torch.ones(rows), len(codes) // rows)

    def _universal(self, device: torch.device = torch.device("cpu")) -> torch.Tensor:  # noqa: B008
        params = self.params
        shape = (params.num_codebooks, params.group_size, params.codeword_bits)
        shipped = tables.additive(*shape, device)
        return codebooks.to_grid(shipped.float())

    def _stored_codes(self, codes: torch.Tensor, shape: WeightShape) -> torch.Tensor:
        if self.params.codeword_bits < 8:
            return kernels.pack_bits(codes.reshape(-1), self.params.codeword_bits)
        return codes.reshape(shape.out_features, -1, self.params.num_codebooks)

    def _codes(self, packed: Packed) -> torch.Tensor:
        """Returns the codes of a packed weight, uint8 [rows*groups, M]."""
        stored, bits = packed.tensors["codes"], self.params.codeword_bits
        if bits < 8:
            count = packed.shape.count // self.params.group_size * self.params.num_codebooks
            stored = kernels.unpack_bits(stored, bits, count)
        return stored.reshape(-1, self.params.num_codebooks)

    def decode(self, packed: Packed) -> torch.Tensor:
        return self.decode_as(packed, torch.float32)

    def decode_as(self, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        row_scales = packed.tensors["scales"].float()
        if "codebooks" in packed.tensors:
            values = packed.tensors["codebooks"].float()
        else:
            values = self._universal(row_scales.device).float() / codebooks.GRID
        groups = packed.shape.in_features // self.params.group_size
        codes, block = self._codes(packed), rotation.block_size(packed.shape, self.params.rotation)
        if block == 0:
            return kernels.additive_decode(codes, values, row_scales, groups, dtype)
        signs = rotation.signs(packed.tensors["signs"], packed.shape.in_features)
        return kernels.additive_decode_rotated(
            codes, values, row_scales, groups, block, signs, dtype
        )

    def codebook_gradient(self, packed: Packed, weight_gradient: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of a loss by the stored codebooks, float32 [M, codewords, dim].

        The adjoint of `decode`: un-rotate, scale by row, add up by code. Empty ([0]) for a layer on
        the universal codebooks, which has none to learn.

        Args:
            packed: what `encode` returned.
            weight_gradient: gradient of the loss by the decoded weight, float32 [out, in].
        """
        if "codebooks" not in packed.tensors:
            return torch.zeros(0)
        block = rotation.block_size(packed.shape, self.params.rotation)
        turned = weight_gradient.detach().cpu().float()
        if block:  # decode multiplies by (S H)ᵀ, and S H is orthogonal
            turned = rotation.rotate(turned, packed.tensors["signs"].cpu(), block)
        return kernels.additive_gradient(
            self._codes(packed).cpu(),
            turned,
            packed.tensors["scales"].cpu().float(),
            self._codebook_shape(),
        )

    def with_codebooks(self, packed: Packed, learnt: torch.Tensor) -> Packed:
        """Returns `packed` with these codebooks [M, codewords, dim], on the grid that decode sums.

        Codebooks are stored on the grid of 1/128, on which sums are exact.

        Raises:
            UserError: a layer on the universal codebooks, which cannot be changed.
        """
        if "codebooks" not in packed.tensors:
            raise UserError(
                "this layer uses the universal codebooks.",
                remedy='Encode it with codebooks="layer" to learn its own.',
            )
        stored = packed.tensors["codebooks"]
        books = codebooks.stored(learnt.detach().float())
        return replace(packed, tensors={**packed.tensors, "codebooks": books.to(stored.device)})
