"""Random-sign block Hadamard on the input side: makes every weight matrix look Gaussian.

W̃ = W S H with S = diag(±1) and H block-diagonal, orthonormal (QuIP#, arXiv 2402.04396, section 3;
the papers rotate the output side too and use one full-size H; blocks of 64 to 256 on the input side
keep 95 % of the gain and fit every width of a diffusion model). Blocks never cross from one tap of
a convolution into the next, so the same rotation can also be applied to the layer's input.
"""

from __future__ import annotations

import torch

from vqdq import kernels, packing
from vqdq.codecs.base import WeightShape
from vqdq.tensors import TensorSpec

SMALLEST_BLOCK = 16
_ROWS = 1024  # of a Hessian, rotated at a time: 2 GB of it are copied once, not four times


def block_size(shape: WeightShape, largest: int) -> int:
    """Returns the largest power of two ≤ `largest` that divides the channels; 0 below 16.

    0 is no rotation. A width such as 100 or 330 has no block of 16, and rotating in twos or fours
    would not mix enough to help.
    """
    common = shape.channels & -shape.channels  # largest power of two that divides it
    block = min(common, largest)
    return block if block >= SMALLEST_BLOCK else 0


def spec(shape: WeightShape) -> TensorSpec:
    """Returns what the sign bits of a rotated weight take: one bit a column."""
    stored = packing.packed_bytes(shape.in_features, 1)
    return TensorSpec(name="signs", dtype=torch.uint8, shape=(stored,))


def random_signs(columns: int, generator: torch.Generator) -> torch.Tensor:
    """Returns `columns` random signs, one bit each (1 = minus), uint8 [ceil(columns/8)]."""
    minus = torch.randint(0, 2, (columns,), generator=generator, dtype=torch.uint8)
    return kernels.pack_bits(minus, 1)


def signs(stored: torch.Tensor, columns: int) -> torch.Tensor:
    """Returns stored sign bits as ±1, float32 [columns]."""
    return 1.0 - 2.0 * kernels.unpack_bits(stored, 1, columns).float()


def rotate(weight: torch.Tensor, stored: torch.Tensor, block: int) -> torch.Tensor:
    """Returns W S H, float32 [rows, columns]; `block` 0 returns W."""
    if block == 0:
        return weight
    return kernels.hadamard(weight * signs(stored, weight.shape[1]), block)


def unrotate(rotated: torch.Tensor, stored: torch.Tensor, block: int) -> torch.Tensor:
    """Returns W̃ Hᵀ S, the inverse of `rotate`."""
    if block == 0:
        return rotated
    return kernels.hadamard(rotated, block) * signs(stored, rotated.shape[1])


def rotate_hessian(hessian: torch.Tensor, stored: torch.Tensor, block: int) -> torch.Tensor:
    """Returns E[x̃ x̃ᵀ] of the rotated inputs x̃ = (S H)ᵀ x; `block` 0 returns the Hessian.

    tr(W̃ H̃ W̃ᵀ) = tr(W H Wᵀ), so an error weighted in one basis is the same in the other.
    """
    if block == 0:
        return hessian
    directions = signs(stored, hessian.shape[1])
    turned = hessian.float().clone()
    _rotate_rows_(turned, directions, block)
    turned = turned.T.contiguous()
    _rotate_rows_(turned, directions, block)
    return turned


def _rotate_rows_(matrix: torch.Tensor, directions: torch.Tensor, block: int) -> None:
    for rows in matrix.split(_ROWS):
        rows.copy_(kernels.hadamard(rows * directions, block))
