"""Streams that do everything at once on the processor, which stands for the card, and write down
what they were asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class WrittenDown:
    """Attributes: log: copies, marks and waits in their order; buffers: bytes of each; held: how
    many packed tensors were laid where the card can read them.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        del device
        self.log: list[str] = []
        self.buffers: list[int] = []
        self.held_tensors = 0
        self._aside = False

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        self.held_tensors += 1
        return tensor.clone()

    def buffer(self, num_bytes: int) -> torch.Tensor:
        assert not self._aside
        self.buffers.append(num_bytes)
        return torch.full((num_bytes,), 255, dtype=torch.uint8)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._aside, "copies belong on the side stream"
        self.log.append("copy")
        return tensor.clone()

    def mark(self, name: str) -> str:
        assert self._aside == name.startswith("decoded")
        self.log.append(name)
        return name

    def wait(self, event: str) -> None:
        self.log.append(f"{'side' if self._aside else 'main'} waits for {event}")
