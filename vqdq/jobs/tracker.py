"""The report that a running job sees: it stores progress at most ten times a second and notices
a cancel.

The worker calls it from the innermost loops, so between two writes it only reads the clock.
"""

from __future__ import annotations

import contextlib
import threading
import time

from vqdq.errors import Cancelled, UserError
from vqdq.jobs.eta import Eta
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.run import RunRecord, append_event
from vqdq.jobs.store import Workspace
from vqdq.progress import Event

INTERVAL_SECONDS = 0.1


class Tracker:
    """Progress of one run, from the job into the store; raises `Cancelled` when asked to stop."""

    def __init__(self, workspace: Workspace, record: RunRecord, stopping: threading.Event) -> None:
        self._workspace = workspace
        self._record = record
        self._stopping = stopping
        self._eta = Eta()
        self._written: Event | None = None
        self._pending: tuple[Event, float | None] | None = None
        self._next = 0.0

    def __call__(self, event: Event, /) -> None:
        """Takes one event; see the module."""
        now = time.monotonic()
        eta = self._eta.update(event.stage, event.done, event.total, now, event.share)
        self._pending = (event, eta)
        new = self._written is None or event.stage != self._written.stage or event.preview
        if now >= self._next or new:
            self.flush()
            if self._workspace.stop_asked(self._record.id):
                raise Cancelled
            self._next = time.monotonic() + INTERVAL_SECONDS
        if self._stopping.is_set():
            raise Cancelled

    def flush(self) -> None:
        """Stores the latest event, if it is not stored yet."""
        if self._pending is None:
            return
        event, eta = self._pending
        told = {
            "stage": event.stage,
            "done": event.done,
            "total": event.total,
            "message": event.message,
            "preview": event.preview,
        }
        # a busy index or a full disk costs a line of progress, not the run: its files will tell
        with contextlib.suppress(UserError):
            self._workspace.progress(self._record.id, event, eta)
        with contextlib.suppress(UserError), disk_faults(self._record.folder):
            append_event(self._record.folder, told)
        self._written, self._pending = event, None
