"""Additive quantization: groups of weights as sums of codewords, one from each codebook.

The weight quantizer of VQDM (arXiv 2409.00492, section 3; AQLM, arXiv 2401.06118, section 3). What
differs, and why: codebooks are refitted in closed form instead of by Adam; small layers share
codebooks trained once on Gaussian vectors, because their own would cost more than the codes
(24 bits a weight at 64×64); a Hadamard rotation makes weights as Gaussian as those codebooks expect
(it can be switched off); rows weigh alike after division by their scale, so a row of large weights
does not take the codebook from the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vqdq import kernels
from vqdq.codecs import codebooks, register, rotation, scales, tables
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, param
from vqdq.tensors import TensorSpec

_AUTO_BITS = 0.1  # "auto": a layer has its own codebooks where they cost at most this much a weight
_SAMPLE = 32768  # vectors that a layer's codebooks are trained on
_SIZES = (16, 8, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdditiveParams(Params):
    """Settings of the additive codec; 8 * num_codebooks / group_size bits a weight."""

    num_codebooks: int = param(
        3,
        label="Codebooks",
        help="Codewords added up for a group; in groups of 8, each is one bit a weight.",
        low=1,
        high=4,
        reference="arXiv 2409.00492, section 3",
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
        128,
        label="Rotation block",
        help="Largest block of the Hadamard rotation of the inputs; 0 rotates nothing, as VQDM.",
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
        help="How often a layer's own codes and codebooks are refitted in turn.",
        low=0,
        high=100,
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
        return (self.params.num_codebooks, codebooks.CODEWORDS, self.params.group_size)

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
        del stats  # the weight alone decides
        block = rotation.block_size(shape, self.params.rotation)
        stored = rotation.random_signs(shape.in_features, generator)
        weight = rotation.rotate(weight, stored, block)
        start = scales.to_half(scales.row_rms(weight)).float()
        unit = scales.unit_rows(weight, start)
        vectors = codebooks.to_grid(unit).reshape(-1, self.params.group_size)
        books = self._universal()
        if self._own_codebooks(shape):
            picked = torch.randperm(len(vectors), generator=generator)[:_SAMPLE]
            books = codebooks.refine(
                vectors[picked], books, beam=self.params.beam, rounds=self.params.rounds
            )
        codes = kernels.additive_encode(vectors, books, self.params.beam)
        values = books.float() / codebooks.GRID
        groups = shape.in_features // self.params.group_size
        ones = torch.ones(shape.out_features)
        levels = kernels.additive_decode(codes, values, ones, groups)
        fitted = scales.fitted_scales(weight, levels)
        packed = {
            "codes": codes.reshape(shape.out_features, groups, self.params.num_codebooks),
            "scales": scales.to_half(fitted),
        }
        if self._own_codebooks(shape):
            packed["codebooks"] = values.half()
        if block:
            packed["signs"] = stored
        return packed

    def _universal(self) -> torch.Tensor:
        shipped = tables.additive(self.params.num_codebooks, self.params.group_size)
        return codebooks.to_grid(shipped.float())

    def decode(self, packed: Packed) -> torch.Tensor:
        if "codebooks" in packed.tensors:
            values = packed.tensors["codebooks"].cpu().float()
        else:
            values = self._universal().float() / codebooks.GRID
        codes = packed.tensors["codes"].cpu()
        row_scales = packed.tensors["scales"].cpu().float()
        rotated = kernels.additive_decode(
            codes.reshape(-1, codes.shape[2]), values, row_scales, codes.shape[1]
        )
        block = rotation.block_size(packed.shape, self.params.rotation)
        return (
            rotation.unrotate(rotated, packed.tensors["signs"].cpu(), block) if block else rotated
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
        codes = packed.tensors["codes"].cpu()
        return kernels.additive_gradient(
            codes.reshape(-1, codes.shape[2]),
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
        books = (codebooks.to_grid(learnt.detach().float()).float() / codebooks.GRID).half()
        return replace(packed, tensors={**packed.tensors, "codebooks": books.to(stored.device)})
