"""The trellis on the CPU: tensors in, compiled loops, tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vqdq import packing
from vqdq.kernels import lookup, trellis_reference, viterbi, weights
from vqdq.kernels.threads import spread

_LIMIT = trellis_reference.LARGEST_TARGET


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_encode`."""
    rows, columns = targets.shape
    codes = np.empty((packing.packed_bytes(rows, bits), columns), np.uint8)
    wanted, values = targets.to(torch.int16).contiguous().numpy(), table.contiguous().numpy()
    choices, width = viterbi.form(bits, len(values))
    dealt, edges = viterbi.dealt(values, bits), _edges(rows)
    side = trellis_reference.seam_rows(bits)

    def encode(first: int, last: int) -> None:
        viterbi.encode_columns(
            wanted, values, dealt, edges, side, _LIMIT, codes, first, last, choices, width
        )

    spread(encode, columns, 16)
    return torch.from_numpy(codes)


def trellis_feedback(
    weight: torch.Tensor,
    scales: torch.Tensor,
    unit: torch.Tensor,
    table: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """See `vqdq.kernels.trellis_feedback`."""
    if weight.ndim > 2:
        layers = zip(weight, scales, unit, strict=True)
        return torch.stack([trellis_feedback(*layer, table, bits) for layer in layers])
    rows, columns = weight.shape
    codes = np.empty((packing.packed_bytes(rows, bits), columns), np.uint8)
    source = np.ascontiguousarray(weight.float().T.numpy())
    targets, errors = source.copy(), np.empty_like(source)
    sizes = scales.float().contiguous()
    per_unit = torch.where(sizes > 0, trellis_reference.COST_UNITS / sizes, 0.0).numpy()
    steps, shares = sizes.numpy(), unit.float().contiguous().numpy()
    values = table.contiguous().numpy()
    choices, width = viterbi.form(bits, len(values))
    dealt, edges = viterbi.dealt(values, bits), _edges(rows)
    side = trellis_reference.seam_rows(bits)

    def encode(first: int, last: int) -> None:
        viterbi.encode_fed(
            targets, source, errors, steps, per_unit, shares, values, dealt, edges, side, _LIMIT,
            codes, first, last, choices, width,
        )  # fmt: skip

    spread(encode, len(edges) - 1, 1)
    return torch.from_numpy(codes)


def trellis_decode(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """See `vqdq.kernels.trellis_decode`."""
    out = np.empty((rows, codes.shape[1]), np.int8)
    stream, tails, inner = _streams(codes, bits, rows)
    values, state_bits = lookup.turned(table.numpy()), len(table).bit_length() - 1

    def decode(first: int, last: int) -> None:
        lookup.decode_rows(stream, tails, inner, values, bits, state_bits, out, first, last)

    spread(decode, rows, 32)
    return torch.from_numpy(out)


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
    rows, columns = len(scales), codes.shape[1]
    out = np.empty((rows, columns), np.float32)
    stream, tails, inner = _streams(codes, bits, rows)
    values, state_bits = lookup.turned(table.numpy()), len(table).bit_length() - 1
    shape = (0,) * (block.bit_length() - 1)
    factors = trellis_reference.row_factors(scales, block).numpy()
    directions = signs.float().contiguous().numpy()

    def decode(first: int, last: int) -> None:
        weights.decode_weight(
            stream,
            tails,
            inner,
            values,
            bits,
            state_bits,
            factors,
            directions,
            out,
            first,
            last,
            shape,
        )

    spread(decode, rows, 32)
    return torch.from_numpy(out).to(dtype)


def _streams(codes: torch.Tensor, bits: int, rows: int) -> tuple[Any, Any, Any]:
    """Returns the codes, the circular ends of their segments and where those begin."""
    stream, edges = codes.contiguous().numpy(), _edges(rows)
    tails = np.zeros((len(edges) - 1, lookup.TAIL, codes.shape[1]), np.uint8)
    inner = np.empty(len(edges) - 1, np.int64)
    lookup.circular_tails(stream, edges, bits, tails, inner)
    return stream, tails, inner


def _edges(rows: int) -> Any:
    return np.array(trellis_reference.segment_edges(rows), np.int64)
