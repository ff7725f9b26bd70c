"""Every kernel in plain torch: the definition of truth, and the fallback without numba."""

from __future__ import annotations

import torch

from vqdq import packing
from vqdq.kernels.trellis_reference import trellis_decode as trellis_decode
from vqdq.kernels.trellis_reference import trellis_encode as trellis_encode
from vqdq.kernels.trellis_reference import trellis_feedback as trellis_feedback
from vqdq.kernels.trellis_reference import trellis_weight as trellis_weight


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.pack_bits`."""
    return packing.pack(values, bits)


def unpack_bits(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """See `vqdq.kernels.unpack_bits`."""
    return packing.unpack(stream, bits, count).to(torch.uint8)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """See `vqdq.kernels.hadamard`."""
    return butterflies(x.float(), block) * torch.tensor(block**-0.5, dtype=torch.float32)


def butterflies(x: torch.Tensor, block: int) -> torch.Tensor:
    """Returns the Hadamard transform of runs of `block` last values, not normalised."""
    y, stride = x, 1
    while stride < block:
        pairs = y.reshape(-1, 2, stride)
        first, second = pairs[:, 0], pairs[:, 1]
        y = torch.stack((first + second, first - second), dim=1)
        stride *= 2
    return y.reshape(x.shape)


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


def table_errors(groups: torch.Tensor, steps: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `vqdq.kernels.table_errors`."""
    bounds, safe = midpoints(table), torch.where(steps > 0, steps, 1.0)
    total = torch.zeros(steps.shape, dtype=torch.float64)
    for weight in groups.float().T:  # [groups]
        place = weight[:, None] / safe
        code = (place[:, :, None] > bounds).sum(dim=2)
        off = (table[code] * steps).double() - weight.double()[:, None]
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
        parent, code = kept // len(book), kept % len(book)
        costs = grown.gather(1, kept)
        sums = sums.gather(1, parent[:, :, None].expand(-1, -1, dim)) + book[code]
        history = codes.gather(1, parent[:, :, None].expand(-1, -1, codes.shape[2]))
        codes = torch.cat((history, code[:, :, None].to(torch.uint8)), dim=2)
    return codes[:, 0]


def additive_feedback(
    weight: torch.Tensor,
    unit: torch.Tensor,
    metric: torch.Tensor,
    codebooks: torch.Tensor,
    seen: torch.Tensor,
    beam: int,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_feedback`; `seen` is the codebooks under each metric."""
    dim = codebooks.shape[2]
    targets = weight.clone()
    codes: list[torch.Tensor] = []
    for group in range(len(metric)):
        start, end = group * dim, (group + 1) * dim
        turned = torch.zeros(len(weight), dim)
        for index in range(dim):
            turned = turned + targets[:, start + index, None] * metric[group, index]
        rounded = turned.round().clamp(-768, 768).to(torch.int16)
        codes.append(additive_encode(rounded, seen[group], beam))
        picked = codes[-1].long()
        decoded = sum(book[picked[:, index]].int() for index, book in enumerate(codebooks))
        errors = weight[:, start:end] - decoded
        for index in range(dim):
            fed = errors[:, index, None] * unit[start + index, end:]
            targets[:, end:] = targets[:, end:] + fed
    return torch.stack(codes, dim=1).reshape(-1, len(codebooks))


def additive_decode(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode`."""
    total = codebooks[0][codes[:, 0].long()]
    for index in range(1, len(codebooks)):
        total = total + codebooks[index][codes[:, index].long()]
    return (total.reshape(len(scales), groups * codebooks.shape[2]) * scales[:, None]).to(dtype)


def additive_decode_rotated(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    block: int,
    signs: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode_rotated`."""
    sums = additive_decode(codes, codebooks, torch.ones(len(scales)), groups)
    factors = scales * torch.tensor(block**-0.5, dtype=torch.float32)
    return (butterflies(sums, block) * factors[:, None] * signs).to(dtype)


def additive_gradient(
    codes: torch.Tensor, gradient: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """See `vqdq.kernels.additive_gradient`."""
    scaled = (gradient.float() * scales.float()[:, None]).double().reshape(-1, shape[2])
    total = torch.zeros(shape, dtype=torch.float64)
    for index in range(shape[0]):
        total[index].index_add_(0, codes[:, index].long(), scaled)
    return total.float()
