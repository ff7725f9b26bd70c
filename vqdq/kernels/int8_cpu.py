"""8-bit codes by compiled loops, in threads over rows; see `int8` for what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vqdq.kernels import int8_lines as loops
from vqdq.kernels import int8_sums as epilogues
from vqdq.kernels.int8 import NO_BORDER, SMALLEST_SCALE, Border, Lines
from vqdq.kernels.threads import spread as _spread

Array: TypeAlias = npt.NDArray[Any]
_GRAIN_VALUES = 1 << 17  # values that a thread takes at least: 40 µs of work, as waking it takes
_FEWEST_THREADS = 4
_NOTHING = np.empty(0, np.float32)
_NONE, _NO_HALF = np.empty((0, 0), np.float32), np.empty((0, 0), np.int16)


def _shared(work: Callable[[int, int], None], count: int, grain: int) -> None:
    """Calls `work` on ranges that cover 0..count-1, in threads where those are worth waking.

    After a product the threads of torch wait for the next one without giving up their cores, so
    that of two cores ours would get half of one: measured, the caller alone is 4 to 15 % faster.
    """
    if torch.get_num_threads() < _FEWEST_THREADS:
        work(0, count)
    else:
        _spread(work, count, grain)


class _Source:
    """The arguments that all loops over lines share."""

    def __init__(self, lines: Lines) -> None:
        values = lines.values.detach()
        if values.dtype not in (torch.float32, torch.bfloat16):
            values = values.float()
        self.batch, self.positions, self.channels = lines.sizes
        self.planes = False
        if lines.is_map:
            turned = values.permute(0, 2, 3, 1)
            self.planes = not turned.is_contiguous()
            values = values if self.planes else turned
        shape = (-1, self.positions if self.planes else self.channels)
        flat = values.contiguous().view(shape)
        if flat.dtype == torch.bfloat16:
            wide, half = _NONE, flat.view(torch.int16).numpy()
        else:
            wide, half = flat.numpy(), _NO_HALF
        self.state = np.zeros(1, np.int64)
        self.first = (
            wide,
            half,
            self.planes,
            self.positions,
            _flat(lines.divisor) if len(lines.divisor) else _NOTHING,
            _flat(lines.signs) if len(lines.signs) else _unread(self.channels),
            lines.block,
        )
        self.tiles = self.batch * -(-self.positions // loops.TILE)
        self.grain = max(1, _GRAIN_VALUES // (loops.TILE * self.channels))

    @property
    def finite(self) -> bool:
        return not self.state[0]


@cache
def _unread(channels: int) -> Array:
    """Returns what stands for signs where nothing is rotated: only its length is read."""
    return np.empty(channels, np.float32)


def _frame(lines: Lines, border: Border) -> tuple[tuple[int, ...], loops.Places]:
    """Returns the shape of the codes, and where in them a position goes."""
    batch, positions, channels = lines.sizes
    if not lines.is_map:
        return (batch, positions, channels), (positions, 1, positions, 0, 0)
    height, width = lines.values.shape[2:]
    tall, wide = border.around(height, width)
    return (batch, tall, wide, channels), (width, tall, wide, border.top, border.left)


def _steps(part: torch.Tensor) -> tuple[int, int]:
    """Returns how far the grids of the next sample and of the next position are."""
    if part.ndim < 2:
        return part.ndim, 0
    return (0 if len(part) == 1 else part.shape[1]), 1


def _flat(part: torch.Tensor) -> Array:
    return part.detach().contiguous().view(-1).numpy()


def _highest(bits: int) -> Any:
    return np.float32((1 << bits) - 1)


def line_extremes(lines: Lines) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.line_extremes`."""
    source = _Source(lines)
    low = torch.empty(source.batch, source.positions)
    high = torch.empty(source.batch, source.positions)
    least, most = _flat(low), _flat(high)

    def work(first: int, last: int) -> None:
        loops.extremes(*source.first, least, most, source.state, first, last)

    _shared(work, source.tiles, source.grain)
    return low, high, source.finite


def row_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int, border: Border
) -> tuple[torch.Tensor, bool]:
    """See `vqdq.kernels.int8.row_codes`."""
    source = _Source(lines)
    shape, frame = _frame(lines, border)
    codes = torch.empty(shape, dtype=torch.uint8)
    if border != NO_BORDER:
        codes[:] = zero.reshape(-1, 1, 1, 1).clamp(0, 255).to(torch.uint8)
    out, steps, highest = codes.view(-1, source.channels).numpy(), _steps(scale), _highest(bits)
    inverse, middle = _flat(scale.reciprocal()), _flat(zero)

    def work(first: int, last: int) -> None:
        loops.row_codes(
            *source.first, inverse, middle, steps, highest, frame, out, source.state, first, last
        )

    _shared(work, source.tiles, source.grain)
    return codes, source.finite


def own_codes(lines: Lines, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.own_codes`."""
    source = _Source(lines)
    shape, _ = _frame(lines, NO_BORDER)
    codes = torch.empty(shape, dtype=torch.uint8)
    scale = torch.empty(source.batch, source.positions)
    zero = torch.empty(source.batch, source.positions)
    out, step, middle = codes.view(-1, source.channels).numpy(), _flat(scale), _flat(zero)
    smallest, highest = np.float32(SMALLEST_SCALE), _highest(bits)

    def work(first: int, last: int) -> None:
        loops.own_codes(
            *source.first, smallest, highest, out, step, middle, source.state, first, last
        )

    _shared(work, source.tiles, source.grain)
    return codes, scale, zero, source.finite


def group_codes(
    lines: Lines,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    order: torch.Tensor,
    edges: tuple[int, ...],
    border: Border,
) -> tuple[list[torch.Tensor], bool]:
    """See `vqdq.kernels.int8.group_codes`."""
    source = _Source(lines)
    shape, frame = _frame(lines, border)
    size = int(np.prod(shape[:-1]))
    codes = torch.empty(size * source.channels, dtype=torch.uint8)
    parts = [
        codes[size * first : size * last].view(*shape[:-1], last - first)
        for first, last in pairwise(edges)
    ]
    if border != NO_BORDER:
        for part, first in zip(parts, edges[:-1], strict=True):
            part.fill_(int(zero[order[first]]))
    inverse, middle, out = _flat(scale.reciprocal()), _flat(zero), codes.numpy()
    members, bounds, highest = _flat(order), np.array(edges), _highest(bits)

    def work(first: int, last: int) -> None:
        loops.group_codes(
            *source.first,
            inverse,
            middle,
            highest,
            members,
            bounds,
            frame,
            size,
            out,
            source.state,
            first,
            last,
        )

    _shared(work, source.tiles, source.grain)
    return parts, source.finite


def stacked_codes(
    lines: Lines,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bits: int,
    index: torch.Tensor,
    groups: int,
    border: Border,
) -> tuple[torch.Tensor, bool]:
    """See `vqdq.kernels.int8.stacked_codes`."""
    source = _Source(lines)
    shape, frame = _frame(lines, border)
    codes = torch.zeros(groups, *shape, dtype=torch.uint8)
    if border != NO_BORDER:
        layers = torch.zeros(groups, source.channels, dtype=torch.uint8)
        layers[index, torch.arange(source.channels)] = zero.to(torch.uint8)
        codes += layers[:, None, None, None]
    inverse, middle, members = _flat(scale.reciprocal()), _flat(zero), _flat(index)
    out, highest = codes.view(-1, source.channels).numpy(), _highest(bits)
    size = len(out) // groups

    def work(first: int, last: int) -> None:
        loops.stacked_codes(
            *source.first,
            inverse,
            middle,
            highest,
            members,
            frame,
            size,
            out,
            source.state,
            first,
            last,
        )

    _shared(work, source.tiles, source.grain)
    return codes, source.finite


def scaled_rows(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_sums: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """See `vqdq.kernels.int8.scaled_rows`."""
    rows = sums.view(-1, sums.shape[-1]).numpy()
    grids = (_flat(scale), _flat(zero), _steps(scale), sums.shape[1])
    columns = (_flat(column_sums), _flat(column_scales), _flat(bias))
    grain = max(1, _GRAIN_VALUES // rows.shape[1])
    _shared(lambda a, b: epilogues.scaled_rows(rows, *grids, *columns, a, b), len(rows), grain)
    return sums


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
    """See `vqdq.kernels.int8.add_rows`."""
    target, rows = out.numpy(), sums.numpy()
    given = (_flat(scale), _flat(zero), _flat(grids), _flat(places))
    columns = (_flat(column_sums), _flat(column_scales))
    grain = max(1, _GRAIN_VALUES // rows.shape[1])
    _shared(lambda a, b: epilogues.add_rows(target, rows, *given, *columns, a, b), len(rows), grain)


def summed_groups(
    sums: torch.Tensor, scales: torch.Tensor, column_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """See `vqdq.kernels.int8.summed_groups`."""
    out = torch.empty(sums.shape[1:])
    target, rows = out.numpy(), sums.numpy()
    given = (_flat(scales), _flat(column_scales), _flat(bias))
    grain = max(1, _GRAIN_VALUES // rows.shape[2])
    _shared(lambda a, b: epilogues.summed_groups(rows, *given, target, a, b), len(target), grain)
    return out
