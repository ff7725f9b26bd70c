"""The workspace: run folders, compressed models and the index that finds them again.

The files are the truth and the index only finds them: `reindex` rebuilds it from the `run.json`
files. The page submits and reads, the worker takes and reports; both open the same workspace,
and only one server may own it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any, Self

from vqdq.errors import UserError
from vqdq.jobs import models, run
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.history import Search, name_of
from vqdq.jobs.index import Index, content_of, insert, insert_file, record_of, words_of
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.requests import CompressRequest, Request
from vqdq.jobs.run import RunRecord
from vqdq.params import nearest
from vqdq.progress import Event

RESERVE_BYTES = 512 * 1024  # kept aside so that a job on a full disk can still say so


class Workspace:
    """Folders `runs/`, `models/` and `index.sqlite`. Safe for threads and two processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs_folder = path / "runs"
        self.models_folder = path / "models"
        with disk_faults(path):
            self.runs_folder.mkdir(parents=True, exist_ok=True)
            self.models_folder.mkdir(exist_ok=True)
            probe = path / f".probe-{secrets.token_hex(4)}"
            probe.write_bytes(b"")
            probe.unlink()
        self._index = Index(path / "index.sqlite")
        self._reserve = path / ".reserve"
        with contextlib.suppress(OSError):  # no room for a reserve: then there is none
            if not self._reserve.exists():
                self._reserve.write_bytes(bytes(RESERVE_BYTES))
        if self._index.is_new:
            self.reindex()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Returns the workspace in `path`, made when absent.

        Raises:
            UserError: the path cannot be written.
        """
        return cls(Path(path).expanduser().resolve())

    def close(self) -> None:
        """Closes the index."""
        self._index.close()

    # What the page and Python callers use

    def submit(self, request: Request) -> str:
        """Returns the id of a new queued run.

        Raises:
            UserError: a compressed model of that name exists or is being made, or the disk is full.
        """
        if isinstance(request, CompressRequest) and not request.output:
            self._check_free(request.name)
            request = dataclasses.replace(request, output=str(self.models_folder / request.name))
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        run_id = f"{stamp}-{request.kind}-{secrets.token_hex(2)}"
        folder = self.runs_folder / run_id
        content = {
            "id": run_id,
            "request": request.to_json(),
            "state": "queued",
            "created": now,
            "queued": now,
            "started": None,
            "finished": None,
            "error": None,
        }
        with self._index.transaction() as db, disk_faults(folder):
            folder.mkdir()
            run.write_json(folder / "run.json", content)
            insert(db, content, None)
        return run_id

    def run(self, run_id: str) -> RunRecord:
        """Returns one run.

        Raises:
            UserError: no such run.
        """
        found = self._index.rows("SELECT * FROM runs WHERE id = ?", run_id)
        if not found:
            raise UserError(f'there is no run "{run_id}".', where="runs", remedy="Choose another.")
        return self._record(found[0])

    def runs(self, kind: str | None = None, limit: int = 50) -> tuple[RunRecord, ...]:
        """Returns the newest runs first, of one kind or of all."""
        return self.find(Search(kind=kind or ""), limit=limit)[0]

    def find(
        self, search: Search, *, limit: int, skip: int = 0
    ) -> tuple[tuple[RunRecord, ...], int]:
        """Returns the newest runs that a search finds, after `skip`, and how many there are."""
        where, values = search.where()
        rows = self._index.rows(
            f"SELECT * FROM runs WHERE {where} ORDER BY created DESC, id DESC LIMIT ? OFFSET ?",
            *values, limit, skip,
        )  # fmt: skip
        count = self._index.rows(f"SELECT count(*) FROM runs WHERE {where}", *values)[0][0]
        return tuple(self._record(row) for row in rows), count

    def rename(self, run_id: str, name: str) -> None:
        """Gives a run another name; "" takes it away.

        Raises:
            UserError: no such run, or the name is too long.
        """
        name = name_of(name)
        folder = self.run(run_id).folder
        with self._index.transaction() as db, disk_faults(folder):
            row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
            content = run.read_json(folder / "run.json") or content_of(row)
            run.write_json(folder / "run.json", content | {"name": name})
            words = words_of(run_id, content["request"], name)
            db.execute("UPDATE runs SET name = ?, words = ? WHERE id = ?", (name, words, run_id))

    def active(self) -> RunRecord | None:
        """Returns the running run, or else the next one in the queue, or None."""
        rows = self._index.rows(
            "SELECT * FROM runs WHERE state IN ('running', 'queued')"
            " ORDER BY state = 'queued', queued, id LIMIT 1"
        )
        return self._record(rows[0]) if rows else None

    def queue(self) -> tuple[RunRecord, ...]:
        """Returns the queued runs in the order in which they will start."""
        rows = self._index.rows("SELECT * FROM runs WHERE state = 'queued' ORDER BY queued, id")
        return tuple(self._record(row) for row in rows)

    def cancel(self, run_id: str) -> None:
        """Takes a queued run out of the queue; asks a running one to stop (within two seconds)."""
        if self._transition(run_id, ("queued",), "cancelled", finished=time.time()):
            return
        with self._index.transaction() as db:
            db.execute(
                "UPDATE runs SET cancel_at = ? WHERE id = ? AND state = 'running'"
                " AND cancel_at IS NULL",
                (time.time(), run_id),
            )

    def resume(self, run_id: str) -> str:
        """Returns `run_id` after queueing it again; a compression continues where it stopped.

        Raises:
            UserError: the run is not one that stopped early.
        """
        record = self.run(run_id)
        if isinstance(record.request, CompressRequest) and record.resumable:
            self._check_free(record.request.name, besides=run_id)
        fresh = {"started": None, "finished": None, "error": None, "queued": time.time()}
        if not self._transition(run_id, run.RESUMABLE, "queued", **fresh):
            raise UserError(
                f"the run is {self.run(run_id).state}.",
                where=run_id,
                remedy="Only a failed, cancelled or interrupted run can be resumed.",
            )
        return run_id

    def delete(self, run_id: str) -> None:
        """Removes a run, its pictures and its unfinished work; a finished compressed model stays.

        Raises:
            UserError: it is still running.
        """
        record = self.run(run_id)
        with self._index.transaction() as db, disk_faults(record.folder):
            row = db.execute("SELECT state FROM runs WHERE id = ?", (run_id,)).fetchone()
            if row is not None and row["state"] == "running":
                raise UserError("the run is running.", where=run_id, remedy="Cancel it first.")
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            models.discard(record.folder)
        request = record.request
        if isinstance(request, CompressRequest) and record.state != "done":
            with disk_faults(request.output):
                models.discard(models.partial(Path(request.output)))

    def models(self) -> tuple[ModelEntry, ...]:
        """Returns the compressed models, newest first; their names are valid as `variant`."""
        done = [r for r in self.runs("compress", limit=1000) if r.state == "done"]
        return models.entries(self.models_folder, done)

    def delete_model(self, name: str) -> None:
        """Removes a compressed model.

        Raises:
            UserError: no such model, or a run in the queue needs it.
        """
        known = [entry.name for entry in self.models()]
        if name not in known:
            raise UserError(
                f'there is no model "{name}".', where="models", remedy=nearest(name, known, "model")
            )
        for record in self._unfinished():
            if name in json.dumps(record.request.to_json()):
                raise UserError(
                    "a run in the queue uses it.", where=name, remedy="Cancel that run first."
                )
        with disk_faults(self.models_folder / name):
            models.discard(self.models_folder / name)

    def locate(self, reference: str) -> str:
        """Returns the folder of the compressed model of that name; other references as they are."""
        return models.locate(self.models_folder, reference)

    def free_name(self, wanted: str) -> str:
        """Returns `wanted`, or `wanted-2`, `wanted-3`, … when that name is taken."""
        name, number = wanted, 1
        while self._taken(name):
            number += 1
            name = f"{wanted}-{number}"
        return name

    def reindex(self) -> int:
        """Returns how many runs were found after rebuilding the index from the files."""
        count = 0
        with self._index.transaction() as db, disk_faults(self.path):
            db.execute("DELETE FROM runs")
            for path in sorted(self.runs_folder.glob("*/run.json")):
                count += insert_file(db, path)
        return count

    # What the worker and its supervisor use

    def recover(self) -> tuple[str, ...]:
        """Returns the runs that a dead worker left running, after marking them `interrupted`.

        Also takes in what the files know better than the index. Call it only while no worker lives.
        """
        known = {
            row["id"]
            for row in self._index.rows(
                "SELECT id FROM runs WHERE state NOT IN ('queued', 'running')"
            )
        }
        with self._index.transaction() as db, disk_faults(self.path):
            for path in sorted(self.runs_folder.glob("*/run.json")):
                if path.parent.name not in known:
                    db.execute("DELETE FROM runs WHERE id = ?", (path.parent.name,))
                    insert_file(db, path)
        left = self._index.rows("SELECT id FROM runs WHERE state = 'running'")
        error = {
            "what": "the program stopped while this was running.",
            "where": "worker",
            "remedy": "Resume continues it.",
        }
        return tuple(
            row["id"] for row in left if self.finish(row["id"], "interrupted", error=error)
        )

    def take(self) -> RunRecord | None:
        """Returns the oldest queued run after marking it running, or None."""
        for row in self._index.rows(
            "SELECT id FROM runs WHERE state = 'queued' ORDER BY queued, id"
        ):
            cleared = {"started": time.time(), "finished": None, "error": None, "result": None}
            if self._transition(row["id"], ("queued",), "running", **cleared):
                return self.run(row["id"])
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

    def overdue(self, patience_seconds: float) -> str | None:
        """Returns the running run that was asked to stop longer ago than that, or None."""
        rows = self._index.rows(
            "SELECT id FROM runs WHERE state = 'running' AND cancel_at < ?",
            time.time() - patience_seconds,
        )
        return rows[0]["id"] if rows else None

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
        return True

    def _unfinished(self) -> tuple[RunRecord, ...]:
        rows = self._index.rows("SELECT * FROM runs WHERE state IN ('queued', 'running')")
        return tuple(self._record(row) for row in rows)

    def _taken(self, name: str, besides: str = "") -> bool:
        if name == "demo" or (self.models_folder / name).exists():
            return True
        return any(
            isinstance(record.request, CompressRequest)
            and record.request.name == name
            and record.id != besides
            for record in self._unfinished()
        )

    def _check_free(self, name: str, besides: str = "") -> None:
        if self._taken(name, besides):
            raise UserError(
                f'a model called "{name}" exists already.',
                where="name",
                remedy=f'Call it "{self.free_name(name)}", or delete the other one.',
            )

    def _record(self, row: sqlite3.Row) -> RunRecord:
        return record_of(row, self.runs_folder / row["id"])
