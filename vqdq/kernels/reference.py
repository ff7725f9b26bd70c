"""Every kernel in plain torch: the definition of truth, and the fallback without numba."""

from __future__ import annotations

import math

import torch

from vqdq import packing

_LARGEST_COST = float(2**23)


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.pack_bits`."""
    return packing.pack(values, bits)


def unpack_bits(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """See `vqdq.kernels.unpack_bits`."""
    return packing.unpack(stream, bits, count).to(torch.uint8)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """See `vqdq.kernels.hadamard`."""
    y = x.float()
    stride = 1
    while stride < block:
        pairs = y.reshape(x.shape[0], -1, 2, stride)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        y = torch.stack((first + second, first - second), dim=2)
        stride *= 2
    return y.reshape(x.shape) * torch.tensor(block**-0.5, dtype=torch.float32)


def grid_errors(
    groups: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, highest: int
) -> torch.Tensor:
    """See `vqdq.kernels.grid_errors`."""
    step, zero = steps.double(), zeros.double()
    inverse = torch.where(step > 0, 1 / step, 0.0)
    total = torch.zeros(steps.shape, dtype=torch.float64)
    for weight in groups.double().T:  # [groups]
        code = torch.floor(weight[:, None] * inverse + zero + 0.5).clamp(0, highest)
        off = (code - zero) * step - weight[:, None]
        total = total + off * off
    return total


def feed_forward(targets: torch.Tensor, errors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """See `vqdq.kernels.feed_forward`."""
    for error, shares in zip(errors, unit, strict=True):
        targets = targets + shares[:, None] * error[None, :]
    return targets


def round_columns(
    targets: torch.Tensor,
    weight: torch.Tensor,
    unit: torch.Tensor,
    steps: torch.Tensor,
    zeros: torch.Tensor,
    group: torch.Tensor,
    table: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `vqdq.kernels.round_columns`."""
    bounds, rest = midpoints(table), targets.clone()
    codes, errors = torch.empty_like(targets, dtype=torch.uint8), torch.empty_like(targets)
    for column, member in enumerate(group.tolist()):
        step, zero = steps[member], zeros[member]
        place = rest[column] / torch.where(step > 0, step, 1.0) + zero
        code = (place[None, :] > bounds[:, None]).sum(dim=0)
        codes[column] = code
        errors[column] = weight[column] - (table[code] - zero) * step
        shares = unit[column, column + 1 :, None]
        rest[column + 1 :] = rest[column + 1 :] + shares * errors[column]
    return codes, errors


def midpoints(table: torch.Tensor) -> torch.Tensor:
    """Returns where the nearest level changes; the lower level keeps the boundary itself."""
    return (table[1:] + table[:-1]) / 2


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_encode`; this function defines the search.

    Tail-biting: a free Viterbi pass over a window around the seam decides the L - k bits that the
    end and the start share; a second pass over all rows is held to them. Costs are integers in
    float32: 64 times the squared error in table steps (targets rounded to 1/4 step at 2 bits, 1/2
    step at 3 and 4), so they are multiples of 2**bits and carry the decision in their low bits; the
    smaller decision wins a tie.
    """
    rows, columns = targets.shape
    overlap_bits = int(math.log2(table.numel())) - bits
    x = search_targets(targets, bits).T  # [columns, rows]
    side = seam_rows(bits)
    window = torch.arange(-side, side) % rows
    start = torch.zeros(columns, 1 << overlap_bits)
    ends, decisions = _forward(x[:, window], table, bits, start)
    seam, _ = _backtrack(decisions[side:], ends.argmin(dim=1), bits, overlap_bits)
    held = torch.full((columns, 1 << overlap_bits), _LARGEST_COST)
    held.scatter_(1, seam[:, None], 0.0)
    _, decisions = _forward(x, table, bits, held)
    _, path = _backtrack(decisions, seam, bits, overlap_bits)  # [rows, columns]
    steps = torch.arange(bits)
    spread = (path[:, None, :] >> steps[None, :, None]) & 1  # [rows, bits, columns]
    stream = spread.reshape(rows * bits, columns)
    padding = torch.zeros(-(rows * bits) % 8, columns, dtype=stream.dtype)
    bytes_ = torch.cat((stream, padding)).reshape(-1, 8, columns) << torch.arange(8)[None, :, None]
    return bytes_.sum(dim=1).to(torch.uint8)


def search_targets(targets: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns int16 targets clamped and rounded (half up) to the step of the search, float32."""
    step = 2 if bits == 2 else 4
    clamped = targets.int().clamp(-1200, 1200)
    return (torch.div(clamped + step // 2, step, rounding_mode="floor") * step).float()


def seam_rows(bits: int) -> int:
    """Returns how many rows on each side of the seam the first pass sees."""
    return {2: 48, 3: 32, 4: 24}[bits]


def _forward(
    x: torch.Tensor, table: torch.Tensor, bits: int, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns final costs [columns, overlaps] and decisions uint8 [rows, columns, overlaps]."""
    overlaps, choices = start.shape[1], 1 << bits
    values = table.float() * 8  # in cost units
    tags = (torch.arange(overlaps) % choices).float()
    cost = start
    decisions = torch.empty(x.shape[1], x.shape[0], overlaps, dtype=torch.uint8)
    for row in range(x.shape[1]):
        error = x[:, row, None] - values  # [columns, states]
        tagged = (cost + tags).repeat(1, choices) + error * error
        best = tagged.reshape(-1, overlaps, choices).amin(dim=2)
        decision = best.int() & (choices - 1)
        decisions[row] = decision.to(torch.uint8)
        cost = (best.int() - decision).float() - cost[:, :1]
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


def trellis_decode(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_decode`."""
    state_bits = int(math.log2(table.numel()))
    length = rows * bits
    stream = (codes[:, None, :] >> torch.arange(8, dtype=torch.uint8)[None, :, None]) & 1
    stream = stream.reshape(-1, codes.shape[1])[:length].int()
    state = torch.zeros(rows, codes.shape[1], dtype=torch.int32)
    for bit in range(state_bits):
        state |= stream[(torch.arange(rows) * bits + bit) % length] << bit
    return table[state.long()]


def additive_encode(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    """See `vqdq.kernels.additive_encode`; this function defines the search.

    A partial sum q costs |q|^2 - 2 x.q. After each codebook the `beam` cheapest of beam*256 sums
    are kept, in the order of (cost, parent, code); all costs are integers.
    """
    pieces = [_beam_search(part, codebooks, beam) for part in vectors.split(4096)]
    return torch.cat(pieces) if pieces else torch.zeros(0, len(codebooks), dtype=torch.uint8)


def _beam_search(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    x, books = vectors.double(), codebooks.double()  # integers below 2**53: exact
    count, dim = x.shape
    sums = torch.zeros(count, 1, dim, dtype=torch.float64)
    costs = torch.zeros(count, 1, dtype=torch.float64)
    codes = torch.zeros(count, 1, 0, dtype=torch.uint8)
    for book in books:
        cross = (sums - x[:, None, :]) @ book.T  # [n, beam, 256]
        grown = (costs[:, :, None] + 2 * cross + (book * book).sum(dim=1)).reshape(count, -1)
        kept = grown.argsort(dim=1, stable=True)[:, : min(beam, grown.shape[1])]
        parent, code = kept // 256, kept % 256
        costs = grown.gather(1, kept)
        sums = sums.gather(1, parent[:, :, None].expand(-1, -1, dim)) + book[code]
        history = codes.gather(1, parent[:, :, None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat((history, code[:, :, None].to(torch.uint8)), dim=2)
    return codes[:, 0]


def additive_decode(
    codes: torch.Tensor, codebooks: torch.Tensor, scales: torch.Tensor, groups: int
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode`."""
    total = codebooks[0][codes[:, 0].long()]
    for index in range(1, len(codebooks)):
        total = total + codebooks[index][codes[:, index].long()]
    return total.reshape(len(scales), groups * codebooks.shape[2]) * scales[:, None]


def additive_gradient(
    codes: torch.Tensor, gradient: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """See `vqdq.kernels.additive_gradient`."""
    scaled = (gradient.float() * scales.float()[:, None]).double().reshape(-1, shape[2])
    total = torch.zeros(shape, dtype=torch.float64)
    for index in range(shape[0]):
        total[index].index_add_(0, codes[:, index].long(), scaled)
    return total.float()
