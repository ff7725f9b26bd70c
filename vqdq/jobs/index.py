"""The SQLite index over the run folders: fast to query, safe for two processes, never the only
copy.

The page's process and the worker's process each hold one connection.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.jobs.database import DamagedFileError, Database, version_of
from vqdq.jobs.requests import request_from_json
from vqdq.jobs.run import STATES, RunRecord, read_json

_VERSION = 3
NEWEST = _VERSION
"""Version of the index that this program writes."""
_NEW_IN_2 = ("name TEXT NOT NULL DEFAULT ''", "words TEXT NOT NULL DEFAULT ''")
_NEW_IN_3 = ("owner TEXT NOT NULL DEFAULT ''",)
_SCHEMA = f"""
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
    created REAL NOT NULL, queued REAL NOT NULL, started REAL, finished REAL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '', preview TEXT, eta REAL, cancel_at REAL,
    error TEXT, result TEXT, {", ".join((*_NEW_IN_2, *_NEW_IN_3))}
);
CREATE INDEX runs_by_state ON runs (state, queued);
CREATE INDEX runs_by_time ON runs (created);
CREATE TABLE worker (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, born REAL, beat REAL);
"""
_MAX_WORDS = 8000
_UNREADABLE = (
    UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
    sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.IntegrityError,
)  # fmt: skip
PATIENCE_SECONDS = 5.0  # for another process that writes


class Index(Database):
    """The index in the file `path`; one that cannot be read is made anew, for the files are the
    truth.

    Attributes:
        is_new: True when it was made just now and knows no run.
    """

    def __init__(self, path: Path) -> None:
        self.is_new = False
        try:
            super().__init__(path, self._prepare, durable=False, patience_seconds=PATIENCE_SECONDS)
        except DamagedFileError:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            super().__init__(path, self._prepare, durable=False, patience_seconds=PATIENCE_SECONDS)

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = version_of(db)
        if found > _VERSION:
            raise UserError(
                f"the index has version {found}; this program reads {_VERSION}.",
                where=str(self.path),
                remedy="Use the newer program, or another --workspace; nothing was changed.",
            )
        if found == 1:
            _from_1(db)
        if found in (1, 2):
            _from_2(db)
        elif found != _VERSION:
            for table in ("runs", "worker"):
                db.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            self.is_new = True
        db.execute(f"PRAGMA user_version = {_VERSION}")


def _from_1(db: sqlite3.Connection) -> None:
    """Adds what version 2 knows more: a name that a person gave, and the words to search."""
    for column in _NEW_IN_2:
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")
    for row in db.execute("SELECT id, request FROM runs").fetchall():
        words = words_of(row["id"], json.loads(row["request"]))
        db.execute("UPDATE runs SET words = ? WHERE id = ?", (words, row["id"]))


def _from_2(db: sqlite3.Connection) -> None:
    """Adds who started a run; nobody who can be named has started the earlier ones."""
    for column in _NEW_IN_3:
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")


def words_of(run_id: str, request: Mapping[str, Any], name: str = "") -> str:
    """Returns what a search looks through: every text of a request, its recipe by name only."""
    found = [name, run_id, *_texts(request)]
    return "\n".join(("", *found)).casefold()[:_MAX_WORDS] + "\n"  # a line each


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
    content |= {key: row[key] for key in ("name", "owner") if row[key]}
    return content | {"request": json.loads(row["request"]), "error": values_of(row["error"])}


def insert(db: sqlite3.Connection, content: dict[str, Any], result: dict[str, Any] | None) -> None:
    """Adds a run to the index."""
    error, name = content["error"], str(content.get("name") or "")
    times = [content[key] for key in ("created", "queued", "started", "finished")]
    if not all(isinstance(time, int | float | None) for time in times) or None in times[:2]:
        raise ValueError("times")
    if content["state"] not in STATES or not isinstance(error, dict | None):
        raise ValueError("state")
    db.execute(
        "INSERT INTO runs"
        " (id, kind, state, request, created, queued, started, finished, error, result,"
        " name, words, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            str(content.get("owner") or ""),
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
    except _UNREADABLE:  # damaged, or written by another version: the files stay, unlisted
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
        owner=row["owner"],
    )
