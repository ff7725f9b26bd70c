"""The trained tables that ship; `python -m vqdq.codecs.tables.train` rebuilds them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

_PROCESSOR = torch.device("cpu")
TRELLIS_STEP = 1 / 32  # an int8 table entry of 32 stands for one standard deviation
# (bits, state bits). Two steps of the trellis reach every state; beyond 12 bits of state 5 and 6
# bits gain nothing, their error being near that of int8 itself.
TRELLIS_SHAPES = (
    *((2, 8), (3, 8), (4, 8)),
    *((2, 10), (3, 10), (4, 10), (5, 10)),
    *((2, 12), (3, 12), (4, 12), (5, 12), (6, 12)),
    *((2, 14), (3, 14), (4, 14)),
    *((2, 16), (3, 16), (4, 16)),
)


def trellis(bits: int, state_bits: int, device: torch.device = _PROCESSOR) -> torch.Tensor:
    """Returns the reproduction values of the trellis in table steps, int8 [2**state_bits]."""
    return _load("trellis.npz", f"k{bits}_l{state_bits}", device)


def additive(
    num_codebooks: int, group_size: int, bits: int = 8, device: torch.device = _PROCESSOR
) -> torch.Tensor:
    """Returns codebooks trained on Gaussian vectors, float16 [M, 2**bits, group_size]."""
    return _load("additive.npz", additive_name(num_codebooks, group_size, bits), device)


def additive_name(num_codebooks: int, group_size: int, bits: int) -> str:
    """Returns the name of a set of codebooks in the file."""
    return f"m{num_codebooks}_g{group_size}" + (f"_b{bits}" if bits < 8 else "")


@cache
def _load(file: str, key: str, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return _load(file, key, _PROCESSOR).to(device)
    with np.load(Path(__file__).with_name(file), allow_pickle=False) as tables:
        return torch.from_numpy(tables[key])
