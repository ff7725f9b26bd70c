"""One thread for library calls whose sums depend on how many threads share them.

Cholesky factors and matrix products of MKL and OpenBLAS differ in the last bit between one thread
and two (measured: from 300 columns on). What is stored must not, so they run on one.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Generator[None]:
    """Runs the body with one torch thread, then restores the number of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
