"""Every kernel compiled by numba, in threads that release the interpreter: as many as torch uses.

Work is cut into ranges that write disjoint outputs, so the result cannot depend on the number of
threads. Plain threads instead of numba's own parallel loops: those abort the process when two
threads of ours enter them at once.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vqdq import packing
from vqdq.kernels import beam as beam_search
from vqdq.kernels import butterflies, reference, rounding, sums
from vqdq.kernels.threads import spread as _spread
from vqdq.kernels.trellis import trellis_decode as trellis_decode
from vqdq.kernels.trellis import trellis_encode as trellis_encode
from vqdq.kernels.trellis import trellis_feedback as trellis_feedback
from vqdq.kernels.trellis import trellis_weight as trellis_weight

Array: TypeAlias = npt.NDArray[Any]
FEEDBACK_COLUMNS = 128  # encoded before what they lost is fed back to all later ones at once


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.pack_bits`."""
    flat = values.contiguous().reshape(-1)
    if flat.dtype != torch.uint8 or not 1 <= bits <= 8 or (len(flat) and int(flat.max()) >> bits):
        return packing.pack(values, bits)  # also words the faults
    out = np.zeros(packing.packed_bytes(len(flat), bits), np.uint8)
    rounding.pack(flat.numpy(), bits, out)
    return torch.from_numpy(out)


def unpack_bits(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """See `vqdq.kernels.unpack_bits`."""
    flat = stream.contiguous().reshape(-1)
    if not 1 <= bits <= 8 or len(flat) < packing.packed_bytes(count, bits):
        return reference.unpack_bits(stream, bits, count)
    out = np.empty(count, np.uint8)
    rounding.unpack(flat.numpy(), bits, out)
    return torch.from_numpy(out)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """See `vqdq.kernels.hadamard`."""
    out = x.detach().float().contiguous().clone().numpy()
    scale: Any = np.float32(block**-0.5)
    _spread(lambda a, b: butterflies.transform(out, block, scale, a, b), out.shape[0], 64)
    return torch.from_numpy(out)


def grid_errors(
    groups: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, highest: int
) -> torch.Tensor:
    """See `vqdq.kernels.grid_errors`."""
    weights = groups.float().contiguous().numpy()
    step, zero = steps.double().contiguous(), zeros.double().contiguous().numpy()
    inverse = torch.where(step > 0, 1 / step, 0.0).numpy()
    total = np.zeros(steps.shape, np.float64)
    sizes = step.numpy()

    def measure(first: int, last: int) -> None:
        rounding.grid_errors(weights, sizes, inverse, zero, highest, total, first, last)

    _spread(measure, len(weights), 8)
    return torch.from_numpy(total)


def table_errors(groups: torch.Tensor, steps: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """See `vqdq.kernels.table_errors`."""
    weights, sizes = groups.float().contiguous().numpy(), steps.contiguous().numpy()
    levels, bounds = table.contiguous().numpy(), reference.midpoints(table).numpy()
    total = np.zeros(steps.shape, np.float64)

    def measure(first: int, last: int) -> None:
        rounding.table_errors(weights, sizes, levels, bounds, total, first, last)

    _spread(measure, len(weights), 8)
    return torch.from_numpy(total)


def feed_forward(targets: torch.Tensor, errors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """See `vqdq.kernels.feed_forward`."""
    out = targets.float().contiguous().clone()
    lost, shares = errors.contiguous().numpy(), unit.contiguous().numpy()
    fed = out.numpy()
    _spread(lambda a, b: rounding.feed_forward(fed, lost, shares, a, b), out.shape[1], 64)
    return out


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
    moved = targets.float().contiguous().clone().numpy()
    weights, shares = weight.contiguous().numpy(), unit.contiguous().numpy()
    step, zero = steps.contiguous().numpy(), zeros.contiguous().numpy()
    member, levels = group.int().contiguous().numpy(), table.contiguous().numpy()
    bounds = reference.midpoints(table).numpy()
    codes = np.empty(targets.shape, np.uint8)
    errors = np.empty(targets.shape, np.float32)

    def work(first: int, last: int) -> None:
        rounding.round_columns(
            moved,
            weights,
            shares,
            step,
            zero,
            member,
            levels,
            bounds,
            codes,
            errors,
            first,
            last,
        )

    _spread(work, targets.shape[1], 64)
    return torch.from_numpy(codes), torch.from_numpy(errors)


def additive_encode(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    """See `vqdq.kernels.additive_encode`."""
    wanted = vectors.to(torch.int16).contiguous().numpy()
    books = codebooks.to(torch.int16).contiguous().numpy()
    words = books.shape[1]
    gram = np.empty((len(books), len(books), words, words), np.int32)
    beam_search.gram_tables(books, gram)
    codes = np.empty((len(wanted), len(books)), np.uint8)

    def encode(first: int, last: int) -> None:
        beam_search.encode_vectors(wanted, books, gram, beam, codes, first, last)

    _spread(encode, len(wanted), 256)
    return torch.from_numpy(codes)


def additive_feedback(
    weight: torch.Tensor,
    unit: torch.Tensor,
    metric: torch.Tensor,
    codebooks: torch.Tensor,
    seen: torch.Tensor,
    beam: int,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_feedback`."""
    plain, under = codebooks.to(torch.int16).contiguous().numpy(), seen.contiguous().numpy()
    wanted, factor = weight.contiguous().numpy(), unit.contiguous().numpy()
    metrics = metric.contiguous().numpy()
    (rows, columns), (count, words, dim) = wanted.shape, plain.shape
    targets, errors = wanted.copy(), np.zeros_like(wanted)
    codes = np.empty((rows, columns // dim, count), np.uint8)
    span = FEEDBACK_COLUMNS // dim  # groups of a block
    gram = np.empty((span, count, count, words, words), np.int32)
    for start in range(0, columns // dim, span):
        block = slice(start, start + span)
        begin, end = start * dim, min((start + span) * dim, columns)

        def prepare(first: int, last: int, base: int = start) -> None:
            for group in range(first, last):
                beam_search.gram_tables(under[base + group], gram[group])

        def encode(
            first: int, last: int, block: slice = block, begin: int = begin, end: int = end
        ) -> None:
            beam_search.feedback_groups(
                targets, errors, wanted, factor, metrics[block], plain, under[block], gram,
                beam, codes, begin, first, last,
            )  # fmt: skip
            # by 512 columns, which stay in the cache with the block's part of the factor
            for left in range(end, columns, 512):
                right = min(left + 512, columns)
                beam_search.feed_back(targets, errors, factor, begin, end, left, right, first, last)

        _spread(prepare, (end - begin) // dim, 1)
        _spread(encode, rows, 64)
    return torch.from_numpy(codes.reshape(-1, count))


def additive_decode(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode`."""
    full = torch.zeros(len(codebooks), sums.CODEWORDS, codebooks.shape[2])
    full[:, : codebooks.shape[1]] = codebooks
    picked, books = codes.contiguous().numpy(), full.numpy()
    factors = scales.contiguous().numpy()
    out = np.empty((len(factors), groups * books.shape[2]), np.float32)

    def decode(first: int, last: int) -> None:
        sums.decode_rows(picked, books, factors, groups, out, first, last)

    _spread(decode, len(factors), 32)
    return torch.from_numpy(out).to(dtype)


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
    if block not in (16, 32, 64, 128, 256):
        return reference.additive_decode_rotated(
            codes, codebooks, scales, groups, block, signs, dtype
        )
    full = torch.zeros(len(codebooks), sums.CODEWORDS, codebooks.shape[2])
    full[:, : codebooks.shape[1]] = reference.butterflies(codebooks, codebooks.shape[2])
    picked, books = codes.contiguous().numpy(), full.numpy()
    factors = (scales * torch.tensor(block**-0.5)).contiguous().numpy()
    turned = signs.contiguous().numpy()
    out = np.empty((len(factors), groups * books.shape[2]), np.float32)

    def decode(first: int, last: int) -> None:
        sums.decode_turned_rows(picked, books, factors, groups, block, turned, out, first, last)

    _spread(decode, len(factors), 32)
    return torch.from_numpy(out).to(dtype)


def additive_gradient(
    codes: torch.Tensor, gradient: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """See `vqdq.kernels.additive_gradient`."""
    picked, slopes = codes.contiguous().numpy(), gradient.detach().float().contiguous().numpy()
    factors = scales.detach().float().contiguous().numpy()
    total = np.zeros(shape, np.float64)

    def add(first: int, last: int) -> None:
        sums.add_gradient(picked, slopes, factors, total, first, last)

    _spread(add, shape[0], 1)
    return torch.from_numpy(total.astype(np.float32))
