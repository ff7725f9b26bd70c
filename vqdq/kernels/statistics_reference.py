"""Statistics of tensors in plain torch, on any device: the definition for `statistics_cpu`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vqdq.kernels.statistics import (
    BINS,
    FIRST,
    FLOOR_OCTAVES,
    ROOT,
    SCORE_BINS,
    SHIFT,
    SIDE,
    SIGN,
    Block,
    Counts,
    Floats,
)


def block_statistics(x: torch.Tensor, halves: int, stride: int, *, channels_first: bool) -> Block:
    """See `vqdq.kernels.statistics.block_statistics`."""
    values = x.unflatten(0, (halves, -1))  # [halves, samples, rows, columns]
    rows = [values.amin(3).amin(1), values.amax(3).amax(1)]
    columns = [values.amin((1, 2)), values.amax((1, 2))]
    both = [*rows, *columns] if channels_first else [*columns, *rows]
    limits = torch.cat(both, dim=1).cpu().numpy()
    if not np.isfinite(limits).all():
        good = torch.isfinite(x)
        mended = torch.where(good, x, 0.0)
        found = block_statistics(mended, halves, stride, channels_first=channels_first)
        bad = (~good).reshape(halves, -1).sum(1)
        return found._replace(nonfinite=bad.cpu().numpy())
    chosen = values.flatten(1)[:, ::stride]
    wide = _wide(chosen)
    square = wide * wide
    parts = [wide.sum(1), square.sum(1), (square * wide).sum(1), (square * square).sum(1)]
    sums = torch.stack(parts, dim=1).cpu().double().numpy()
    return Block(limits, sums, _counts(chosen), None)


def add_counts(values: torch.Tensor, counts: npt.NDArray[np.int32]) -> None:
    """See `vqdq.kernels.statistics.add_counts`."""
    counts += _counts(values).astype(np.int32)


def add_sketch(
    y: torch.Tensor, signs: torch.Tensor, sample: int, stride: int, total: Floats, energy: Floats
) -> None:
    """See `vqdq.kernels.statistics.add_sketch`."""
    buckets = total.shape[1]
    rows = y.unflatten(0, (len(total), -1))
    for index in range(rows.shape[1]):
        taken = rows[:, index, ::stride].float().nan_to_num(0.0, posinf=0.0, neginf=0.0)
        mixed = _wide(taken * signs.roll(7919 * (sample + index)))
        padded = torch.nn.functional.pad(mixed, (0, -mixed.shape[1] % buckets))
        total += padded.unflatten(1, (-1, buckets)).sum(dim=1).cpu().double().numpy()
        energy += _wide(taken).square().sum(dim=1).cpu().double().numpy()


def add_codes(
    rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, highest: int, counts: Counts
) -> None:
    """See `vqdq.kernels.statistics.add_codes`."""
    codes = torch.round(rows * scale.reciprocal()) + zero
    kept = codes.nan_to_num(0.0).clamp_(-1, highest + 1).add_(1).to(torch.int32)
    parts = [kept] * len(counts) if len(kept) % len(counts) else kept.chunk(len(counts))
    for half, part in enumerate(parts):
        counts[half] += torch.bincount(part.reshape(-1), minlength=highest + 3).cpu().numpy()


def bin_quantiles(
    counts: npt.NDArray[Any], low: Floats, high: Floats, edges: Floats, levels: Floats
) -> Floats:
    """See `vqdq.kernels.statistics.bin_quantiles`."""
    total = counts.sum(axis=1)  # [rows]
    cumulated = counts.cumsum(axis=1)
    last = counts.shape[1] - 1
    rows = np.arange(counts.shape[0])
    found = np.zeros((len(levels), counts.shape[0]))
    for index, level in enumerate(levels):
        target = np.maximum(level * total, 1e-9)
        cell = np.minimum((cumulated < target[:, None]).sum(axis=1), last)
        inside = np.maximum(counts[rows, cell], 1)
        part = (target - (cumulated[rows, cell] - counts[rows, cell])) / inside
        left = np.where(cell == 0, low, np.clip(edges[cell], low, high))
        right = np.where(cell == last, high, np.clip(edges[cell + 1], low, high))
        found[index] = left + np.clip(part, 0.0, 1.0) * (right - left)
    return found


def score_counts(
    scores: torch.Tensor, groups: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """See `vqdq.kernels.statistics.score_counts`."""
    bits = scores.contiguous().view(torch.int32)
    half = (bits & 0x7FFFFF) >= ROOT
    cell = (2 * ((bits >> 23) - 127 + FLOOR_OCTAVES) + half + 1).clamp_(0, SCORE_BINS - 1)
    first = torch.from_numpy(groups * SCORE_BINS).to(scores.device)
    found = torch.bincount((cell + first).reshape(-1), minlength=count * SCORE_BINS)
    return found.cpu().numpy().reshape(count, SCORE_BINS)


def _counts(values: torch.Tensor) -> Counts:
    """How many values of each row fall in each bin, [rows, BINS]."""
    keys = values.contiguous().view(torch.int32) >> SHIFT
    cells = keys.bitwise_and(SIGN).sub_(FIRST - 1).clamp_(0, SIDE)
    cells.mul_((keys >> 31).bitwise_or_(1))  # the sign, −1 or 1
    first = torch.arange(len(values), device=keys.device, dtype=torch.int32) * BINS + SIDE
    found = torch.bincount(cells.add_(first[:, None]).reshape(-1), minlength=len(values) * BINS)
    return found.cpu().numpy().reshape(len(values), BINS)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Float64, where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()
