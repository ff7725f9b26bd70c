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


def orthogonalise_each(matrices: list[Tensor], steps: int = 4) -> list[Tensor]:
    """`orthogonalise` of each matrix, blocks of one shape in one batch: a card is given thousands
    of small products at once instead of one by one."""
    blocks = [matrix.split(_BLOCK_ROWS) for matrix in matrices]
    alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, parts in enumerate(blocks):
        for j, part in enumerate(parts):
            alike.setdefault((part.shape[0], part.shape[1]), []).append((i, j))
    done = [list(parts) for parts in blocks]
    for places in alike.values():
        batch = _newton_schulz(torch.stack([blocks[i][j] for i, j in places]), steps)
        for (i, j), part in zip(places, batch, strict=True):
            done[i][j] = part
    return [torch.cat(parts) for parts in done]


def _newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """[..., rows, columns] with singular values close to 1."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


def _move_(parameter: Tensor, update: Tensor, rate: float) -> None:
    """Moves a matrix along an orthogonal update, as far as a step of AdamW would."""
    rows, columns = min(update.shape[0], _BLOCK_ROWS), update.shape[1]
    alpha = rate * 0.2 * max(rows, columns) ** 0.5
    parameter.add_(update.view_as(parameter), alpha=-alpha)


@torch.no_grad()
def step_(
    slots: list[Slot], gradients: list[Tensor], rates: Rates, scale: float, count: int
) -> None:
    """Moves the parameters of `slots` by one step along `gradients`.

    Args:
        scale: the schedule's multiplier of both learning rates.
        count: how many steps were taken, this one included (for AdamW's bias correction).
    """
    together: list[tuple[Tensor, Tensor]] = []
    for slot, gradient in zip(slots, gradients, strict=True):
        parameter = slot.parameter.data
        if slot.second is None:
            slot.first.mul_(rates.momentum).add_(gradient)
            nesterov = gradient.add(slot.first, alpha=rates.momentum)
            parameter.mul_(1 - rates.matrix * scale * rates.weight_decay)
            if parameter.device.type != "cpu":
                together.append((parameter, nesterov.flatten(1)))
                continue
            _move_(parameter, orthogonalise(nesterov.flatten(1)), rates.matrix * scale)
        else:
            first, second = rates.betas
            slot.first.lerp_(gradient, 1 - first)
            slot.second.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            size = (slot.second / (1 - second**count)).sqrt_().add_(1e-8)
            parameter.addcdiv_(slot.first, size, value=-rates.other * scale / (1 - first**count))
    updates = orthogonalise_each([momentum for _, momentum in together])
    for (parameter, _), update in zip(together, updates, strict=True):
        _move_(parameter, update, rates.matrix * scale)
