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
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import request_from_json
from vqdq.jobs.run import RunRecord, read_json

_VERSION = 2
_NEW_IN_2 = ("name TEXT NOT NULL DEFAULT ''", "words TEXT NOT NULL DEFAULT ''")
_SCHEMA = f"""
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
    created REAL NOT NULL, queued REAL NOT NULL, started REAL, finished REAL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '', preview TEXT, eta REAL, cancel_at REAL,
    error TEXT, result TEXT, {", ".join(_NEW_IN_2)}
);
CREATE INDEX runs_by_state ON runs (state, queued);
CREATE INDEX runs_by_time ON runs (created);
CREATE TABLE worker (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, born REAL, beat REAL);
"""
_MAX_WORDS = 8000


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
            if found == 1:
                _from_1(db)
            elif found != _VERSION:
                for table in ("runs", "worker"):
                    db.execute(f"DROP TABLE IF EXISTS {table}")
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                self.is_new = True
            db.execute(f"PRAGMA user_version = {_VERSION}")
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


def _from_1(db: sqlite3.Connection) -> None:
    """Adds what version 2 knows more: a name that a person gave, and the words to search."""
    for column in _NEW_IN_2:
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")
    for row in db.execute("SELECT id, request FROM runs").fetchall():
        words = words_of(row["id"], json.loads(row["request"]))
        db.execute("UPDATE runs SET words = ? WHERE id = ?", (words, row["id"]))


def words_of(run_id: str, request: Mapping[str, Any], name: str = "") -> str:
    """Returns what a search looks through: every text of a request, its recipe by name only."""
    found = [name, run_id, *_texts(request)]
    return "\n".join(found).casefold()[:_MAX_WORDS]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in cast(Mapping[str, Any], value).items():
            if key == "recipe" and isinstance(part, Mapping):
                recipe = cast(Mapping[str, Any], part)
                yield from (str(recipe.get(each, "")) for each in ("name", "title"))
            elif key == "seed":
                yield f"seed {part}"
            else:
                yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in cast(Sequence[Any], value):
            yield from _texts(part)


def values_of(text: str | None) -> Any:
    """Returns the JSON value in a column, or None."""
    return None if text is None else json.loads(text)


def content_of(row: sqlite3.Row) -> dict[str, Any]:
    """Returns what `run.json` holds at least, from a row."""
    names = ("id", "state", "created", "queued", "started", "finished")
    content = {name: row[name] for name in names}
    content |= {"name": row["name"]} if row["name"] else {}
    return content | {"request": json.loads(row["request"]), "error": values_of(row["error"])}


def insert(db: sqlite3.Connection, content: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Adds a run to the index."""
    error, name = content["error"], str(content.get("name") or "")
    db.execute(
        "INSERT INTO runs"
        " (id, kind, state, request, created, queued, started, finished, error, result,"
        " name, words) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            name,
            words_of(content["id"], content["request"], name),
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
        name=row["name"],
    )
