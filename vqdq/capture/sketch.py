"""Distances between two runs without keeping either run's activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdq.capture.streams import stride_of
from vqdq.kernels import statistics

Floats = npt.NDArray[np.float64]
_TAKEN = 1 << 12  # values of a sample: fewer would add to the error of the sketch itself


class Sketch:
    """A signed sum of a tensor in a few hundred buckets, from which distances between runs follow.

    With independent random signs, E‖s(a) − s(b)‖² = ‖a − b‖² and the relative standard error is √(2
    / WIDTH) (count sketch, Charikar, Chen and Farach-Colton 2002), so two runs are compared without
    keeping either run's activations. WIDTH is prime: consecutive positions of one channel then fall
    in different buckets.
    """

    WIDTH = 251  # relative error √(2/251) = 8.9 %, 0.37 dB

    def __init__(self) -> None:
        self._signs: dict[tuple[int, torch.device], Tensor] = {}

    def add(self, y: Tensor, *, sample: int, total: Floats, energy: Floats) -> None:
        """Adds samples to `total`, [halves, WIDTH], and ‖y‖² to `energy`, [halves].

        Args:
            y: [halves · samples, n], each compared with the same row of another run; of many
                values, evenly many are taken, for the energy too.
            sample: number of the first one; each sample of a stream has signs of its own, for runs
                are paired sample by sample.
        """
        stride = stride_of(y.shape[1], _TAKEN)
        signs = self._of(-(-y.shape[1] // stride), y.device)
        statistics.add_sketch(y, signs, sample, stride, total, energy)

    def _of(self, length: int, device: torch.device) -> Tensor:
        key = (length, device)
        if key not in self._signs:
            generator = torch.Generator().manual_seed(0)
            bits = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            self._signs[key] = (bits * 2 - 1).float().to(device)
        return self._signs[key]


class SketchStream:
    """Sum of the sketches of a layer's outputs, for each half of the guidance.

    Attributes:
        total: [halves, WIDTH]; `energy`: [halves].
    """

    __slots__ = ("_samples", "_sketch", "energy", "total")

    def __init__(self, sketch: Sketch, halves: int) -> None:
        self.total: Floats = np.zeros((halves, Sketch.WIDTH))
        self.energy: Floats = np.zeros(halves)
        self._sketch = sketch
        self._samples = 0

    def add(self, y: Tensor) -> None:
        """Adds outputs [halves · samples, n]."""
        self._sketch.add(y, sample=self._samples, total=self.total, energy=self.energy)
        self._samples += len(y) // len(self.energy)
