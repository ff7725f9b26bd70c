"""8-bit codes in plain torch: the definition of truth for `int8_cpu`."""

from __future__ import annotations

from itertools import pairwise

import torch

from vqdq.kernels import reference
from vqdq.kernels.int8 import SMALLEST_SCALE, Border, Lines


def rows_of(lines: Lines) -> torch.Tensor:
    """Returns rows [batch, positions, channels] as they are quantized."""
    values = lines.values.detach().float()
    rows = values.flatten(2).transpose(1, 2) if lines.is_map else values
    if len(lines.divisor):
        rows = rows / lines.divisor
    if not lines.block:
        return rows
    flat = (rows * lines.signs).reshape(-1, rows.shape[-1]).contiguous()
    return reference.hadamard(flat, lines.block).reshape(rows.shape)


def _wide(part: torch.Tensor) -> torch.Tensor:
    """Returns scale or zero as it broadcasts over [batch, positions, channels]."""
    return part[:, None, None] if part.ndim == 1 else part[..., None]


def _coded(
    rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, bool]:
    finite = bool(torch.isfinite(rows).all())
    codes = (torch.round(rows * scale.reciprocal()) + zero).clamp_(0, (1 << bits) - 1)
    return codes.nan_to_num_(0).to(torch.uint8), finite


def _framed(lines: Lines, codes: torch.Tensor, zero: torch.Tensor, border: Border) -> torch.Tensor:
    """Returns codes [batch, positions, channels] as maps [batch, height, width, channels]."""
    if not lines.is_map:
        return codes.contiguous()
    batch, channels, height, width = lines.values.shape
    tall, wide = border.around(height, width)
    out = torch.empty(batch, tall, wide, channels, dtype=torch.uint8)
    if any(border):
        out[:] = zero.reshape(-1, 1, 1, 1).clamp(0, 255).to(torch.uint8)
    down, across = slice(border.top, border.top + height), slice(border.left, border.left + width)
    out[:, down, across] = codes.reshape(batch, height, width, channels)
    return out


def line_extremes(lines: Lines) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.line_extremes`."""
    rows = rows_of(lines)
    return rows.amin(2), rows.amax(2), bool(torch.isfinite(rows).all())


def row_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int, border: Border
) -> tuple[torch.Tensor, bool]:
    """See `vqdq.kernels.int8.row_codes`."""
    codes, finite = _coded(rows_of(lines), _wide(scale), _wide(zero), bits)
    return _framed(lines, codes, zero, border), finite


def channel_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `vqdq.kernels.int8_parts.channel_codes`."""
    codes, finite = _coded(rows_of(lines), scale, zero, bits)
    return _framed(lines, codes, zero, Border()), torch.tensor(finite)


def own_codes(lines: Lines, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.own_codes`."""
    rows = rows_of(lines)
    low, high = rows.amin(2).clamp_max(0), rows.amax(2).clamp_min(0)
    scale = ((high - low) / ((1 << bits) - 1)).clamp_min(SMALLEST_SCALE)
    zero = torch.round(-low / scale)
    codes, finite = _coded(rows, scale[..., None], zero[..., None], bits)
    return _framed(lines, codes, zero, Border()), scale, zero, finite


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
    codes, finite = _coded(rows_of(lines), scale, zero, bits)
    parts: list[torch.Tensor] = []
    for first, last in pairwise(edges):
        members = order[first:last]
        values = lines.values[:, members] if lines.is_map else lines.values[..., members]
        part = Lines(values=values)
        parts.append(_framed(part, codes[..., members], zero[members[:1]], border))
    return parts, finite


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
    codes, finite = _coded(rows_of(lines), scale, zero, bits)
    layers: list[torch.Tensor] = []
    for group in range(groups):
        own = (index == group).to(torch.uint8)
        part = _framed(lines, codes, torch.zeros(1), border)
        if any(border):
            inner = _framed(lines, torch.ones_like(codes), torch.zeros(1), border)
            part += (1 - inner) * zero.to(torch.uint8)
        layers.append(part * own)
    return torch.stack(layers), finite


def scaled_rows(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_sums: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """See `vqdq.kernels.int8.scaled_rows`."""
    exact = sums - _wide(zero) * column_sums
    return sums.copy_(_wide(scale) * exact * column_scales + bias)


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
    exact = sums - zero[grids, None] * column_sums
    out[places] += scale[grids, None] * exact * column_scales


def summed_groups(
    sums: torch.Tensor, scales: torch.Tensor, column_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """See `vqdq.kernels.int8.summed_groups`."""
    out = scales[0] * sums[0]
    for scale, part in zip(scales[1:], sums[1:], strict=True):
        out += scale * part
    return out * column_scales + bias
