"""What every weight codec is: settings in, an exact storage promise, packed tensors out.

A codec sees a matrix [out, in]. A convolution arrives as [out, kh*kw*channels], channels last, so
that neighbouring columns are neighbouring input channels of one tap (`layers` does the reshape,
nobody else).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

import torch

from vqdq.errors import UserError
from vqdq.params import Params
from vqdq.progress import Report, silent
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightShape:
    """Shape of a weight as the codecs see it.

    Attributes:
        out_features: rows.
        in_features: columns, taps * channels.
        taps: kernel positions (kh*kw); 1 for a linear layer.
    """

    out_features: int
    in_features: int
    taps: int = 1

    @property
    def channels(self) -> int:
        """Input channels of one tap: a rotation or a group must not cross into the next tap."""
        return self.in_features // self.taps

    @property
    def count(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What a packed weight takes, everything counted: codes, scales, codebooks, padding."""

    tensors: tuple[TensorSpec, ...]
    num_weights: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.num_bytes for spec in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight: 8 * total_bytes / num_weights."""
        return 8 * self.total_bytes / self.num_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class InputStats:
    """Second moments of a layer's inputs, in the column order of its weight.

    Attributes:
        hessian: E[x xᵀ], float32 [in, in], or None when the codec works from the weight alone.
        mean: E[x], float32 [in], or None.
        num_samples: independent input vectors behind the moments.
        damping: share of mean(diag H) that is added to the diagonal before it is factorised.
    """

    hessian: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    num_samples: int = 0
    damping: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """An encoded weight: what is stored, and nothing that depends on a kernel or a device.

    Attributes:
        codec: registered name of the codec.
        params: its settings.
        shape: shape of the weight as the codec saw it.
        tensors: named tensors, exactly those of the codec's `layout`.
    """

    codec: str
    params: Params
    shape: WeightShape
    tensors: Mapping[str, torch.Tensor]

    @property
    def storage(self) -> Storage:
        """Measured storage of the tensors held here."""
        specs = tuple(TensorSpec.of(name, tensor) for name, tensor in self.tensors.items())
        return Storage(tensors=specs, num_weights=self.shape.count)

    def decode(self) -> torch.Tensor:
        """Returns the reconstructed weight, float32 [out, in]."""
        from vqdq.codecs import create  # the registry imports this module

        return create(self.codec, self.params).decode(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class EightBit:
    """A weight as 8-bit integers with one scale a row: Ŵ = scales ⊙ levels, in some basis.

    Attributes:
        levels: int8 [out, in], in the column order of the packed weight.
        scales: float32 [out].
        exact: Ŵ is the decoded weight itself, not its rounding to 8 bits.
        block: of the Hadamard rotation in whose basis the columns are; 0 for none.
        signs: of that rotation, one bit a column, uint8 [ceil(in / 8)]; None for none.
    """

    levels: torch.Tensor
    scales: torch.Tensor
    exact: bool = True
    block: int = 0
    signs: torch.Tensor | None = None


P = TypeVar("P", bound=Params)


class Codec(ABC, Generic[P]):
    """A weight codec with fixed settings. Subclasses are final and registered with `@register`.

    Class attributes: `name` (registered), `title` (for people), `summary` (one sentence),
    `reference` (arXiv id and section, or the standard), `settings` (its `Params` class),
    `uses_hessian` (False: a Hessian that is given is refused, never ignored), `needs_hessian`
    (True: nothing is encoded without one), `row_scales` (True: the tensor "scales" has one or more
    scales for each row and the decoded row is proportional to them, so fine-tuning can move them),
    `batched_search` (the kernel that takes several layers at once on a card; "" for none).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    settings: ClassVar[type[Params]]
    uses_hessian: ClassVar[bool] = False
    needs_hessian: ClassVar[bool] = False
    row_scales: ClassVar[bool] = True
    batched_search: ClassVar[str] = ""

    def __init__(self, params: P) -> None:
        self.params = params

    @classmethod
    def missing(cls) -> str:
        """Returns the command that installs what this codec needs, "" when it can be used."""
        return ""

    @abstractmethod
    def check(self, shape: WeightShape) -> None:
        """Raises `UserError` when this shape cannot be encoded (no `where`: callers add it)."""

    @abstractmethod
    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        """Returns the exact tensors that `encode` will produce for this shape, in closed form."""

    @abstractmethod
    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        """Returns the packed tensors of a finite float32 weight [out, in] that passed `check`."""

    @abstractmethod
    def decode(self, packed: Packed) -> torch.Tensor:
        """Returns the reconstructed weight, float32 [out, in], on the tensors' device or, without a
        kernel for it, on the processor.
        """

    def decode_as(self, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        """Returns `decode` rounded once to `dtype`; a codec that decodes to it at once saves a trip
        through float32.
        """
        return self.decode(packed).to(dtype)

    def product(
        self, packed: Packed, rows: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Returns rows [..., in] times the weight, plus bias, by a kernel that decodes the weight
        as it multiplies; None where there is none. In the dtype of the rows, with float32 sums.
        """
        del packed, rows, bias
        return None

    def eight_bit(self, packed: Packed) -> EightBit | None:
        """Returns the weight as int8 without any loss, perhaps in a rotated basis; None if none."""
        del packed
        return None

    def storage(self, shape: WeightShape) -> Storage:
        """Returns the predicted storage; equal to the measured one by contract."""
        return Storage(tensors=self.layout(shape), num_weights=shape.count)

    def encode(
        self,
        weight: torch.Tensor,
        *,
        taps: int = 1,
        stats: InputStats | None = None,
        generator: torch.Generator | None = None,
        report: Report = silent,
    ) -> Packed:
        """Returns the encoded weight.

        Args:
            weight: [out, in], any float dtype; convolutions as [out, taps*channels].
            taps: kernel positions of a convolution.
            stats: moments of the layer's inputs; None encodes from the weight alone.
            generator: source of all randomness; None is seed 0. Same seed, same bytes.
            report: progress; may raise `Cancelled`.

        Raises:
            UserError: not a matrix, NaN or infinite values, a shape the codec cannot take, or a
                Hessian that it does not use.
        """
        del report  # one layer is the unit of progress; a slow codec overrides `encode`
        shape = self._checked(weight, taps, stats)
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        tensors = self._encode(weight.detach().float().cpu(), shape, stats or InputStats(), source)
        return Packed(codec=self.name, params=self.params, shape=shape, tensors=tensors)

    def encode_each(
        self,
        weights: Sequence[torch.Tensor],
        *,
        taps: int,
        stats: Sequence[InputStats | None],
        generators: Sequence[torch.Generator],
    ) -> list[Packed]:
        """Returns what `encode` gives for each of several weights of one shape, the same bytes.

        A codec with a `batched_search` gives them to it together.
        """
        return [
            self.encode(weight, taps=taps, stats=known, generator=generator)
            for weight, known, generator in zip(weights, stats, generators, strict=True)
        ]

    def rescaled(self, packed: Packed, factors: torch.Tensor) -> Packed:
        """Returns `packed` with the scales of row r multiplied by factors[r], rounded to fp16.

        Only for codecs with `row_scales`; codes stay as they are.
        """
        scales = packed.tensors["scales"]
        wide = factors.to(scales.device).float().reshape(-1, *[1] * (scales.ndim - 1))
        limit = torch.finfo(scales.dtype).max
        moved = (scales.float() * wide).clamp(-limit, limit).to(scales.dtype)
        return replace(packed, tensors={**packed.tensors, "scales": moved})

    def _checked(self, weight: torch.Tensor, taps: int, stats: InputStats | None) -> WeightShape:
        """Returns the shape of a weight after everything that `encode` refuses was looked for."""
        shape = checked_shape(weight, taps)
        self.check(shape)
        self._check_hessian(shape, stats)
        return shape

    def _check_hessian(self, shape: WeightShape, stats: InputStats | None) -> None:
        hessian = None if stats is None else stats.hessian
        if hessian is None:
            if self.needs_hessian:
                raise UserError(
                    f'"{self.name}" needs the Hessian of the layer\'s inputs.',
                    remedy='Add "calibration" to the recipe, or pass hessian=….',
                )
            return
        if not self.uses_hessian:
            raise UserError(
                f'a Hessian was given, but "{self.name}" works from the weight alone.',
                remedy="Leave the Hessian out.",
            )
        width = shape.in_features
        if hessian.shape != (width, width):
            raise UserError(
                f"the Hessian is {list(hessian.shape)}, the weight has {width} columns.",
                remedy=f"Pass E[x xᵀ] of this layer's inputs, [{width}, {width}].",
            )
        if not bool(torch.isfinite(hessian).all()) or bool((hessian.diagonal() < 0).any()):
            raise UserError(
                "the Hessian holds NaN, infinite or negative second moments.",
                remedy="Calibrate again; the model may overflow on these prompts.",
            )


def checked_shape(weight: torch.Tensor, taps: int) -> WeightShape:
    """Returns the shape of a weight matrix after checking that it can be encoded at all.

    Raises:
        UserError: not a non-empty matrix, `taps` does not divide its columns, or non-finite values.
    """
    if weight.ndim != 2 or weight.numel() == 0:
        raise UserError(
            f"a weight of shape {list(weight.shape)} is not a matrix.",
            remedy="Pass [out_features, in_features] with at least one row and one column.",
        )
    if taps < 1 or weight.shape[1] % taps:
        raise UserError(
            f"{weight.shape[1]} columns are not {taps} taps.", remedy="Pass taps = kh*kw."
        )
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise UserError(
            f"{bad} of {weight.numel()} weights are NaN or infinite.",
            remedy="The checkpoint is damaged or diverged: use another one.",
        )
    return WeightShape(out_features=weight.shape[0], in_features=weight.shape[1], taps=taps)
