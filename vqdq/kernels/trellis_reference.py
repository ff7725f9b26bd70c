"""The trellis in plain torch: the definition of what is searched, stored and decoded.

Everything is exact: costs are integers, levels and their Hadamard sums are integers, and what
feedback carries from column to column is float32 arithmetic in a stated order.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

SEGMENT_ROWS = 256  # rows of a circular sequence; the last takes the remainder
COST_UNITS = 8  # targets are given in 1/8 of a table step
SHORT_ROWS, SHORT_PASSES = 64, 16384  # when every seam is tried: fewer rows, and overlaps * rows
LARGEST_TARGET = 2040  # 255 table steps, twice the reach of a table


def segment_edges(rows: int) -> list[int]:
    """Returns where the circular sequences of a column begin, and the number of rows."""
    return [*range(0, SEGMENT_ROWS * max(1, rows // SEGMENT_ROWS), SEGMENT_ROWS), rows]


def seam_rows(bits: int) -> int:
    """Returns how many rows on each side of the seam the first pass sees."""
    return {2: 48, 3: 32, 4: 24, 5: 20, 6: 16}[bits]


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_encode`; this function defines the search."""
    edges = segment_edges(len(targets))
    pieces = [_encode_segment(targets[start:stop], table, bits) for start, stop in pairwise(edges)]
    return torch.cat(pieces)  # 256 rows are a whole number of bytes


def _encode_segment(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the circular stream of every column, uint8 [ceil(rows*bits/8), columns].

    Tail-biting: a free Viterbi pass over a window around the seam decides the L - k bits that the
    end and the start share; a second pass over all rows is held to them. The smaller overlap, and
    the smaller decision, win a tie. On few rows the window goes round and round, and its best path
    closes badly (25 times the error at 4 rows, 1.7 times at 16: L = 12, 3 bits); there the cheapest
    of all overlaps is taken, the window's own at a tie, then the smallest.
    """
    rows, columns = targets.shape
    overlap_bits = int(math.log2(table.numel())) - bits
    x = targets.long().clamp(-LARGEST_TARGET, LARGEST_TARGET).T  # [columns, rows]
    side = seam_rows(bits)
    window = torch.arange(-side, side) % rows
    start = torch.zeros(columns, 1 << overlap_bits, dtype=torch.int64)
    ends, decisions = _forward(x[:, window], table, bits, start)
    seam, _ = _backtrack(decisions[side:], ends.argmin(dim=1), bits, overlap_bits)
    if rows < SHORT_ROWS and rows << overlap_bits <= SHORT_PASSES:
        seam = torch.stack(
            [_best_seam(*column, table, bits) for column in zip(x, seam, strict=True)]
        )
    held = torch.full_like(start, 1 << 40)
    held.scatter_(1, seam[:, None], 0)
    _, decisions = _forward(x, table, bits, held)
    _, path = _backtrack(decisions, seam, bits, overlap_bits)  # [rows, columns]
    spread = (path[:, None, :] >> torch.arange(bits)[None, :, None]) & 1  # [rows, bits, columns]
    stream = spread.reshape(rows * bits, columns)
    padding = torch.zeros(-(rows * bits) % 8, columns, dtype=stream.dtype)
    bytes_ = torch.cat((stream, padding)).reshape(-1, 8, columns) << torch.arange(8)[None, :, None]
    return bytes_.sum(dim=1).to(torch.uint8)


def _best_seam(x: torch.Tensor, seam: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the overlap from which a path over all rows [rows] comes back cheapest."""
    overlaps = table.numel() >> bits
    held = torch.full((overlaps, overlaps), 1 << 40, dtype=torch.int64).fill_diagonal_(0)
    ends, _ = _forward(x.expand(overlaps, -1), table, bits, held)
    costs = ends.diagonal()
    return seam if costs[seam] == costs.amin() else costs.argmin()


def _forward(
    x: torch.Tensor, table: torch.Tensor, bits: int, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns final costs [columns, overlaps] and decisions uint8 [rows, columns, overlaps].

    A state costs 8·((v − x/8)² − (x/8)²) = 8v² − 2vx: an integer, and what all states share is
    left out.
    """
    overlaps, choices = start.shape[1], 1 << bits
    values = table.long()
    cost = start
    decisions = torch.empty(x.shape[1], x.shape[0], overlaps, dtype=torch.uint8)
    for row in range(x.shape[1]):
        error = COST_UNITS * values * values - 2 * x[:, row, None] * values  # [columns, states]
        total = (cost.repeat(1, choices) + error).reshape(-1, overlaps, choices)
        cost = total.amin(dim=2)
        decisions[row] = (total == cost[:, :, None]).to(torch.uint8).argmax(dim=2)  # the first
    return cost, decisions


def _backtrack(
    decisions: torch.Tensor, ends: torch.Tensor, bits: int, overlap_bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the overlap [columns] before the first row and every decision [rows, columns]."""
    overlap = ends
    path = torch.empty(decisions.shape[0], decisions.shape[1], dtype=torch.int64)
    for row in range(decisions.shape[0] - 1, -1, -1):
        picked = decisions[row].gather(1, overlap[:, None])[:, 0].long()
        path[row] = picked
        overlap = ((overlap << bits) | picked) & ((1 << overlap_bits) - 1)
    return overlap, path


def trellis_feedback(
    weight: torch.Tensor,
    scales: torch.Tensor,
    unit: torch.Tensor,
    table: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_feedback`; this function defines the order of the arithmetic."""
    if weight.ndim > 2:
        layers = zip(weight, scales, unit, strict=True)
        return torch.stack([trellis_feedback(*layer, table, bits) for layer in layers])
    targets = weight.float().clone()
    sizes = scales.float()
    per_unit = torch.where(sizes > 0, COST_UNITS / sizes, 0.0)
    limit = float(LARGEST_TARGET)
    codes: list[torch.Tensor] = []
    for column in range(weight.shape[1]):
        wanted = (targets[:, column] * per_unit).round().nan_to_num().clamp(-limit, limit)
        code = trellis_encode(wanted.to(torch.int16)[:, None], table, bits)
        levels = trellis_decode(code, table, bits, len(weight))[:, 0]
        error = weight[:, column] - levels.float() * sizes
        share = unit[column, column + 1 :]
        targets[:, column + 1 :] += error[:, None] * share[None, :]
        codes.append(code)
    return torch.cat(codes, dim=1)


def trellis_decode(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_decode`."""
    edges = segment_edges(rows)
    pieces = [
        _decode_segment(codes[start * bits // 8 :], table, bits, stop - start)
        for start, stop in pairwise(edges)
    ]
    return torch.cat(pieces)


def _decode_segment(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    state_bits = int(math.log2(table.numel()))
    length = rows * bits
    used = codes[: -(-length // 8)]
    stream = (used[:, None, :] >> torch.arange(8, dtype=torch.uint8)[None, :, None]) & 1
    stream = stream.reshape(-1, codes.shape[1])[:length].int()
    state = torch.zeros(rows, codes.shape[1], dtype=torch.int32)
    for bit in range(state_bits):
        state |= stream[(torch.arange(rows) * bits + bit) % length] << bit
    return table[state.long()]


def trellis_weight(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    signs: torch.Tensor,
    block: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_weight`."""
    sums = trellis_decode(codes, table, bits, len(scales)).int()
    stride = 1
    while stride < block:
        pairs = sums.reshape(len(scales), -1, 2, stride)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        sums = torch.stack((first + second, first - second), dim=2)
        stride *= 2
    whole = sums.reshape(len(scales), -1)
    return (whole.float() * row_factors(scales, block)[:, None] * signs).to(dtype)


def row_factors(scales: torch.Tensor, block: int) -> torch.Tensor:
    """Returns scales · block**-0.5, rounded once, float32."""
    return scales.float() * torch.tensor(block**-0.5, dtype=torch.float32)
