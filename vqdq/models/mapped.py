"""Pages of a mapped file, given back as soon as their tensors are copied.

A safetensors file is mapped whole. Each page that is read stays in this process's memory until the
last tensor of the file is gone, so a file that is copied tensor by tensor would be there twice.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

_PAGE = 4096
_DONT_NEED = 4  # madvise(2): MADV_DONTNEED; pages of a file are read again when they are touched
_EACH = 32 << 20
_MAPS = Path("/proc/self/maps")


class MappedPages:
    """Collects tensors that are copied, and lets their pages go every 32 MB (Linux only)."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._bytes = 0

    def copied(self, tensor: torch.Tensor) -> None:
        """Notes that nobody will read this tensor again, if it lies in a file."""
        if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
            return
        start = tensor.data_ptr()
        self._ranges.append((start, start + tensor.nbytes))
        self._bytes += tensor.nbytes
        if self._bytes >= _EACH:
            self.release()

    def release(self) -> None:
        """Gives back the whole pages of what was noted, where they are pages of a file.

        Memory that is not mapped from a weight file is never touched: there the advice would
        destroy what it holds.
        """
        ranges, self._ranges, self._bytes = self._ranges, [], 0
        if not ranges:
            return
        files = _file_ranges()
        for start, stop in ranges:
            first, last = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
            inside = any(low <= first and last <= high for low, high in files)
            if first < last and inside:
                _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONT_NEED)


def _file_ranges() -> list[tuple[int, int]]:
    """Returns where weight files are mapped into this process."""
    found: list[tuple[int, int]] = []
    for line in _MAPS.read_text().splitlines():
        if line.endswith(".safetensors"):
            low, _, high = line.partition(" ")[0].partition("-")
            found.append((int(low, 16), int(high, 16)))
    return found


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
