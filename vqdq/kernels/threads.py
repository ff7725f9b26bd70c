"""Threads that no result depends on.

Our own loops: plain threads over ranges with disjoint outputs. Library calls: Cholesky factors and
matrix products of MKL and OpenBLAS differ in the last bit between one thread and two (measured:
from 300 columns on), and what is stored must not, so those run on one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch


def spread(work: Callable[[int, int], None], count: int, grain: int) -> None:
    """Calls work(first, last) on ranges that cover 0..count-1 and start at multiples of `grain`.

    As many threads as torch uses. Numba's own parallel loops abort the process when two threads of
    ours enter them at once.
    """
    threads = torch.get_num_threads()
    grains = -(-count // grain)
    if threads == 1 or grains == 1:
        work(0, count)
        return
    pieces = min(grains, 4 * threads)
    edges = [min(count, grains * piece // pieces * grain) for piece in range(pieces + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, a, b) for a, b in pairwise(edges) if a < b]:
            done.result()


@contextmanager
def one_thread() -> Generator[None]:
    """Runs the body with one torch thread, then restores the number of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
