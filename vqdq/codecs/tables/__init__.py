"""The trained tables that ship; `python -m vqdq.codecs.tables.train` rebuilds them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

TRELLIS_STEP = 1 / 32  # an int8 table entry of 32 stands for one standard deviation


@cache
def trellis(bits: int, state_bits: int) -> torch.Tensor:
    """Returns the reproduction values of the trellis in table steps, int8 [2**state_bits]."""
    return _load("trellis.npz", f"k{bits}_l{state_bits}")


@cache
def additive(num_codebooks: int, group_size: int) -> torch.Tensor:
    """Returns codebooks trained on Gaussian vectors, float16 [num_codebooks, 256, group_size]."""
    return _load("additive.npz", f"m{num_codebooks}_g{group_size}")


def _load(file: str, key: str) -> torch.Tensor:
    with np.load(Path(__file__).with_name(file), allow_pickle=False) as tables:
        return torch.from_numpy(tables[key])
