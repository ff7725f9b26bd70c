"""Room for intermediate results, reserved once: fresh memory costs more than the sums themselves.

Pages of a fresh block are handed out by the system one by one. For 64k values that took 60 % of the
time of all their statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Two blocks that grow to what was asked last, one of float32 and one of int32."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)
        self._ints = torch.empty(0, dtype=torch.int32)

    def floats(self, like: Tensor) -> Tensor:
        """Returns float32 room of the shape of `like`, until the next call."""
        if self._floats.numel() < like.numel() or self._floats.device != like.device:
            self._floats = _fresh(like, torch.float32)
        return self._floats[: like.numel()].view(like.shape)

    def ints(self, like: Tensor) -> Tensor:
        """Returns int32 room of the shape of `like`, until the next call."""
        if self._ints.numel() < like.numel() or self._ints.device != like.device:
            self._ints = _fresh(like, torch.int32)
        return self._ints[: like.numel()].view(like.shape)


def _fresh(like: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):  # else it could not be written outside of that mode
        return torch.empty(like.numel(), dtype=dtype, device=like.device)
