"""The memory of a card: what is taken, what is left, and letting go of it after it was full."""

from __future__ import annotations

import gc
import re
import traceback
from dataclasses import dataclass

import torch
from torch import nn

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_ASKED = re.compile(r"Tried to allocate ([\d.]+) ([KMGT]?)i?B")
_FULL = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardState:
    """Memory of a card as this process sees it.

    Attributes:
        allocated_bytes: of tensors; available_bytes: what all tensors together may take, which is
            what is free and what the allocator holds.
    """

    allocated_bytes: int
    available_bytes: int


def card_of(module: nn.Module) -> torch.device | None:
    """Returns the card that a module lies on, None where it is somewhere else."""
    first = next(module.parameters(), None)
    return first.device if first is not None and first.device.type == "cuda" else None


def card_state(device: torch.device) -> CardState:
    """Returns the state of a card."""
    free, _ = torch.cuda.mem_get_info(device)
    return CardState(
        allocated_bytes=torch.cuda.memory_allocated(device),
        available_bytes=free + torch.cuda.memory_reserved(device),
    )


def reset_card_peak(device: torch.device) -> None:
    """Starts a new peak."""
    torch.cuda.reset_peak_memory_stats(device)


def card_peak(device: torch.device) -> int:
    """Returns the most bytes that tensors took since `reset_card_peak`."""
    return torch.cuda.max_memory_allocated(device)


def is_full(error: BaseException) -> bool:
    """Returns whether an error says that a card had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def asked_bytes(error: BaseException) -> int:
    """Returns what the allocation asked for that failed, to the digits torch says; 0 if unsaid."""
    found = _ASKED.search(str(error))
    return 0 if found is None else round(float(found[1]) * _UNITS[found[2]])


def let_go(error: BaseException | None) -> None:
    """Gives a card's memory back after an error: what the frames that it passed hold, and what the
    allocator keeps. The error still says where it came from.
    """
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
