"""How the benchmarks time things: interleaved, medians with spread, and on which machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Wall-clock seconds of one piece of work."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


K = TypeVar("K", bound=Hashable)


def interleaved(
    work: Mapping[K, Callable[[], object]], *, repeats: int, warm: bool = True
) -> dict[K, Seconds]:
    """Returns the seconds of each piece, the pieces taken in turn A B C A B C.

    Args:
        work: pieces by name.
        repeats: timed turns; `warm`: one turn before them that is not.
    """
    taken: dict[K, list[float]] = {name: [] for name in work}
    for turn in range(0 if warm else 1, repeats + 1):
        for name, piece in work.items():
            start = time.perf_counter()
            piece()
            if turn:  # turn 0 warms caches up
                taken[name].append(time.perf_counter() - start)
    return {
        name: Seconds(median=statistics.median(times), low=min(times), high=max(times))
        for name, times in taken.items()
    }


def machine() -> str:
    """Returns one line: processor features, cores, threads, versions, load at the start."""
    flags = torch.backends.cpu.get_cpu_capability()
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()} with {flags}, {os.cpu_count()} cores, {torch.get_num_threads()} "
        f"torch threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"load {load:.1f}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
