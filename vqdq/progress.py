"""How long work speaks: it reports events, and reporting is also where it is cancelled.

Nothing below `jobs` knows whether a page, a terminal or nobody listens. A function that takes long
accepts `report: Report = silent`, calls it between steps, and lets `Cancelled` pass through.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from vqdq.errors import Cancelled


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One step of progress.

    Attributes:
        stage: short name of the stage ("load", "encode", "save", "generate").
        done: units finished in this stage; 0 <= done <= total.
        total: units in this stage; 0 when unknown.
        share: of the stage's work that is finished, 0 to 1, where its units are far from equal
            (a layer has a thousand weights or ten million); None where they count the same.
        message: what is being worked on now (a layer name, a step).
        preview: path of a picture to show while it runs, or None.
    """

    stage: str
    done: int = 0
    total: int = 0
    share: float | None = None
    message: str = ""
    preview: str | None = None


class Report(Protocol):
    """Receives events; raises `Cancelled` when the work must stop."""

    def __call__(self, event: Event, /) -> None: ...


def silent(event: Event, /) -> None:
    """Returns nothing and shows nothing: the report of a caller who does not listen."""


class CancelToken:
    """A flag that one thread sets and the working thread checks."""

    def __init__(self) -> None:
        self._flag = threading.Event()

    def cancel(self) -> None:
        """Asks the work to stop at its next report."""
        self._flag.set()

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._flag.is_set()

    def check(self) -> None:
        """Raises `Cancelled` once `cancel` was called."""
        if self._flag.is_set():
            raise Cancelled


def cancellable(report: Report, token: CancelToken) -> Report:
    """Returns a report that checks `token` before and after it passes each event to `report`."""

    def checked(event: Event, /) -> None:
        token.check()
        report(event)
        token.check()

    return checked
