"""What the scalar codecs share: levels times scales, groups, bit-packing and error feedback.

A scalar codec is a small sorted table of levels and a grid: each weight becomes
(level − zero) * step, with one step (and, where grids are lopsided, one zero point) a row or a
group of columns. With a Hessian, columns are rounded in turn and each error is made good by the
columns after it (`feedback`); the bytes stored are of the same form either way.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from vqdq import kernels, packing
from vqdq.codecs import feedback, scales
from vqdq.codecs.base import Codec, InputStats, Packed, WeightShape
from vqdq.params import Params
from vqdq.tensors import TensorSpec

P = TypeVar("P", bound=Params)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Where the levels of each group lie, as stored.

    Attributes:
        steps: float32 numbers that fp16 holds exactly, [rows, groups] or [groups].
        zeros: zero points in table units, same shape.
    """

    steps: torch.Tensor
    zeros: torch.Tensor


class ScalarCodec(Codec[P]):
    """A table of levels, a grid for each group of columns, `_bits` a weight."""

    uses_hessian = True

    @property
    @abstractmethod
    def _bits(self) -> int:
        """Bits of a code."""

    @property
    @abstractmethod
    def _group_size(self) -> int:
        """Neighbouring columns that share a scale; 0 is a whole row."""

    @property
    def _stores_zeros(self) -> bool:
        """Whether each group has a zero point of its own, kept as one byte."""
        return False

    @property
    def _centre(self) -> float:
        """The zero point of all groups where none is stored, in table units."""
        return 0.0

    @property
    def _strongest_first(self) -> bool:
        """Whether feedback goes by falling strength of the inputs, not from left to right."""
        return True

    @property
    def _refits(self) -> bool:
        """Whether a row's one scale is refitted by least squares (under H) after rounding."""
        return False

    def _static_groups(self, shape: WeightShape) -> bool:
        """Whether grids come from the weights, not from what feedback has made of them.

        Fixed grids let columns be sorted across groups. Grids of the largest weight lose nothing by
        it, and on layers of the demo model it is worth 0.15 to 0.3 dB (groups of 64 and 128).
        """
        return self._num_groups(shape) == 1

    @abstractmethod
    def _table(self) -> torch.Tensor:
        """Returns the levels in ascending order, float32 [2**bits]."""

    @abstractmethod
    def _fit(self, groups: torch.Tensor) -> Grid:
        """Returns the grid of each row of float32 [n, size]."""

    def check(self, shape: WeightShape) -> None:
        """Every shape can be encoded: the last group of a row may be shorter."""

    def layout(self, shape: WeightShape) -> tuple[TensorSpec, ...]:
        """Returns the codes, one fp16 scale a group, and zero points where grids are lopsided."""
        stream = packing.packed_bytes(shape.count, self._bits)
        grid = (shape.out_features, self._num_groups(shape))
        specs = [
            TensorSpec(name="codes", dtype=torch.uint8, shape=(stream,)),
            TensorSpec(name="scales", dtype=torch.float16, shape=grid),
        ]
        if self._stores_zeros:
            specs.append(TensorSpec(name="zero_points", dtype=torch.uint8, shape=grid))
        return tuple(specs)

    def _size(self, shape: WeightShape) -> int:
        return min(self._group_size or shape.in_features, shape.in_features)

    def _num_groups(self, shape: WeightShape) -> int:
        return -(-shape.in_features // self._size(shape))

    def _group_of(self, shape: WeightShape) -> torch.Tensor:
        """Returns the group of every column, int64 [in]."""
        return torch.arange(shape.in_features) // self._size(shape)

    def _grid(self, weight: torch.Tensor, shape: WeightShape) -> Grid:
        """Returns the grid of every group of a weight, [rows, groups]."""
        size, rows = self._size(shape), shape.out_features
        whole = shape.in_features // size * size
        parts = [self._fit(weight[:, :whole].reshape(-1, size))]
        if whole < shape.in_features:  # a shorter last group
            parts.append(self._fit(weight[:, whole:].contiguous()))
        return Grid(
            steps=torch.cat([part.steps.reshape(rows, -1) for part in parts], dim=1),
            zeros=torch.cat([part.zeros.reshape(rows, -1) for part in parts], dim=1),
        )

    def _encode(
        self,
        weight: torch.Tensor,
        shape: WeightShape,
        stats: InputStats,
        generator: torch.Generator,
    ) -> dict[str, torch.Tensor]:
        del generator  # nothing is random
        weight = weight.contiguous()
        if stats.hessian is None or self._static_groups(shape):
            grid = self._grid(weight, shape)
            codes = self._codes(weight, grid, shape, stats)
        else:
            grid, codes = self._adapted(weight, shape, stats.hessian, stats.damping)
        if self._refits and self._num_groups(shape) == 1:
            levels = self._table()[codes.int()] - grid.zeros
            fitted = scales.fitted_scales(weight, levels, stats.hessian, stats.damping)
            grid = replace(grid, steps=scales.to_half(fitted).float()[:, None])
        return {"codes": kernels.pack_bits(codes, self._bits), **self._stored(grid)}

    def _order(self, hessian: torch.Tensor, group_size: int = 0) -> torch.Tensor:
        """Returns the columns in the order in which they are rounded."""
        if self._strongest_first:
            return feedback.strongest_first(hessian, group_size)
        return torch.arange(len(hessian))

    def _codes(
        self, weight: torch.Tensor, grid: Grid, shape: WeightShape, stats: InputStats
    ) -> torch.Tensor:
        """Returns codes on a fixed grid, uint8 [rows, in]; with feedback where H is given."""
        order, factor = torch.arange(shape.in_features), None
        if stats.hessian is not None:
            order = self._order(stats.hessian)
            factor = feedback.factor(stats.hessian, stats.damping, order)
        turned, group = weight.T[order], self._group_of(shape)[order]
        steps, zeros, table = grid.steps.T.contiguous(), grid.zeros.T.contiguous(), self._table()

        def round_block(
            columns: slice, targets: torch.Tensor, unit: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            exact, place = turned[columns], group[columns]
            return kernels.round_columns(targets, exact, unit, steps, zeros, place, table)

        codes = torch.empty(turned.shape, dtype=torch.uint8)
        codes[order] = feedback.round_blocks(turned, factor, round_block)
        return codes.T.contiguous()

    def _adapted(
        self, weight: torch.Tensor, shape: WeightShape, hessian: torch.Tensor, damping: float
    ) -> tuple[Grid, torch.Tensor]:
        """Returns grids fitted to each group when feedback reaches it, and the codes on them.

        Against grids fitted to the weights beforehand the loss is 2 to 3 % lower in groups of 64,
        7 % in groups of 16, where grids have the least squared error (4 bits, eigenvalues i⁻¹).
        """
        size, table = self._size(shape), self._table()
        order = self._order(hessian, size)
        turned, grids = weight.T[order], list[Grid]()

        def round_block(
            columns: slice, targets: torch.Tensor, unit: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            exact = turned[columns]
            wanted = feedback.compensated(exact, targets, unit)
            grid = self._fit(wanted.T.contiguous())
            grids.append(grid)
            place = torch.zeros(len(exact), dtype=torch.int32)
            steps, zeros = grid.steps[None], grid.zeros[None]
            return kernels.round_columns(targets, exact, unit, steps, zeros, place, table)

        factor = feedback.factor(hessian, damping, order)
        codes = torch.empty(turned.shape, dtype=torch.uint8)
        codes[order] = feedback.round_blocks(turned, factor, round_block, size)
        back = (order[::size] // size).argsort()
        steps = torch.stack([grid.steps for grid in grids], dim=1)[:, back]
        zeros = torch.stack([grid.zeros for grid in grids], dim=1)[:, back]
        return Grid(steps=steps, zeros=zeros), codes.T.contiguous()

    def _stored(self, grid: Grid) -> dict[str, torch.Tensor]:
        """Returns the tensors that hold a grid."""
        stored = {"scales": scales.to_half(grid.steps)}
        if self._stores_zeros:
            stored["zero_points"] = grid.zeros.to(torch.uint8)
        return stored

    def _stored_grid(self, packed: Packed) -> Grid:
        """Returns the grid that a packed weight holds, [rows, groups]."""
        steps = packed.tensors["scales"].float()
        if self._stores_zeros:
            return Grid(steps=steps, zeros=packed.tensors["zero_points"].float())
        return Grid(steps=steps, zeros=torch.full_like(steps, self._centre))

    def decode(self, packed: Packed) -> torch.Tensor:
        """Returns (level − zero) * step, float32 [out, in]."""
        shape, grid = packed.shape, self._stored_grid(packed)
        codes = kernels.unpack_bits(packed.tensors["codes"], self._bits, shape.count)
        levels = self._table().to(codes.device)[codes.int()]
        if shape.in_features % self._size(shape) == 0:
            levels = levels.reshape(*grid.steps.shape, -1)  # [rows, groups, size]
            wide = (levels - grid.zeros[..., None]) * grid.steps[..., None]
        else:
            group, levels = self._group_of(shape), levels.reshape(shape.out_features, -1)
            wide = (levels - grid.zeros[:, group]) * grid.steps[:, group]
        return wide.reshape(shape.out_features, shape.in_features)
