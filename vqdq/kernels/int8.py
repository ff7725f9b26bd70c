"""Activations as 8-bit codes and back: what stands before and behind an integer product.

Codes are exactly those of `vqdq.activations.base.quantize`: x times the float32 reciprocal of the
scale, rounded to even, plus zero, clamped. The products themselves are in `int8_products`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from vqdq.kernels.backend import run

OPERATIONS = (
    "line_extremes",
    "row_codes",
    "own_codes",
    "group_codes",
    "stacked_codes",
    "scaled_rows",
    "add_rows",
    "summed_groups",
)
SMALLEST_SCALE = 1e-12  # as in `vqdq.activations.base`
_EMPTY = torch.empty(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Rows of activations, and what is done to each before it is rounded.

    Attributes:
        values: rows [batch, positions, channels], or maps [batch, channels, height, width] in any
            memory format; a position of a map is a pixel. Computed with in float32; float32 and
            bfloat16 are read as they are.
        divisor: float32 [channels] that each row is divided by; empty for none.
        signs: float32 ±1 [channels] that a row is multiplied by before it is rotated.
        block: of the Hadamard rotation, see `vqdq.kernels.hadamard`; 0 for none.
    """

    values: torch.Tensor
    divisor: torch.Tensor = _EMPTY
    signs: torch.Tensor = _EMPTY
    block: int = 0

    def on(self, device: torch.device) -> Lines:
        """Returns the same lines on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("values", "divisor", "signs")}
        return replace(self, **moved)

    @property
    def is_map(self) -> bool:
        """Whether the values are maps."""
        return self.values.ndim == 4

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Batch, positions, channels."""
        if self.is_map:
            batch, channels, height, width = self.values.shape
            return batch, height * width, channels
        batch, positions, channels = self.values.shape
        return batch, positions, channels


class Border(NamedTuple):
    """Rows and columns around a map that stand for 0."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def around(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of a map with this border."""
        return height + self.top + self.bottom, width + self.left + self.right


NO_BORDER = Border()


def line_extremes(lines: Lines) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Returns the least and the largest value of each row, float32 [batch, positions], and whether
    all values are finite (else the extremes mean nothing).
    """
    return _run("line_extremes", lines)


def row_codes(
    lines: Lines,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    border: Border = NO_BORDER,
) -> tuple[torch.Tensor, bool]:
    """Returns codes with given grids, and whether all values are finite.

    The codes are uint8, channels last: [batch, positions, channels] of rows and [batch, height,
    width, channels] of maps, in a border of codes for 0 (its zeros must then lie in 0 … 255).

    Args:
        scale, zero: float32 [] or [batch] or [1, positions] or [batch, positions]; with a border
            one of the first two.
    """
    return _run("row_codes", lines, scale, zero, bits, border)


def own_codes(lines: Lines, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Returns codes as `row_codes`, with scale and zero [batch, positions] of each row's own range
    as `vqdq.activations.base.ranged` defines them, and whether all values are finite.
    """
    return _run("own_codes", lines, bits)


def group_codes(
    lines: Lines,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    order: torch.Tensor,
    edges: tuple[int, ...],
    border: Border = NO_BORDER,
) -> tuple[list[torch.Tensor], bool]:
    """Returns codes as `row_codes`, apart for each group of channels, and whether all are finite.

    Args:
        scale, zero: float32 [channels], alike in a group.
        order: channels in the order of the groups, int64 [channels].
        edges: group g is order[edges[g]:edges[g + 1]].
    """
    return _run("group_codes", lines, scale, zero, bits, order, edges, border)


def stacked_codes(
    lines: Lines,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    index: torch.Tensor,
    groups: int,
    border: Border = NO_BORDER,
) -> tuple[torch.Tensor, bool]:
    """Returns codes as `row_codes`, one layer for each group of channels, [groups, …, channels],
    in which the channels of other groups are 0, and whether all are finite.

    Args:
        scale, zero: float32 [channels], alike in a group.
        index: group of each channel, int64 [channels].
    """
    return _run("stacked_codes", lines, scale, zero, bits, index, groups, border)


def scaled_rows(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_sums: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Returns scale·(sum − zero·column_sum)·column_scale + bias, float32, computed in `sums`.

    Args:
        sums: products of codes and levels, float32 [batch, positions, out], contiguous.
        scale, zero: as for `row_codes`.
        column_sums: Σ levels over the input, float32 [out]; column_scales, bias: [out].
    """
    return _run("scaled_rows", sums, scale, zero, column_sums, column_scales, bias)


def add_rows(
    out: torch.Tensor,
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    grids: torch.Tensor,
    places: torch.Tensor,
    column_sums: torch.Tensor,
    column_scales: torch.Tensor,
) -> None:
    """Adds scale·(sum − zero·column_sum)·column_scale of row r of `sums` to out[places[r]].

    Args:
        out: float32 [rows, out], contiguous; sums: float32 [n, out].
        scale, zero: float32 [grids]; grids, places: int64 [n], no place twice.
    """
    _run("add_rows", out, sums, scale, zero, grids, places, column_sums, column_scales)


def summed_groups(
    sums: torch.Tensor, scales: torch.Tensor, column_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Returns (Σ_g scales[g] · sums[g]) · column_scales + bias, float32 [rows, out].

    Args:
        sums: products of codes and levels, float32 [groups, rows, out], contiguous.
        scales: float32 [groups]; column_scales, bias: [out].
    """
    return _run("summed_groups", sums, scales, column_scales, bias)


def warm() -> None:
    """Compiles every loop of this module, or loads it from the cache."""
    one, lines = torch.ones(()), Lines(values=torch.zeros(1, 1, 16))
    columns = torch.ones(16)
    line_extremes(lines)
    codes, scale, zero, _ = own_codes(lines, 8)
    row_codes(lines, one, one, 8)
    group_codes(lines, columns, columns, 8, torch.arange(16), (0, 8, 16))
    stacked_codes(lines, columns, columns, 8, torch.zeros(16, dtype=torch.int64), 1)
    summed_groups(torch.zeros(2, 1, 16), torch.ones(2), columns, columns)
    sums = scaled_rows(codes.float(), scale, zero, columns, columns, columns)
    place = torch.zeros(1, dtype=torch.int64)
    add_rows(sums[0], sums[0].clone(), scale[0], zero[0], place, place, columns, columns)


def _run(op: str, *args: Any) -> Any:
    return run(op, "vqdq.kernels.int8_cpu", "vqdq.kernels.int8_reference", *args)
