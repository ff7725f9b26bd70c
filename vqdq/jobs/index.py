"""The SQLite index over the run folders: fast to query, safe for two processes, never the only
copy.

The page's process and the worker's process each hold one connection in WAL mode. Every
transaction is short and takes the write lock at once, so that waiting (`busy_timeout`) cannot
deadlock.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import request_from_json
from vqdq.jobs.run import RunRecord, read_json

_VERSION = 1
_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
    created REAL NOT NULL, queued REAL NOT NULL, started REAL, finished REAL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '', preview TEXT, eta REAL, cancel_at REAL,
    error TEXT, result TEXT
);
CREATE INDEX runs_by_state ON runs (state, queued);
CREATE INDEX runs_by_time ON runs (created);
CREATE TABLE worker (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, born REAL, beat REAL);
"""


class Index:
    """One connection, shared by the threads of a process behind a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self.is_new = False
        with disk_faults(path):
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._ready()
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error) and "malformed" not in str(error):
                raise
        for name in (self.path.name, f"{self.path.name}-wal", f"{self.path.name}-shm"):
            self.path.with_name(name).unlink(missing_ok=True)
        return self._ready()

    def _ready(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN IMMEDIATE")
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found != _VERSION:
                for table in ("runs", "worker"):
                    db.execute(f"DROP TABLE IF EXISTS {table}")
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")
                self.is_new = True
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """Yields the connection in a write transaction; commits, or rolls back when it raises."""
        with self._lock, disk_faults(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.OperationalError):  # SQLite may have rolled back
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Returns all rows of a query."""
        with self._lock, disk_faults(self.path):
            return self._db.execute(sql, values).fetchall()

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._db.close()


def values_of(text: str | None) -> Any:
    """Returns the JSON value in a column, or None."""
    return None if text is None else json.loads(text)


def content_of(row: sqlite3.Row) -> dict[str, Any]:
    """Returns what `run.json` holds at least, from a row."""
    names = ("id", "state", "created", "queued", "started", "finished")
    content = {name: row[name] for name in names}
    return content | {"request": json.loads(row["request"]), "error": values_of(row["error"])}


def insert(db: sqlite3.Connection, content: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Adds a run to the index."""
    error = content["error"]
    db.execute(
        "INSERT INTO runs"
        " (id, kind, state, request, created, queued, started, finished, error, result)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            content["id"],
            content["request"]["kind"],
            content["state"],
            json.dumps(content["request"]),
            content["created"],
            content["queued"],
            content["started"],
            content["finished"],
            None if error is None else json.dumps(error),
            None if result is None else json.dumps(result),
        ),
    )


def insert_file(db: sqlite3.Connection, path: Path) -> int:
    """Returns 1 after adding the run that a `run.json` describes, or 0 when it is none."""
    content = read_json(path)
    if content is None or content.get("id") != path.parent.name:
        return 0
    try:
        request_from_json(content["request"])
        state = content["state"]
        result = read_json(path.with_name("result.json")) if state == "done" else None
        insert(db, content, result)
    except (KeyError, TypeError, UserError):  # written by another version: the files stay, unlisted
        return 0
    return 1


def record_of(row: sqlite3.Row, folder: Path) -> RunRecord:
    """Returns the run in a row."""
    end = row["finished"] or time.time()
    return RunRecord(
        id=row["id"],
        kind=row["kind"],
        state=row["state"],
        request=request_from_json(json.loads(row["request"])),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        stage=row["stage"],
        done=row["done"],
        total=row["total"],
        message=row["message"],
        preview=row["preview"],
        eta_seconds=row["eta"],
        seconds=0.0 if row["started"] is None else max(0.0, end - row["started"]),
        cancelling=row["cancel_at"] is not None,
        error=values_of(row["error"]),
        folder=folder,
        result=values_of(row["result"]),
    )
