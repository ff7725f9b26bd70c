"""How the benchmarks time things: interleaved, medians with spread, and on which machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Wall-clock seconds of one piece of work."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


def interleaved(work: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, Seconds]:
    """Returns the seconds of each piece after one warm-up, the pieces taken in turn A B C A B C."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
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
