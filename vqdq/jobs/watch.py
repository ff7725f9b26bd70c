"""A watch over one run: is it at work, or does it hang?

A run works as long as it reports. Between two reports it may compute for long, so silence alone
means little: who also uses no processor and writes nothing for minutes waits for something that
does not come (a lock, a dead disk, a stopped process). A device that is waited for in a busy loop
looks like work: the longer limit is for that.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 2.0
IDLE_SECONDS = 300.0
DEAF_SECONDS = 3600.0
_PROCESSOR_SHARE = 0.02  # of one core; the heartbeat of an idle worker takes about 0.5 %
_WRITTEN_PER_SECOND = 100_000  # bytes; the heartbeat writes less, a slow download more


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signs:
    """Signs of life at one moment."""

    at: float
    run: str
    reported: tuple[int, int]
    processor: float
    written: int


class Watch:
    """Looks at the worker's process while it runs something.

    Args:
        idle_seconds: without a report, processor or writing, before a run is said to hang.
        deaf_seconds: without a report, whatever the process does.
        clock: seconds that only ever rise; the computer's date may jump.
    """

    def __init__(
        self,
        *,
        idle_seconds: float = IDLE_SECONDS,
        deaf_seconds: float = DEAF_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle = idle_seconds
        self._deaf = deaf_seconds
        self._clock = clock
        self._reported: _Signs | None = None
        self._worked: _Signs | None = None
        self._next = 0.0

    def hung(self, run: Path, pid: int) -> dict[str, str] | None:
        """Returns why a run is said to hang, as an error for people; None while it works.

        Args:
            run: its folder; pid: of the process that works on it.
        """
        now = self._clock()
        if now < self._next and self._reported and self._reported.run == run.name:
            return None
        self._next = now + min(LOOK_SECONDS, self._idle / 4)
        signs = _signs(run, pid, now)
        if signs is None:
            return None
        known, worked = self._reported, self._worked
        if (
            known is None
            or worked is None
            or (known.run, known.reported) != (run.name, signs.reported)
        ):
            self._reported = self._worked = signs
            return None
        if _works(worked, signs):
            self._worked = worked = signs
        silent, idle = now - known.at, now - worked.at
        if idle >= self._idle:
            return _error(f"did nothing for {_minutes(idle)}")
        if silent >= self._deaf:
            return _error(f"said nothing for {_minutes(silent)}")
        return None


def _signs(run: Path, pid: int, now: float) -> _Signs | None:
    written = 0
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        with contextlib.suppress(AttributeError, psutil.AccessDenied):  # not on every system
            written = process.io_counters().write_bytes
    except psutil.Error:
        return None  # it has just ended, and that is seen elsewhere
    try:
        facts = os.stat(run / "events.jsonl")
        reported = (facts.st_size, facts.st_mtime_ns)
    except OSError:
        reported = (0, 0)
    return _Signs(
        at=now,
        run=run.name,
        reported=reported,
        processor=times.user + times.system,
        written=written,
    )


def _works(before: _Signs, now: _Signs) -> bool:
    seconds = max(now.at - before.at, 1e-9)
    return now.processor - before.processor > _PROCESSOR_SHARE * max(
        seconds, 10.0
    ) or now.written - before.written > _WRITTEN_PER_SECOND * max(seconds, 10.0)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _error(what: str) -> dict[str, str]:
    return {
        "what": f"the run {what}; its process was ended and the device is free again.",
        "where": "worker",
        "remedy": "Resume continues it; if it hangs again, worker.log may say where.",
    }
