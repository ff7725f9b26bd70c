"""Distances between two runs without keeping either run's activations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vqdq.capture.scratch import Scratch
from vqdq.capture.streams import evenly

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

    def __init__(self, scratch: Scratch | None = None) -> None:
        self._scratch = scratch or Scratch()
        self._signs: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, rows: Tensor, *, sample: int) -> tuple[Floats, Floats]:
        """Returns the sketches of `rows`, [rows, WIDTH], and their energies ‖y‖², [rows].

        Args:
            rows: [rows, n], each compared with the same row of another run; of many values, evenly
                many are taken, for the energy too.
            sample: each sample of a stream has signs of its own: runs are paired sample by sample.
        """
        flat = evenly(rows.detach(), _TAKEN).float().contiguous()
        mixed = torch.mul(flat, self._of(flat, sample), out=self._scratch.floats(flat))
        whole = mixed.shape[1] // self.WIDTH * self.WIDTH
        total = mixed[:, :whole].unflatten(1, (-1, self.WIDTH)).sum(dim=1)
        total[:, : mixed.shape[1] - whole] += mixed[:, whole:]
        power = torch.linalg.vecdot(flat, flat)
        found = torch.cat([total, power[:, None]], dim=1).cpu().numpy().astype(np.float64)
        if not np.isfinite(found[:, -1]).all() and not bool(torch.isfinite(flat).all()):
            return self.of(torch.nan_to_num(flat, nan=0.0, posinf=0.0, neginf=0.0), sample=sample)
        return found[:, :-1], found[:, -1]

    def _of(self, flat: Tensor, sample: int) -> Tensor:
        length = flat.shape[1]
        key = (length, flat.device)
        if key not in self._signs:
            generator = torch.Generator().manual_seed(0)
            bits = torch.randint(0, 2, (length,), generator=generator, dtype=torch.int8)
            # Multiplying float by float is three times as fast as by bytes.
            self._signs[key] = (bits * 2 - 1).float().to(flat.device)
        signs = self._signs[key]
        return signs.roll(7919 * sample) if sample else signs


class SketchStream:
    """Sum of the sketches of a layer's outputs, for each half of the guidance.

    Attributes:
        total: [halves, WIDTH]; `energy`: [halves].
    """

    def __init__(self, sketch: Sketch, halves: int) -> None:
        self.total: Floats = np.zeros((halves, Sketch.WIDTH))
        self.energy: Floats = np.zeros(halves)
        self._sketch = sketch
        self._samples = 0

    def add(self, y: Tensor) -> None:
        """Adds outputs [halves, samples, n]."""
        for index in range(y.shape[1]):
            total, energy = self._sketch.of(y[:, index], sample=self._samples)
            self.total += total
            self.energy += energy
            self._samples += 1
