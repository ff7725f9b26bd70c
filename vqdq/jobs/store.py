"""The workspace: run folders, compressed models and the index that finds them again.

The files are the truth and the index only finds them: `reindex` rebuilds it from the `run.json`
files. The page submits and reads, the worker takes and reports; both open the same workspace,
and only one server may own it.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from vqdq.durable import sync_folder
from vqdq.errors import UserError
from vqdq.jobs import models, published, recovery, run
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.history import Search, name_of
from vqdq.jobs.index import content_of, insert, words_of
from vqdq.jobs.ledger import Ledger, behind
from vqdq.jobs.log import note
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.requests import CompressRequest, Request
from vqdq.jobs.run import RunRecord
from vqdq.params import nearest
from vqdq.places import expanded


def anything(_model: str) -> None:
    """Refuses nothing: whoever sits at the computer may open what they like."""


class Workspace(Ledger):
    """Folders `runs/`, `models/` and `index.sqlite`. Safe for threads and two processes.

    Attributes:
        permit: raises `UserError` for a request that must not be taken; the page sets it.
        admit: the same for a model that must not be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.permit: Callable[[Request], None] | None = None
        self.admit: Callable[[str], None] = anything
        if self._index.is_new:
            self.reindex()

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Returns the workspace in `path`, made when absent.

        Raises:
            UserError: the path cannot be written.
        """
        return cls(expanded(path).resolve())

    # What the page and Python callers use

    def submit(self, request: Request) -> str:
        """Returns the id of a new queued run.

        Raises:
            UserError: a compressed model of that name exists or is being made, or the disk is full.
        """
        if isinstance(request, CompressRequest) and not request.output:
            self._check_free(request.name)
            request = dataclasses.replace(request, output=str(self.models_folder / request.name))
        if self.permit is not None:
            self.permit(request)
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        run_id = f"{stamp}-{request.kind}-{secrets.token_hex(4)}"
        folder = self.runs_folder / run_id
        content: dict[str, Any] = {
            "id": run_id,
            "request": request.to_json(),
            "state": "queued",
            "created": now,
            "started": None,
            "finished": None,
            "error": None,
            "owner": self.person() or "",
        }
        with self._index.transaction() as db, disk_faults(folder):
            content["queued"] = behind(db)
            folder.mkdir()
            run.write_json(folder / "run.json", content)
            sync_folder(self.runs_folder)
            insert(db, content, None)
        note("run", run=run_id, kind=request.kind, state="queued")
        return run_id

    def runs(self, kind: str | None = None, limit: int = 50) -> tuple[RunRecord, ...]:
        """Returns the newest runs first, of one kind or of all."""
        return self.find(Search(kind=kind or ""), limit=limit)[0]

    def find(
        self, search: Search, *, limit: int, skip: int = 0
    ) -> tuple[tuple[RunRecord, ...], int]:
        """Returns the newest runs that a search finds, after `skip`, and how many there are."""
        where, values = search.where()
        seen, who = self._seen()
        where, values = f"{where} AND {seen}", (*values, *who)
        rows = self._index.rows(
            f"SELECT * FROM runs WHERE {where} ORDER BY created DESC, id DESC LIMIT ? OFFSET ?",
            *values, limit, skip,
        )  # fmt: skip
        count = self._index.rows(f"SELECT count(*) FROM runs WHERE {where}", *values)[0][0]
        return self._records(rows), count

    def rename(self, run_id: str, name: str) -> None:
        """Gives a run another name; "" takes it away.

        Raises:
            UserError: no such run, or the name is too long.
        """
        name = name_of(name)
        folder = self.own(run_id).folder
        with self._index.transaction() as db, disk_faults(folder):
            row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
            content = run.read_json(folder / "run.json") or content_of(row)
            run.write_json(folder / "run.json", content | {"name": name})
            words = words_of(run_id, content["request"], name)
            db.execute("UPDATE runs SET name = ?, words = ? WHERE id = ?", (name, words, run_id))

    def active(self) -> RunRecord | None:
        """Returns the running run, or else the next one in the queue, or None."""
        return next(iter((*self._running(), *self.queue())), None)

    def queue(self) -> tuple[RunRecord, ...]:
        """Returns the queued runs in the order in which they will start."""
        person = self.person()
        return tuple(run for run in self._queue() if person in (None, run.owner))

    def ahead(self, run_id: str) -> int:
        """Returns how many runs of anybody have to end before a queued one begins."""
        waiting = [run.id for run in self._queue()]
        place = waiting.index(run_id) if run_id in waiting else 0
        return place + len(self._index.rows("SELECT 1 FROM runs WHERE state = 'running'"))

    def cancel(self, run_id: str) -> None:
        """Takes a queued run out of the queue; asks a running one to stop (within two seconds).

        Raises:
            UserError: another person started it.
        """
        if self.person() is not None:
            self.own(run_id)
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
        record = self.own(run_id)
        if isinstance(record.request, CompressRequest) and record.resumable:
            self._check_free(record.request.name, besides=record)
        with self._index.transaction() as db:
            queued = behind(db)
        fresh = {"started": None, "finished": None, "error": None, "queued": queued}
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
        record = self.own(run_id)
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
        makers = [
            run.owner
            for run in self._records(self._index.rows("SELECT * FROM runs WHERE kind = 'compress'"))
            if isinstance(run.request, CompressRequest) and run.request.name == name
        ]
        if self.person() not in (None, *makers):
            raise UserError("another person made it.", where=name, remedy="Only they delete it.")
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
        with self._index.transaction() as db, disk_faults(self.path):
            db.execute("DELETE FROM runs")
            return recovery.from_files(db, self.runs_folder)

    # What the worker and its supervisor use

    def recover(self) -> tuple[str, ...]:
        """Returns the runs that a dead worker left running, after marking them `interrupted`.

        Also takes in what the files know better than the index. Call it only while no worker lives.
        """
        with self._index.transaction() as db, disk_faults(self.path):
            recovery.reconcile(db, self.runs_folder)
            recovery.tidy(self.path, self.runs_folder, self.models_folder)
        left = self._index.rows("SELECT id FROM runs WHERE state = 'running'")
        error = {
            "what": "the program stopped while this was running.",
            "where": "worker",
            "remedy": "Resume continues it.",
        }
        return tuple(
            row["id"] for row in left if self.finish(row["id"], "interrupted", error=error)
        )

    # Inside

    def _taken(self, name: str, besides: RunRecord | None = None) -> bool:
        """Whether a model has the name, or will; what the run `besides` made itself does not."""
        own = None if besides is None else published.kept(besides.folder, besides.request)
        if name == "demo" or ((self.models_folder / name).exists() and own is None):
            return True
        return any(
            isinstance(record.request, CompressRequest)
            and record.request.name == name
            and (besides is None or record.id != besides.id)
            for record in self._unfinished()
        )

    def _check_free(self, name: str, besides: RunRecord | None = None) -> None:
        if self._taken(name, besides):
            raise UserError(
                f'a model called "{name}" exists already.',
                where="name",
                remedy=f'Call it "{self.free_name(name)}", or delete the other one.',
            )
