"""Products of 8-bit codes and int8 levels with their scales: linear layers and convolutions.

y = Σ_p s_p (q_p − z_p) Ŵ_pᵀ over parts p, which are the taps of a convolution times the groups of
channels that share a scale. Within a part bytes are multiplied and summed exactly; between parts
the sums are scaled and added in float32, in the order of the parts. So a scale may stand for a row,
a pixel, a sample, the whole input or a group of channels (DGQ), nothing is unfolded, and what pads
a map is exactly 0. The function here is the definition; a card's kernel differs from it by float32
rounding.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import pairwise

import torch

from vqdq.kernels import backend, int8_reference
from vqdq.kernels.int8 import NO_BORDER, Border, Lines

OPERATION = "int8_product"
DEPTH = 64  # channels of a tile; groups are padded to it


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """Levels of a layer as the kernel reads them.

    Attributes:
        levels: int8 (or e4m3, see `fp8`) [out, taps, padded channels].
        sums: Σ levels of each part and output, float32 [taps * groups, out]; empty for e4m3.
        edges: where the groups begin among the padded channels, and their end, int32 [groups + 1].
        source: channel of each padded channel, int64, −1 for none; empty for all as they stand.
    """

    levels: torch.Tensor
    sums: torch.Tensor
    edges: torch.Tensor
    source: torch.Tensor

    @property
    def is_plain(self) -> bool:
        """Whether there is one part."""
        return self.levels.shape[1] * (len(self.edges) - 1) == 1

    @property
    def num_bytes(self) -> int:
        """Bytes that they take."""
        parts = (self.levels, self.sums, self.edges, self.source)
        return sum(part.nbytes for part in parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a convolution reads its map; the default is a linear layer."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    border: Border = NO_BORDER

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of the output."""
        tall, wide = self.border.around(height, width)
        down = tall - (self.kernel[0] - 1) * self.dilation[0] - 1
        across = wide - (self.kernel[1] - 1) * self.dilation[1] - 1
        return down // self.stride[0] + 1, across // self.stride[1] + 1

    def sides(self, codes: torch.Tensor) -> tuple[int, int, int, int]:
        """Returns height and width of codes and of the output; rows are a map of one line."""
        height, width = codes.shape[1:3] if codes.ndim == 4 else (1, codes.shape[1])
        return height, width, *self.size(height, width)

    def output(self, codes: torch.Tensor, outputs: int) -> tuple[int, ...]:
        """Returns the output's shape, of the form of the codes."""
        tall, wide = self.sides(codes)[2:]
        places = (tall, wide) if codes.ndim == 4 else (tall * wide,)
        return len(codes), *places, outputs


def prepared(levels: torch.Tensor, taps: int, index: torch.Tensor | None = None) -> Levels:
    """Returns int8 levels [out, taps * channels] as `int8_product` reads them.

    Args:
        index: group of each channel, int64 [channels]; None for one group.
    """
    device = levels.device
    apart = levels.reshape(len(levels), taps, -1)
    channels = apart.shape[2]
    if index is None:
        sums = apart.sum(2, dtype=torch.int32).float().T.contiguous()
        edges = torch.tensor([0, channels], dtype=torch.int32, device=device)
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return Levels(levels=apart.contiguous(), sums=sums, edges=edges, source=empty)
    order = index.cpu().argsort(stable=True)
    sizes = index.cpu().bincount().tolist()
    source, edges, first = list[int](), [0], 0
    for size in sizes:
        members = order[first : first + size].tolist()
        source += members + [-1] * (-size % DEPTH)
        edges.append(len(source))
        first += size
    placed = torch.tensor(source, device=device)
    padded = apart[:, :, placed.clamp_min(0)] * (placed >= 0)
    pieces = [
        padded[:, :, a:b].sum(2, dtype=torch.int32).float().T for a, b in pairwise(edges)
    ]  # [taps, out] each
    return Levels(
        levels=padded.to(torch.int8).contiguous(),
        sums=torch.stack(pieces, dim=1).reshape(-1, len(levels)).contiguous(),
        edges=torch.tensor(edges, dtype=torch.int32, device=device),
        source=placed,
    )


def channel_codes(
    lines: Lines, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes as `int8.row_codes` with a grid for each channel, float32 [channels], and
    whether all values are finite, bool [].
    """
    if backend.on_card(lines.values) and not backend.refusal("row_codes", lines.values):
        module = importlib.import_module("vqdq.kernels.triton.codes")
        return module.channel_codes(lines, scale, zero, bits)
    return int8_reference.channel_codes(lines, scale, zero, bits)


def int8_product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    reading: Reading | None = None,
    *,
    by_group: bool = False,
) -> torch.Tensor:
    """Returns Σ_p s_p (codes_p − z_p) levels_pᵀ · column_scales + bias, in `dtype`.

    Args:
        codes: uint8 [batch, positions, channels], or [batch, height, width, channels] with
            `reading`; the output has the same form. Channels as in `levels.source`.
        scale, zero: float32 [groups] with `by_group`; else [], [batch], [1, positions] or [batch,
            positions].
        column_scales: float32 [out]; bias: [out].
    """
    read = Reading() if reading is None else reading
    given = (codes, levels, scale, zero, column_scales, bias, dtype, read)
    if backend.on_card(codes):
        if not backend.refusal(OPERATION, codes):
            module = importlib.import_module("vqdq.kernels.triton.products")
            return module.product(*given, by_group=by_group)
        if codes.ndim == 3 and levels.is_plain and not by_group and _fits_library(codes, levels):
            return library_product(*given[:-1])
    return reference_product(*given, by_group=by_group)


def reference_product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    reading: Reading,
    *,
    by_group: bool = False,
    wide: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Returns what `int8_product` (or, without zeros, `fp8.fp8_product`) is to compute.

    Args:
        wide: what parts are summed in: float64, where sums of bytes are exact, or on a card
            float16, which holds e4m3 and is summed in float32.
    """
    batch, (height, width, tall, across) = len(codes), reading.sides(codes)
    maps = codes.reshape(batch, height, width, -1)

    def placed(grid: torch.Tensor, group: int) -> torch.Tensor:
        """Returns what stands for a pixel, [batch, height, width, 1]."""
        each = grid[group] if by_group else wide_grid(grid)
        return each.expand(batch, height * width, 1).reshape(batch, height, width, 1)

    total = torch.zeros(batch, tall, across, len(column_scales), device=codes.device)
    edges = levels.edges.tolist()
    for tap in range(levels.levels.shape[1]):
        for group, (first, last) in enumerate(pairwise(edges)):
            read = _read(maps[..., first:last].to(wide), tap, reading)
            sums = _summed(read, levels.levels[:, tap, first:last].to(wide))
            if zero is not None:
                column = levels.sums[tap * (len(edges) - 1) + group].to(wide)
                sums = sums - _read(placed(zero, group).to(wide), tap, reading) * column
            total += _read(placed(scale, group), tap, reading) * sums.float()
    found = total * column_scales
    found = (found if bias is None else found + bias).to(dtype)
    return found.reshape(reading.output(codes, len(column_scales)))


def _summed(read: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Returns [..., channels] times [out, channels]ᵀ, of halves in float32."""
    if levels.dtype != torch.float16:
        return read @ levels.T
    if not read.is_cuda:
        return read.float() @ levels.float().T
    sums = torch.mm(read.reshape(-1, read.shape[-1]), levels.T, out_dtype=torch.float32)
    return sums.reshape(*read.shape[:-1], -1)


def _read(maps: torch.Tensor, tap: int, reading: Reading) -> torch.Tensor:
    """Returns what a tap reads of [batch, height, width, …]; 0 outside."""
    top, bottom, left, right = reading.border
    framed = torch.nn.functional.pad(maps, (0, 0, left, right, top, bottom))
    tall, wide = reading.size(maps.shape[1], maps.shape[2])
    near, far = divmod(tap, reading.kernel[1])
    down = near * reading.dilation[0] + torch.arange(tall) * reading.stride[0]
    across = far * reading.dilation[1] + torch.arange(wide) * reading.stride[1]
    return framed[:, down][:, :, across]


def wide_grid(part: torch.Tensor) -> torch.Tensor:
    """Returns scales or zeros of rows as they broadcast over [batch, positions, channels]."""
    return part[:, None, None] if part.ndim == 1 else part[..., None]


def _fits_library(codes: torch.Tensor, levels: Levels) -> bool:
    """Returns whether torch's product of bytes takes these sizes on a card."""
    outputs, _, channels = levels.levels.shape
    return codes.shape[0] * codes.shape[1] > 16 and channels % 8 == 0 and outputs % 8 == 0


def library_product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    zero: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns `int8_product` of a linear layer by torch's own product of bytes and a second pass.

    For cards on which Triton multiplies no tiles (Turing), and to be measured against on others.
    """
    flat = (codes ^ 128).view(torch.int8).reshape(-1, codes.shape[-1])
    packed = levels.levels[:, 0].T
    exact = torch._int_mm(flat, packed).float()  # pyright: ignore[reportPrivateUsage]
    rows = exact.view(len(codes), -1, exact.shape[1])
    moved = rows - (wide_grid(zero) - 128) * levels.sums[0]
    found = wide_grid(scale) * moved * column_scales
    return (found if bias is None else found + bias).to(dtype)
