"""The page's side of the worker: starts one process that owns the device, and watches over it.

A cancel is cooperative first: the job notices at its next report. When one long call gives it
no chance within `PATIENCE_SECONDS`, the process is ended and started anew. That is safe because
a job publishes files only by a rename: a compression keeps its finished layers in
`<output>.partial` and can be resumed. The price is that warm pipelines are loaded again. A run that
hangs (`watch`) ends in the same way. All of this is timed by a clock that never jumps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from vqdq.errors import UserError
from vqdq.jobs import log
from vqdq.jobs.lock import Lock
from vqdq.jobs.requests import Request
from vqdq.jobs.store import Workspace
from vqdq.jobs.watch import Watch
from vqdq.waiting import settle

PATIENCE_SECONDS = 1.2  # of the two seconds that a cancel may take
WATCH_SECONDS = 0.1
GRACE_SECONDS = 2.0  # for a worker that was asked to stop
STARTS_ALLOWED = 3  # in a row, each dead before it lived this long
LIVED_SECONDS = 60.0
ENGINE = "vqdq.jobs.engine"
CHILD = "vqdq.jobs.child"
LOCK = "worker"


class Worker:
    """Owner of one workspace and of its worker process.

    Args:
        workspace: where runs are queued.
        engine: module whose `Engine` does the work; another one only in tests.
        warm: models to load while there is nothing else to do, so that the first picture is quick.
        watch: says when a run hangs; another one only in tests.
        details: the log may hold prompts and paths.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        engine: str = ENGINE,
        warm: tuple[str, ...] = (),
        watch: Watch | None = None,
        details: bool = False,
    ) -> None:
        self.workspace = workspace
        self._warm = warm
        self._engine = engine
        self._lock: Lock | None = None
        self._watch_over = watch or Watch()
        self._details = details
        self._log: logging.Handler | None = None
        self._stopping: tuple[str, float] = ("", 0.0)  # the run asked to stop, and since when
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._closing = threading.Event()
        self._guard = threading.RLock()
        self._crashes = 0
        self._born = 0.0
        self._fault: UserError | None = None

    def reserve(self) -> None:
        """Takes the workspace for this server.

        Raises:
            UserError: another server uses it.
        """
        if self._lock is None:
            self._lock = Lock(self.workspace.path)

    def start(self) -> None:
        """Takes the workspace, marks what a dead worker left as `interrupted`, starts the process.

        Raises:
            UserError: another server uses the workspace.
        """
        if self._watcher is not None:
            return
        self.reserve()
        self._log = log.open_log(self.workspace.path, "studio", details=self._details)
        log.note("studio started")
        self._end_orphan()
        self.workspace.recover()
        self._closing.clear()
        self._spawn()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="worker-watch")
        self._watcher.start()

    def stop(self) -> None:
        """Ends the process; a running job becomes `interrupted` and can be resumed."""
        if self._lock is None:
            return
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        process = self._process
        if process is not None:
            self._order("stop")
            _hang_up(process)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                _kill(process.pid)
                process.wait()
        self._process = None
        with contextlib.suppress(UserError):  # a full disk, say: the next start does it
            self.workspace.recover()
        if self._log is not None:
            log.note("studio stopped")
            log.close_log(self._log)
            self._log = None
        self._lock.release()
        self._lock = None

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, or None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def fault(self) -> UserError | None:
        """Why the worker cannot run, or None."""
        return self._fault

    def submit(self, request: Request) -> str:
        """Returns the id of a new run after waking the worker."""
        run_id = self.workspace.submit(request)
        self.wake()
        return run_id

    def wake(self) -> None:
        """Tells the worker to look at the queue now; without it, it looks four times a second."""
        self._order("wake")

    def _order(self, word: str) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                process.stdin.write(f"{word}\n".encode())
                process.stdin.flush()

    def _spawn(self) -> None:
        folder = str(self.workspace.path)
        self._born = time.monotonic()
        with self._guard, (self.workspace.path / "worker.log").open("ab") as words:
            self._process = subprocess.Popen(
                [sys.executable, "-m", CHILD, folder, self._engine, *self._warm],
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=words,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops us
                env=settle(os.environ | {"PYTHONUNBUFFERED": "1"}),
            )
        log.note("worker started", worker=self._process.pid)

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_SECONDS):
            process = self._process
            if process is None:
                continue
            try:
                self._look_after(process)
            except UserError as error:  # a full disk, say: try again until it can be written
                print(f"worker: {error}", file=sys.stderr)
                self._closing.wait(1.0)

    def _look_after(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            _hang_up(process)
            self._replace(process.returncode, None)
            return
        working = self.workspace.working()
        if working is None:
            return
        run, cancelling = working
        if cancelling:
            known, since = self._stopping
            if known != run:
                self._stopping = (run, time.monotonic())
            elif time.monotonic() - since > PATIENCE_SECONDS:
                self._end(process)
                self._replace(process.returncode, run)
            return
        self._stopping = ("", 0.0)
        error = self._watch_over.hung(self.workspace.runs_folder / run, process.pid)
        if error is not None:
            log.note("worker hung", run=run, worker=process.pid)
            self._end(process)
            self._replace(process.returncode, run, error)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        _kill(process.pid)
        process.wait()
        _hang_up(process)

    def _replace(self, code: int, ended: str | None, error: dict[str, str] | None = None) -> None:
        """Closes what the dead process was running and starts another one.

        Args:
            ended: the run for whose sake the process was ended, and why, unless it was cancelled.
        """
        self._stopping = ("", 0.0)
        running = self.workspace.running()
        log.note("worker ended", code=code, run=None if running is None else running.id)
        if running is not None:
            self._crashes = 0
            if error is not None and running.id == ended:
                self.workspace.finish(running.id, "interrupted", error=error)
            elif running.id == ended or running.cancelling:
                self.workspace.finish(running.id, "cancelled")
            elif ended is not None:  # it finished the run we meant to end and had taken the next
                self.workspace.requeue(running.id)
            else:
                self.workspace.finish(running.id, "interrupted", error=_death(code))
        else:
            lived = time.monotonic() - self._born
            self._crashes = 1 if lived > LIVED_SECONDS else self._crashes + 1
        if self._crashes >= STARTS_ALLOWED:
            self._process = None
            self._fault = UserError(
                "the worker does not start.",
                where=str(self.workspace.path / "worker.log"),
                remedy="The reason is at the end of this file; start the program again.",
            )
            self._fail_queue(self._fault)
            return
        self._spawn()

    def _fail_queue(self, fault: UserError) -> None:
        error = {"what": fault.what, "where": fault.where, "remedy": fault.remedy}
        while (record := self.workspace.take()) is not None:
            self.workspace.finish(record.id, "failed", error=error)

    def _end_orphan(self) -> None:
        """Waits for the worker of a killed parent to leave, then ends it: one owner a device.

        It lives as long as its lock is held; a process id and a time can belong to another one.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            try:
                Lock(self.workspace.path, LOCK).release()
                return
            except UserError:
                if time.monotonic() > deadline:
                    break
            time.sleep(WATCH_SECONDS)
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(Lock.holder(self.workspace.path, LOCK) or -1)
            if CHILD in process.cmdline():
                _kill(process.pid)
                process.wait(GRACE_SECONDS)


def _kill(pid: int) -> None:
    """Ends a process with all that it started: a cluster, say, that was just coming up."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        started = process.children(recursive=True)
        process.kill()
        for child in started:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    """Closes our end of the worker's standard input."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _death(code: int) -> dict[str, str]:
    name = (
        signal.Signals(-code).name if -code in {int(item) for item in signal.Signals} else f"{code}"
    )
    hint = " The system may have run out of memory." if code == -9 else ""
    return {
        "what": f"the worker ended unexpectedly ({name}).{hint}",
        "where": "worker",
        "remedy": "Resume continues it; finished work was kept.",
    }
