"""When a stage will be done, silent until three units are finished.

Equal units: the median of recent rates. Unequal ones: what is left of the work at the rate so far.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

from vqdq.progress import Event, Report

_WINDOW = 9  # intervals; long enough to smooth one slow layer, short enough to follow a change
_ENOUGH = 3


class Eta:
    """Remaining seconds of the current stage, from its own progress only."""

    def __init__(self) -> None:
        self._stage = ""
        self._last: tuple[float, int] | None = None
        self._paces: deque[float] = deque(maxlen=_WINDOW)  # seconds per unit
        self._first = (0.0, 0.0)  # when the stage began here, and the share that was done then

    def update(
        self, stage: str, done: int, total: int, now: float, share: float | None = None
    ) -> float | None:
        """Returns the expected remaining seconds, or None before three samples.

        Args:
            stage: a new name starts anew.
            done, total: units; a total of 0 is unknown.
            now: seconds of a clock that does not go back.
            share: of the work that is done, see `Event`; changes only with `done`.
        """
        if stage != self._stage or self._last is None or done < self._last[1]:
            self._stage, self._last, self._first = stage, (now, done), (now, share or 0.0)
            self._paces.clear()
        elif done > self._last[1]:
            self._paces.append((now - self._last[0]) / (done - self._last[1]))
            self._last = (now, done)
        if len(self._paces) < _ENOUGH or total <= 0:
            return None
        waited = now - self._last[0]
        began, before = self._first
        if share is not None and share > before:
            took = self._last[0] - began
            return max(0.0, took * (1 - share) / (share - before) - waited)
        return max(0.0, statistics.median(self._paces) * (total - done) - waited)


class Stopwatch:
    """A report that passes events on, and remembers how long each stage took."""

    def __init__(self, report: Report, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._report, self._clock = report, clock
        self._stage, self._since = "", clock()

    def __call__(self, event: Event, /) -> None:
        self._book(event.stage)
        self._report(event)

    def stop(self) -> dict[str, float]:
        """Returns the seconds of each stage, the last one ended now."""
        self._book("")
        return self.seconds

    def _book(self, stage: str) -> None:
        now = self._clock()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now
