"""What the sections of `gpu.py` share: where they run, for how long, and the rows they add."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NOTHING = "–"  # the unit of what is not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        value: the median, or 1 and 0 for a check; low, high: of the repeats.
        note: what else is to be known, such as a ratio, or "estimated".
    """

    section: str
    name: str
    value: float
    unit: str
    low: float = 0.0
    high: float = 0.0
    note: str = ""


@dataclass(kw_only=True, slots=True)
class Bench:
    """What sections share: where they run, how large, how long, and what they found."""

    device: Any
    tiny: bool
    rows: list[Row] = field(default_factory=list[Row])
    faults: list[str] = field(default_factory=list[str])
    ends: float = 0.0

    @property
    def is_late(self) -> bool:
        """Whether the section's share of the time is up."""
        return time.perf_counter() > self.ends

    def time(self, work: Callable[[], object], repeats: int = 20) -> list[float]:
        """Returns seconds of `work`, on a card by events, after warming up."""
        import torch

        if self.tiny:
            start = time.perf_counter()
            work()
            return [time.perf_counter() - start]
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        found: list[float] = []
        for _ in range(repeats):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            found.append(first.elapsed_time(last) / 1e3)
            if self.is_late:
                break
        return found

    def timed(
        self,
        section: str,
        name: str,
        work: Callable[[], object],
        *,
        per: float = 0.0,
        unit: str = "ms",
        repeats: int = 20,
        note: str = "",
    ) -> float:
        """Adds a row of the time of `work`, or of `per` over it, and returns the median seconds."""
        seconds = self.time(work, repeats)
        values = [per / each if per else 1e3 * each for each in seconds]
        self.add(section, name, statistics.median(values), unit, min(values), max(values), note)
        return statistics.median(seconds)

    def add(
        self,
        section: str,
        name: str,
        value: float,
        unit: str,
        low: float = 0.0,
        high: float = 0.0,
        note: str = "",
    ) -> None:
        """Adds a row, and prints it as it comes."""
        row = Row(section=section, name=name, value=value, unit=unit, low=low, high=high, note=note)
        self.rows.append(row)
        print(f"  {name}: {value:.4g} {unit} {note}", flush=True)

    def absent(self, section: str, name: str, why: str) -> None:
        """Adds a row for what is not measured, and why."""
        self.rows.append(Row(section=section, name=name, value=0.0, unit=NOTHING, note=why))
        print(f"  {name}: {why}", flush=True)
