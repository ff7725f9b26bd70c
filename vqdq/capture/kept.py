"""One layer's input at one step, value by value: what a surface or a closer look needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

KEPT_BYTES = 64 << 20
"""What the kept values may take, unless another budget is given."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptTensor:
    """The input of one layer at one step.

    Attributes:
        name, step: which; `halves`: names of the leading axis.
        positions: (h, w), (tokens,) or () as in `LayerRecord`.
        values: float32 [halves, samples, kept positions, channels].
        kept: which positions, in reading order, int64; all of them when the budget allows.
        seen: samples that came in, of which the first ones are kept, [1].
    """

    name: str
    step: int
    halves: tuple[str, ...]
    positions: tuple[int, ...]
    values: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    seen: npt.NDArray[np.int64]

    @property
    def whole(self) -> bool:
        """Whether every sample and every position is here."""
        total = int(np.prod(self.positions, dtype=np.int64))
        return len(self.kept) == total and int(self.seen[0]) == self.values.shape[1]

    @property
    def surface(self) -> npt.NDArray[np.float32]:
        """Largest magnitude over the samples, [halves, kept positions, channels]."""
        return np.abs(self.values).max(axis=1)


class Keeper:
    """Keeps whole samples as long as they fit; of one that is too large, evenly spaced positions.

    Attributes:
        budget: bytes of the kept values.
    """

    def __init__(self, *, budget: int) -> None:
        self.budget = budget
        self._parts: list[npt.NDArray[np.float32]] = []
        self._kept: npt.NDArray[np.int64] | None = None
        self._seen = 0
        self._bytes = 0

    def add(self, values: Tensor) -> None:
        """Adds an input, [halves, samples, positions, channels]."""
        halves, samples, positions, channels = values.shape
        self._seen += samples
        if self._kept is None:
            fitting = max(1, min(positions, self.budget // (4 * halves * channels)))
            self._kept = np.linspace(0, positions - 1, fitting).round().astype(np.int64)
        each = 4 * halves * len(self._kept) * channels
        room = (self.budget - self._bytes) // each if self._parts else max(1, self.budget // each)
        if room <= 0:
            return
        chosen = values[:, :room].detach().float().cpu().numpy()[:, :, self._kept]
        self._bytes += chosen.nbytes
        self._parts.append(np.ascontiguousarray(chosen))

    def result(
        self, *, name: str, step: int, halves: tuple[str, ...], positions: tuple[int, ...]
    ) -> KeptTensor | None:
        """Returns what was kept; None when the layer did not run at this step."""
        if self._kept is None:
            return None
        return KeptTensor(
            name=name,
            step=step,
            halves=halves,
            positions=positions,
            values=np.concatenate(self._parts, axis=1),
            kept=self._kept,
            seen=np.array([self._seen], dtype=np.int64),
        )
