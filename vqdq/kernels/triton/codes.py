"""Activations as 8-bit codes on the card, in one visit to each row: the codes of the reference.

A row is smoothed, rotated, measured and rounded in registers. Divisions are rounded as IEEE asks
(the card's own are not), ties go to even, and no product is fused with a sum: the same bits. A row
that holds NaN or infinity gets NaN as its scale, or a flag on the card says that one was there:
asking the card here would stop the processor at every layer.
"""

# pyright: basic, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportIndexIssue=false
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vqdq.kernels.int8 import NO_BORDER, SMALLEST_SCALE, Border, Lines
from vqdq.kernels.triton.plain import butterflies


@triton.jit
def even(x):
    """Returns x rounded to a whole number, ties to even."""
    large = tl.abs(x) >= 8388608.0  # 2**23: whole already
    up = (x + 8388608.0) - 8388608.0
    down = (x - 8388608.0) + 8388608.0
    return tl.where(large, x, tl.where(x >= 0, up, down))


@triton.jit
def row_of(
    values,
    divisor,
    signs,
    row,
    rows,
    channels,
    positions,
    batch_stride,
    position_stride,
    channel_stride,
    root,
    DIVIDES: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Returns rows as they are quantized, float32 [ROWS, WIDTH], 0 beyond the channels."""
    column = tl.arange(0, WIDTH)
    held = (row < rows)[:, None] & (column < channels)[None, :]
    place = (row // positions).to(tl.int64) * batch_stride
    place += (row % positions).to(tl.int64) * position_stride
    at = values + place[:, None] + column.to(tl.int64)[None, :] * channel_stride
    x = tl.load(at, mask=held, other=0.0).to(tl.float32)
    if DIVIDES:
        by = tl.load(divisor + column, mask=column < channels, other=1.0)
        x = tl.div_rn(x, tl.broadcast_to(by[None, :], (ROWS, WIDTH)))
    if LOG_BLOCK > 0:
        sign = tl.load(signs + column, mask=column < channels, other=0.0)
        x = butterflies(x * sign[None, :], ROWS, WIDTH, LOG_BLOCK) * root
    return x


@triton.jit
def odd_rows(x):
    """Returns which rows hold NaN or infinity: what a maximum does with NaN differs by place."""
    return tl.sum(((tl.abs(x) < float("inf")) == 0).to(tl.int32), axis=1) > 0


@triton.jit
def _codes_kernel(
    values,
    divisor,
    signs,
    scales,
    zeros,
    lows,
    highs,
    flag,
    out,
    rows,
    channels,
    positions,
    batch_stride,
    position_stride,
    channel_stride,
    root,
    highest,
    smallest,
    width,
    tall,
    wide,
    top,
    left,
    scale_batch,
    scale_position,
    DIVIDES: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
    OWN: tl.constexpr,
    MEASURES: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    x = row_of(
        values, divisor, signs, row, rows, channels, positions, batch_stride, position_stride,
        channel_stride, root, DIVIDES, LOG_BLOCK, ROWS, WIDTH,
    )  # fmt: skip
    held = row < rows
    inside = column < channels
    odd = odd_rows(x)
    if OWN or MEASURES:
        low = tl.min(tl.where(inside[None, :], x, float("inf")), axis=1)
        high = tl.max(tl.where(inside[None, :], x, float("-inf")), axis=1)
        low = tl.where(odd, float("nan"), low)
        high = tl.where(odd, float("nan"), high)
    else:
        found = tl.max(odd.to(tl.int32), axis=0)
        if found > 0:
            tl.atomic_max(flag, found)
    if MEASURES:
        tl.store(lows + row, low, mask=held)
        tl.store(highs + row, high, mask=held)
    else:
        if OWN:
            low = tl.where(low < 0, low, 0.0)
            high = tl.where(high > 0, high, 0.0)
            span = tl.div_rn(high - low, tl.full((ROWS,), 1.0, tl.float32) * highest)
            scale = tl.where(span > smallest, span, smallest)
            zero = even(tl.div_rn(-low, scale))
            tl.store(scales + row, tl.where(odd, float("nan"), scale), mask=held)
            tl.store(zeros + row, zero, mask=held)
            scale = tl.broadcast_to(scale[:, None], (ROWS, WIDTH))
            zero = tl.broadcast_to(zero[:, None], (ROWS, WIDTH))
        elif BY_CHANNEL:
            scale = tl.load(scales + column, mask=inside, other=1.0)
            zero = tl.load(zeros + column, mask=inside, other=0.0)
            scale = tl.broadcast_to(scale[None, :], (ROWS, WIDTH))
            zero = tl.broadcast_to(zero[None, :], (ROWS, WIDTH))
        else:
            at = (row // positions) * scale_batch + (row % positions) * scale_position
            scale = tl.load(scales + at, mask=held, other=1.0)
            zero = tl.load(zeros + at, mask=held, other=0.0)
            scale = tl.broadcast_to(scale[:, None], (ROWS, WIDTH))
            zero = tl.broadcast_to(zero[:, None], (ROWS, WIDTH))
        inverse = tl.div_rn(tl.full((ROWS, WIDTH), 1.0, tl.float32), scale)
        code = even(x * inverse) + zero
        code = tl.minimum(tl.maximum(tl.where(code == code, code, 0.0), 0.0), highest)
        position = row % positions
        down = position // width + top
        across = position % width + left
        pixel = ((row // positions) * tall + down).to(tl.int64) * wide + across
        at = out + pixel[:, None] * channels + column[None, :]
        tl.store(at, code.to(tl.int32).to(tl.uint8), mask=held[:, None] & inside[None, :])


def line_extremes(lines: Lines) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.line_extremes`; a row that is not finite has the extremes NaN."""
    batch, positions, _ = lines.sizes
    low, high = (torch.empty(batch, positions, device=lines.values.device) for _ in range(2))
    _launch(lines, None, None, 8, None, NO_BORDER, low=low, high=high)
    return low, high, True


def row_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int, border: Border = NO_BORDER
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `vqdq.kernels.int8.row_codes`; whether all is finite is a tensor: nobody waits for it."""
    out = _framed(lines, zero, border)
    return out, _launch(lines, scale, zero, bits, out, border)


def own_codes(lines: Lines, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """See `vqdq.kernels.int8.own_codes`; a row that is not finite has the scale NaN."""
    batch, positions, _ = lines.sizes
    scale, zero = (torch.empty(batch, positions, device=lines.values.device) for _ in range(2))
    out = _framed(lines, zero, NO_BORDER)
    _launch(lines, scale, zero, bits, out, NO_BORDER, own=True)
    return out, scale, zero, True


def channel_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `vqdq.kernels.int8_parts.channel_codes`."""
    out = _framed(lines, zero[:1], NO_BORDER)
    return out, _launch(lines, scale, zero, bits, out, NO_BORDER, by_channel=True)


def _framed(lines: Lines, zero: torch.Tensor, border: Border) -> torch.Tensor:
    """Returns room for codes; a border holds the codes of 0."""
    batch, positions, channels = lines.sizes
    values = lines.values
    if not lines.is_map:
        return torch.empty(batch, positions, channels, dtype=torch.uint8, device=values.device)
    tall, wide = border.around(values.shape[2], values.shape[3])
    out = torch.empty(batch, tall, wide, channels, dtype=torch.uint8, device=values.device)
    if any(border):
        out[:] = zero.reshape(-1, 1, 1, 1).clamp(0, 255).to(torch.uint8)
    return out


def laid(lines: Lines) -> tuple[torch.Tensor, tuple[int, ...], int, int]:
    """Returns values with strides of batch, position and channel; height and width of their map."""
    values = lines.values.detach()
    if not lines.is_map:
        return values, values.stride(), 1, values.shape[1]
    height, width = values.shape[2], values.shape[3]
    values = values if values.stride(2) == width * values.stride(3) else values.contiguous()
    return values, (values.stride(0), values.stride(3), values.stride(1)), height, width


def shaped(lines: Lines) -> tuple[int, dict[str, Any]]:
    """Returns how many rows one program takes (not tuned), and what `row_of` is compiled for."""
    across = triton.next_power_of_2(lines.sizes[2])
    grown = max(1, min(8, 4096 // across))
    return grown, {
        "DIVIDES": len(lines.divisor) > 0,
        "LOG_BLOCK": max(lines.block, 1).bit_length() - 1,
        "ROWS": grown,
        "WIDTH": across,
        "num_warps": 4 if across <= 4096 else 8,
        "enable_fp_fusion": False,
    }


def grid_steps(scale: torch.Tensor) -> tuple[int, int]:
    """Returns what a batch and a position add to a place among scales [], [batch], [1, positions]
    or [batch, positions].
    """
    batch, position = (*scale.stride(), 0, 0)[:2]
    sizes = (*scale.shape, 1, 1)
    return (batch if sizes[0] > 1 else 0), (position if sizes[1] > 1 else 0)


def root(lines: Lines) -> float:
    """Returns block**-0.5, rounded to float32."""
    return float(torch.tensor(max(lines.block, 1) ** -0.5, dtype=torch.float32))


def _launch(
    lines: Lines,
    scale: torch.Tensor | None,
    zero: torch.Tensor | None,
    bits: int,
    out: torch.Tensor | None,
    border: Border,
    *,
    own: bool = False,
    by_channel: bool = False,
    low: torch.Tensor | None = None,
    high: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs the kernel over all rows and returns whether all were finite, a tensor [], where grids
    are given. A scale [batch, positions] or smaller is read by its strides.
    """
    values, strides, height, width = laid(lines)
    batch, positions, channels = lines.sizes
    tall, wide = border.around(height, width)
    steps = (0, 0)
    empty = values.new_empty(0, dtype=torch.float32)
    if scale is not None and zero is not None and not own and not by_channel:
        scale, zero = scale.float().contiguous(), zero.float().contiguous()
        steps = grid_steps(scale)
    rows, (grown, shape) = batch * positions, shaped(lines)
    flag = torch.zeros((), dtype=torch.int32, device=values.device)
    if not rows:
        return flag == 0
    _codes_kernel[(triton.cdiv(rows, grown),)](
        values, lines.divisor, lines.signs,
        empty if scale is None else scale, empty if zero is None else zero,
        empty if low is None else low, empty if high is None else high, flag,
        empty if out is None else out, rows, channels, positions, *strides, root(lines),
        float((1 << bits) - 1), SMALLEST_SCALE, width, tall, wide, border.top, border.left, *steps,
        OWN=own, MEASURES=low is not None, BY_CHANNEL=by_channel, **shape,
    )  # fmt: skip
    return flag == 0
