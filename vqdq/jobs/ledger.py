"""The runs of a workspace: index and files kept in step through every change of state.

The page's process and the worker's process both hold one. `Workspace` adds what people do.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs import run, turns
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.index import Index, content_of, record_of
from vqdq.jobs.log import note
from vqdq.jobs.run import RunRecord
from vqdq.progress import Event

RESERVE_BYTES = 512 * 1024  # kept aside so that a job on a full disk can still say so


def nobody() -> str | None:
    """Returns None: without a login everybody sees everything."""
    return None


class Ledger:
    """Folder `runs/` and `index.sqlite`. Safe for threads and two processes.

    Attributes:
        person: who asks right now, or None for everybody: without a login, and the program itself.
            One person neither sees nor stops what another one started; blind tests are there for
            all to vote, and compressed models for all to use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs_folder = path / "runs"
        self.models_folder = path / "models"
        self.person: Callable[[], str | None] = nobody
        with disk_faults(path):
            self.runs_folder.mkdir(parents=True, exist_ok=True)
            self.models_folder.mkdir(exist_ok=True)
            probe = path / f".probe-{secrets.token_hex(4)}.tmp"
            probe.write_bytes(b"")
            probe.unlink()
        self._index = Index(path / "index.sqlite")
        self._reserve = path / ".reserve"
        with contextlib.suppress(OSError):  # no room for a reserve: then there is none
            if not self._reserve.exists():
                self._reserve.write_bytes(bytes(RESERVE_BYTES))

    def close(self) -> None:
        """Closes the index."""
        self._index.close()

    def run(self, run_id: str) -> RunRecord:
        """Returns one run.

        Raises:
            UserError: no such run.
        """
        seen, who = self._seen()
        found = self._index.rows(f"SELECT * FROM runs WHERE id = ? AND {seen}", run_id, *who)
        if not found:
            raise UserError(f'there is no run "{run_id}".', where="runs", remedy="Choose another.")
        return self._record(found[0])

    def own(self, run_id: str) -> RunRecord:
        """Returns one run that who asks may change.

        Raises:
            UserError: no such run, or another person started it.
        """
        record, person = self.run(run_id), self.person()
        if person is not None and record.owner != person:
            raise UserError(
                "another person started it.", where=run_id, remedy="Only they can change it."
            )
        return record

    def shown_to(self, run_id: str, person: str) -> bool:
        """Returns whether the files of a run may be shown to a person."""
        rows = self._index.rows("SELECT owner, kind FROM runs WHERE id = ?", run_id)
        return bool(rows) and (rows[0]["owner"] == person or rows[0]["kind"] == "blind")

    def take(self) -> RunRecord | None:
        """Returns the run whose turn it is after marking it running, or None."""
        for record in self._queue():
            cleared = {"started": time.time(), "finished": None, "error": None, "result": None}
            if self._transition(record.id, ("queued",), "running", **cleared):
                return self.run(record.id)
        return None

    def progress(self, run_id: str, event: Event, eta_seconds: float | None) -> None:
        """Stores the latest progress of a running run."""
        with self._index.transaction() as db:
            db.execute(
                "UPDATE runs SET stage = ?, done = ?, total = ?, message = ?,"
                " preview = coalesce(?, preview), eta = ? WHERE id = ? AND state = 'running'",
                (event.stage, event.done, event.total, event.message, event.preview, eta_seconds,
                 run_id),
            )  # fmt: skip

    def stop_asked(self, run_id: str) -> bool:
        """Returns whether a running run was asked to stop, or is no longer ours to run."""
        rows = self._index.rows("SELECT state, cancel_at FROM runs WHERE id = ?", run_id)
        return not rows or rows[0]["state"] != "running" or rows[0]["cancel_at"] is not None

    def working(self) -> tuple[str, bool] | None:
        """Returns the id of the run that works now and whether it was asked to stop, or None."""
        rows = self._index.rows("SELECT id, cancel_at FROM runs WHERE state = 'running'")
        return (rows[0]["id"], rows[0]["cancel_at"] is not None) if rows else None

    def running(self) -> RunRecord | None:
        """Returns the run that works now, whoever started it, or None."""
        return next(iter(self._running()), None)

    def finish(
        self,
        run_id: str,
        state: str,
        *,
        result: dict[str, Any] | None = None,
        error: dict[str, str] | None = None,
    ) -> bool:
        """Returns whether a running run was closed in `state`; its result is written first.

        A full disk does not keep a run from ending: the reserve is given up for it.
        """
        try:
            return self._finish(run_id, state, result, error)
        except UserError:
            self._reserve.unlink(missing_ok=True)
            return self._finish(run_id, state, result, error)

    def _finish(
        self, run_id: str, state: str, result: dict[str, Any] | None, error: dict[str, str] | None
    ) -> bool:
        if result is not None:
            with disk_faults(self.runs_folder / run_id):
                run.write_json(self.runs_folder / run_id / "result.json", result)
        return self._transition(
            run_id, ("running",), state, finished=time.time(), error=error, result=result
        )

    def requeue(self, run_id: str) -> None:
        """Puts a running run back at the head of the queue."""
        self._transition(run_id, ("running",), "queued", started=None, queued=0.0)

    def beat(self, pid: int, born: float) -> None:
        """Stores that the worker with this process id and start time is alive."""
        with self._index.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO worker VALUES (1, ?, ?, ?)", (pid, born, time.time())
            )

    def worker(self) -> tuple[int, float, float] | None:
        """Returns process id, start time and last heartbeat of the latest worker, or None."""
        rows = self._index.rows("SELECT pid, born, beat FROM worker")
        return (rows[0]["pid"], rows[0]["born"], rows[0]["beat"]) if rows else None

    # Inside

    def _transition(self, run_id: str, allowed: tuple[str, ...], state: str, **fields: Any) -> bool:
        folder = self.runs_folder / run_id
        with self._index.transaction() as db, disk_faults(folder):
            row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is None or row["state"] not in allowed:
                return False
            content = run.read_json(folder / "run.json") or content_of(row)
            content |= {"state": state} | {k: v for k, v in fields.items() if k != "result"}
            run.write_json(folder / "run.json", content)
            values = {"state": state, "cancel_at": None} | fields
            if state in ("queued", "running"):
                values |= {"stage": "", "done": 0, "total": 0, "message": "", "preview": None}
            values["eta"] = None
            for key in ("error", "result"):
                if key in values:
                    values[key] = None if values[key] is None else json.dumps(values[key])
            names = ", ".join(f"{key} = ?" for key in values)
            db.execute(f"UPDATE runs SET {names} WHERE id = ?", (*values.values(), run_id))
        _told(row, state, fields)
        return True

    def _seen(self) -> tuple[str, tuple[str, ...]]:
        """The condition in SQL for what who asks may see, and its values."""
        person = self.person()
        return ("1", ()) if person is None else ("(owner = ? OR kind = 'blind')", (person,))

    def _running(self) -> tuple[RunRecord, ...]:
        seen, who = self._seen()
        query = f"SELECT * FROM runs WHERE state = 'running' AND {seen}"
        return self._records(self._index.rows(query, *who))

    def _queue(self) -> tuple[RunRecord, ...]:
        """Everybody's queued runs in turn."""
        queued = self._index.rows(turns.QUEUED)
        owners = list({row["owner"] for row in queued})
        last: dict[str, float | None] = {}
        if len(owners) > 1:
            rows = self._index.rows(turns.LAST.format(", ".join("?" * len(owners))), *owners)
            last = {row["owner"]: row["last"] for row in rows}
        return self._records(turns.in_turn(queued, last))

    def _unfinished(self) -> tuple[RunRecord, ...]:
        rows = self._index.rows("SELECT * FROM runs WHERE state IN ('queued', 'running')")
        return self._records(rows)

    def _record(self, row: sqlite3.Row) -> RunRecord:
        return record_of(row, self.runs_folder / row["id"])

    def _records(self, rows: Iterable[sqlite3.Row]) -> tuple[RunRecord, ...]:
        """The runs in rows; one that a newer program asked for stays where it is, unlisted."""
        found: list[RunRecord] = []
        for row in rows:
            with contextlib.suppress(UserError):
                found.append(self._record(row))
        return tuple(found)


def _told(row: sqlite3.Row, state: str, fields: Mapping[str, Any]) -> None:
    """A line of the log for a change of state."""
    began, ended = row["started"], fields.get("finished")
    seconds = None if began is None or ended is None else round(max(0.0, ended - began), 3)
    error = fields.get("error") or {}
    private = {key: str(error[key]) for key in ("what", "where") if error.get(key)}
    note("run", run=row["id"], kind=row["kind"], state=state, seconds=seconds, private=private)


def behind(db: sqlite3.Connection) -> float:
    """Now, or a moment after the last in the queue: a clock that is set back changes no order."""
    last = db.execute("SELECT max(queued) FROM runs WHERE state = 'queued'").fetchone()[0]
    return max(time.time(), (last or 0.0) + 1e-6)
