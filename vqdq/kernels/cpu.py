"""Every kernel compiled by numba, in threads that release the interpreter: as many as torch uses.

Work is cut into ranges that write disjoint outputs, so the result cannot depend on the number of
threads. Plain threads instead of numba's own parallel loops: those abort the process when two
threads of ours enter them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vqdq import packing
from vqdq.kernels import beam as beam_search
from vqdq.kernels import butterflies, lookup, reference, rounding, viterbi

Array: TypeAlias = npt.NDArray[Any]


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


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_encode`."""
    rows, columns = targets.shape
    codes = np.zeros((packing.packed_bytes(rows, bits), columns), np.uint8)
    wanted = targets.to(torch.int16).contiguous().numpy()
    values = (table.float() * 8).contiguous().numpy()
    side, step = reference.seam_rows(bits), 2 if bits == 2 else 4

    def encode(first: int, last: int) -> None:
        viterbi.encode_columns(wanted, values, bits, side, step, codes, first, last)

    _spread(encode, columns, viterbi.LANES)
    return torch.from_numpy(codes)


def trellis_decode(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_decode`."""
    stream = codes.contiguous().numpy()
    tail = np.zeros((8, codes.shape[1]), np.uint8)
    out = np.empty((rows, codes.shape[1]), np.int8)
    values = table.to(torch.int32).contiguous().numpy()
    inner = lookup.circular_tail(stream, rows * bits, tail)

    def decode(first: int, last: int) -> None:
        lookup.decode_rows(stream, tail, inner, values, bits, out, first, last)

    _spread(decode, rows, 32)
    return torch.from_numpy(out)


def additive_encode(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    """See `vqdq.kernels.additive_encode`."""
    wanted = vectors.to(torch.int16).contiguous().numpy()
    books = codebooks.to(torch.int16).contiguous().numpy()
    gram = np.empty(
        (len(books), len(books), beam_search.CODEWORDS, beam_search.CODEWORDS), np.int32
    )
    beam_search.gram_tables(books, gram)
    codes = np.empty((len(wanted), len(books)), np.uint8)

    def encode(first: int, last: int) -> None:
        beam_search.encode_vectors(wanted, books, gram, beam, codes, first, last)

    _spread(encode, len(wanted), 256)
    return torch.from_numpy(codes)


def additive_decode(
    codes: torch.Tensor, codebooks: torch.Tensor, scales: torch.Tensor, groups: int
) -> torch.Tensor:
    """See `vqdq.kernels.additive_decode`."""
    picked, books = codes.contiguous().numpy(), codebooks.contiguous().numpy()
    factors = scales.contiguous().numpy()
    out = np.empty((len(factors), groups * books.shape[2]), np.float32)

    def decode(first: int, last: int) -> None:
        beam_search.decode_rows(picked, books, factors, groups, out, first, last)

    _spread(decode, len(factors), 32)
    return torch.from_numpy(out)


def additive_gradient(
    codes: torch.Tensor, gradient: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """See `vqdq.kernels.additive_gradient`."""
    picked, slopes = codes.contiguous().numpy(), gradient.detach().float().contiguous().numpy()
    factors = scales.detach().float().contiguous().numpy()
    total = np.zeros(shape, np.float64)

    def add(first: int, last: int) -> None:
        beam_search.add_gradient(picked, slopes, factors, total, first, last)

    _spread(add, shape[0], 1)
    return torch.from_numpy(total.astype(np.float32))


def _spread(work: Callable[[int, int], None], count: int, grain: int) -> None:
    """Calls work(first, last) on ranges that cover 0..count-1 and start at multiples of `grain`."""
    threads = torch.get_num_threads()
    grains = -(-count // grain)
    if threads == 1 or grains == 1:
        work(0, count)
        return
    pieces = min(grains, 4 * threads)
    edges = [min(count, grains * piece // pieces * grain) for piece in range(pieces + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in pairwise(edges) if a < b]:
            done.result()
