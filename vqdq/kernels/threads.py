"""Threads that no result depends on.

Our own loops: plain threads over ranges with disjoint outputs. Library calls: Cholesky factors and
matrix products of MKL and OpenBLAS differ in the last bit between one thread and two (measured:
from 300 columns on), and what is stored must not, so those run on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
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
    ranges = iter([(a, b) for a, b in pairwise(edges) if a < b])

    def drain() -> None:
        for first, last in ranges:  # each range goes to whoever asks first
            work(first, last)

    others = [_pool(threads).submit(drain) for _ in range(threads - 1)]
    drain()
    for other in others:
        if not other.cancel():  # torch's own threads may keep a core busy, waiting: nothing is left
            other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Returns threads that stay: starting them takes longer than a small product."""
    return ThreadPoolExecutor(threads, thread_name_prefix="vqdq")


if hasattr(os, "register_at_fork"):  # not on Windows; a child has no threads but its own
    os.register_at_fork(after_in_child=_pool.cache_clear)


@contextmanager
def one_thread() -> Generator[None]:
    """Runs the body with one torch thread, then restores the number of the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
