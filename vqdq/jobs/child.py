"""The worker's process: owns the device, takes queued runs in order, and ends when its parent
ends.

Started by `Worker` as `python -m vqdq.jobs.child WORKSPACE ENGINE MODEL…`; commands arrive on
its standard input, one a line ("wake", "stop"). The end of that stream means that the parent is
gone, even by kill -9.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import psutil

from vqdq.errors import Cancelled, UserError
from vqdq.jobs import run
from vqdq.jobs.faults import as_user_error, disk_faults
from vqdq.jobs.lock import Lock
from vqdq.jobs.requests import Request
from vqdq.jobs.run import RunRecord
from vqdq.jobs.store import Workspace
from vqdq.jobs.tracker import Tracker
from vqdq.progress import Report

BEAT_SECONDS = 0.5
LOCK = "worker"  # held by the one process that owns the device
IDLE_SECONDS = 0.25
RETRY_SECONDS = 1.0
NICENESS = 5  # the page answers first; where nothing else wants the processor it costs nothing


class Engine(Protocol):
    """What does the work: `vqdq.jobs.engine`, or a toy in tests; chosen by module name."""

    def execute(self, request: Request, folder: Path, *, report: Report) -> Mapping[str, Any]:
        """Returns the result of a request as JSON values; pictures go to `folder`."""
        ...

    def idle(self) -> bool:
        """Returns True after a small step of preparation, False when nothing is left to prepare."""
        ...


class _Orders:
    """The parent's commands, read by a thread that ends the process when the parent is gone."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.stopping = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="orders").start()

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                self.stopping.set()
            self.wake.set()
        if not self.stopping.is_set():
            os._exit(3)  # the parent died; the next start calls the run interrupted


def _beat(workspace: Workspace, born: float) -> None:
    while True:
        with contextlib.suppress(UserError):  # a missed beat is nothing
            workspace.beat(os.getpid(), born)
        time.sleep(BEAT_SECONDS)


def perform(
    workspace: Workspace, record: RunRecord, engine: Engine, stopping: threading.Event
) -> None:
    """Runs one taken run to its end and stores how it ended."""
    tracker = Tracker(workspace, record, stopping)
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    try:
        with disk_faults(record.folder):
            run.describe_environment(record.folder)
        result = dict(engine.execute(record.request, record.folder, report=tracker))
        state = "done"
    except Cancelled:
        state = "interrupted" if stopping.is_set() else "cancelled"
    except Exception as fault:  # the process boundary: told to the person, details kept in full
        known = as_user_error(fault, record.kind)
        state, error = "failed", _error(known) if known else _unexpected(record, fault)
    with contextlib.suppress(UserError):  # the end is what counts
        tracker.flush()
    while True:
        try:
            workspace.finish(record.id, state, result=result, error=error)
            return
        except UserError:  # the disk is full: the run ends as soon as that can be written
            if stopping.wait(RETRY_SECONDS):
                return  # the next start will call it interrupted


def _error(fault: UserError) -> dict[str, str]:
    return {"what": fault.what, "where": fault.where, "remedy": fault.remedy}


def _unexpected(record: RunRecord, fault: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(fault))
    print(text, file=sys.stderr, flush=True)
    path = record.folder / "error.txt"
    remedy = "This is a fault of the program."
    try:
        path.write_text(text, encoding="utf-8")
        remedy += f" Details are in {path.name} of the run's folder."
    except OSError:
        remedy += " Details are in worker.log."
    return {"what": f"{type(fault).__name__}: {fault}", "where": record.kind, "remedy": remedy}


def main(arguments: list[str]) -> int:
    """Returns 0 after a stop was asked for; serves the workspace until then."""
    folder, module, *warm = arguments
    os.nice(NICENESS)
    orders = _Orders()
    workspace = Workspace.open(folder)
    try:
        owned = Lock(workspace.path, LOCK)
    except UserError as error:  # the one before it still lives
        print(error, file=sys.stderr, flush=True)
        return 4
    born = psutil.Process().create_time()
    threading.Thread(target=_beat, args=(workspace, born), daemon=True, name="heartbeat").start()
    engine = cast(Engine, importlib.import_module(module).Engine(workspace, warm))
    while not orders.stopping.is_set():
        orders.wake.clear()
        try:
            record = workspace.take()
        except UserError as error:  # the index cannot be written now
            print(error, file=sys.stderr, flush=True)
            orders.stopping.wait(RETRY_SECONDS)
            continue
        if record is not None:
            perform(workspace, record, engine, orders.stopping)
        elif not engine.idle():
            orders.wake.wait(IDLE_SECONDS)
    owned.release()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
