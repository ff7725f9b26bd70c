"""Inputs with outliers where we put them, and their ranges taken by plain numpy."""

from __future__ import annotations

import math

import numpy as np
import torch

from vqdq.activations.base import InputRanges


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform on [−1, 1]: its quantization error is s²/12 whatever the step s."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ranges_of(inputs: torch.Tensor, timesteps: list[float] | None = None) -> InputRanges:
    """Extremes of inputs [steps, batch, positions, channels]."""
    values, steps = inputs.double().numpy(), inputs.shape[0]
    times = timesteps or list(np.linspace(999, 0, steps))

    def found(kind: str, axis: tuple[int, int]) -> torch.Tensor:
        return torch.from_numpy(getattr(np, kind)(values, axis=axis)).float()

    return InputRanges(
        timesteps=torch.tensor(times, dtype=torch.float32),
        channel_low=found("min", (1, 2)),
        channel_high=found("max", (1, 2)),
        position_low=found("min", (1, 3)),
        position_high=found("max", (1, 3)),
    )


def power(error: torch.Tensor) -> float:
    """Mean square."""
    return float(error.double().square().mean())


def decibels(ratio: float) -> float:
    return 10 * math.log10(ratio)


def rounding_error(size: float, step: float) -> float:
    """Mean square of x − step·round(x/step), x uniform on [−size, size]: s²/12 when s is small.

    With n whole steps in `size` and r = size − n·step: (n·step³/12 + r³/3) / size.
    """
    whole = round(size / step)
    return (whole * step**3 / 12 + (size - whole * step) ** 3 / 3) / size
