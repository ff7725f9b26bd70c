"""What a person or a program sees of a command: progress, tables, results and faults.

Progress goes to the standard error, results to the standard output, so that both can be used apart.
With `--json` everything is one JSON object a line on the standard output, the result last.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vqdq.errors import UserError
from vqdq.progress import Event
from vqdq.quantities import roughly

REFRESH_SECONDS = 0.1
LOG_SECONDS = 5.0  # between lines where nobody watches
_BAR = 24


class WrongUse(UserError):
    """A fault of the command itself, found before any work: exit code 2."""


class Output(Protocol):
    """Where a command speaks."""

    def report(self, event: Event, /) -> None:
        """Shows progress."""
        ...

    def result(self, values: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Shows the result: `values` to a program, `lines` to a person."""
        ...

    def fault(self, error: UserError) -> None:
        """Shows a fault."""
        ...


class JsonOutput:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._clock = _Clock(REFRESH_SECONDS)

    def report(self, event: Event, /) -> None:
        """Writes progress at most ten times a second, and every change of stage."""
        if self._clock.due(event):
            _line(
                {
                    "event": "progress",
                    "stage": event.stage,
                    "done": event.done,
                    "total": event.total,
                    "message": event.message,
                }
            )

    def result(self, values: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Writes the result as the last line."""
        del lines
        _line(values)

    def fault(self, error: UserError) -> None:
        """Writes the fault as the last line, and in words to the standard error."""
        parts = {"what": error.what, "where": error.where, "remedy": error.remedy}
        _line({"event": "error", "error": parts})
        _say_fault(error)


class HumanOutput:
    """A bar that moves on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._alive = sys.stderr.isatty()
        self._clock = _Clock(REFRESH_SECONDS if self._alive else LOG_SECONDS)
        self._eta = _eta()
        self._drawn = False

    def report(self, event: Event, /) -> None:
        """Draws the bar."""
        now = time.monotonic()
        left = self._eta.update(event.stage, event.done, event.total, now, event.share)
        if not self._clock.due(event):
            return
        text = bar(event, left)
        if self._alive:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            self._drawn = True
        else:
            sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()

    def result(self, values: Mapping[str, Any], lines: Sequence[str]) -> None:
        """Prints the lines for people."""
        del values
        self.clear()
        print("\n".join(lines), flush=True)

    def fault(self, error: UserError) -> None:
        """Prints what happened, where, and what to do."""
        self.clear()
        _say_fault(error)

    def clear(self) -> None:
        """Removes the bar."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


class _Clock:
    """Says which events are shown: the first of a stage, the last, and few between."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = ("", 0, 0)
        self._next = 0.0

    def due(self, event: Event) -> bool:
        now = time.monotonic()
        ends = event.total > 0 and event.done >= event.total
        place = (event.stage, event.done, event.total)
        if place == self._last or (event.stage == self._last[0] and not ends and now < self._next):
            return False
        self._last = place
        self._next = now + self._seconds
        return True


def bar(event: Event, eta_seconds: float | None) -> str:
    """Returns one line: stage, bar, count, remaining time and what is worked on."""
    if event.total <= 0:
        return f"{event.stage:<11} {event.message}"
    full = round(_BAR * min(1.0, event.done / event.total))
    width = len(str(event.total))
    left = (
        "" if eta_seconds is None or event.done >= event.total else f"  {roughly(eta_seconds)} left"
    )
    drawn = "#" * full + "." * (_BAR - full)
    return f"{event.stage:<11} [{drawn}] {event.done:>{width}}/{event.total}{left}  {event.message}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _say_fault(error: UserError) -> None:
    place = f"{error.where}: " if error.where else ""
    print(f"vqdq: {place}{error.what}", file=sys.stderr)
    if error.remedy:
        print(f"      {error.remedy}", file=sys.stderr)
    sys.stderr.flush()


def _line(values: Mapping[str, Any]) -> None:
    print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)


def _eta() -> Any:
    from vqdq.jobs.eta import Eta

    return Eta()
