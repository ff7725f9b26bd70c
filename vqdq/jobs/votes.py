"""Votes: append-only in SQLite, on the disk before anybody is told that they count.

A row is never changed or removed; triggers refuse it. Taking a vote back adds a row that says so.
Unlike the index of runs this file is the only copy: `synchronous = FULL` makes every vote survive a
kill and a power cut, and a file that cannot be read is left as it is.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vqdq.errors import UserError
from vqdq.jobs.ballots import assessor_key, assessor_name
from vqdq.jobs.database import DamagedFileError, Database, version_of
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.protocol import Protocol
from vqdq.places import expanded

FOLDER = "votes"
"""Of a workspace, where the votes file lies."""

_VERSION = 1
_APPEND_ONLY = ("tests", "votes", "withdrawals", "reveals")
_SCHEMA = (
    """CREATE TABLE tests (
        digest TEXT PRIMARY KEY, protocol TEXT NOT NULL, created REAL NOT NULL)""",
    """CREATE TABLE votes (
        id INTEGER PRIMARY KEY AUTOINCREMENT, test TEXT NOT NULL REFERENCES tests (digest),
        assessor TEXT NOT NULL, key TEXT NOT NULL, ballot TEXT NOT NULL, question TEXT NOT NULL,
        choice TEXT NOT NULL, shown TEXT NOT NULL, context TEXT NOT NULL, time REAL NOT NULL)""",
    "CREATE INDEX votes_by_person ON votes (test, key, ballot, question)",
    """CREATE TABLE withdrawals (
        vote INTEGER PRIMARY KEY REFERENCES votes (id), time REAL NOT NULL)""",
    """CREATE TABLE reveals (
        test TEXT PRIMARY KEY REFERENCES tests (digest), early INTEGER NOT NULL,
        time REAL NOT NULL)""",
    *(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table}"
        " BEGIN SELECT RAISE(ABORT, 'votes are append-only'); END"
        for table in _APPEND_ONLY
        for verb in ("UPDATE", "DELETE")
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """One answer.

    Attributes:
        id: rising with time.
        assessor: as written; `key`: what makes two spellings one person.
        ballot, question, choice: what was answered.
        shown: from `Ballot.record`: the pair, its kind, which model was A and which B.
        context: what the page knows about the moment (viewport, zoom, seconds, version).
        time: seconds since the epoch.
        withdrawn: True when it was taken back.
    """

    id: int
    assessor: str
    key: str
    ballot: str
    question: str
    choice: str
    shown: Mapping[str, Any]
    context: Mapping[str, Any]
    time: float
    withdrawn: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reveal:
    """When a test was opened; `early` when somebody had not finished."""

    early: bool
    time: float


class VoteStore(Database):
    """The votes file of a workspace. Safe for threads and for several processes."""

    def __init__(self, path: Path) -> None:
        self._protocols: dict[str, Protocol] = {}
        try:
            super().__init__(path, self._prepare, durable=True, patience_seconds=10.0)
        except DamagedFileError as error:
            raise UserError(
                "is damaged; nothing in it was changed.",
                where=str(path),
                remedy="Put a copy in its place, or move it away to start anew.",
            ) from error

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Returns the store in the file `path`, made when absent.

        Raises:
            UserError: the file is damaged, from a newer version, or cannot be written.
        """
        return cls(expanded(path).resolve())

    @classmethod
    def of(cls, workspace: Path) -> Self:
        """Returns the store of the workspace in that folder, made when absent.

        It lies in a folder of its own, which the page never serves from: whoever reads it can undo
        the blinding.
        """
        folder = workspace / FOLDER
        with disk_faults(folder):
            folder.mkdir(exist_ok=True)
        return cls.open(folder / "votes.sqlite")

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = version_of(db)
        if found > _VERSION:
            raise UserError(
                f"has version {found}; this program reads {_VERSION}.",
                where=str(self.path),
                remedy="Use the newer program.",
            )
        if found == 0:
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")

    def freeze(self, protocol: Protocol) -> str:
        """Returns the digest of `protocol` after storing it; storing it twice changes nothing."""
        text = json.dumps(protocol.to_json(), ensure_ascii=False, allow_nan=False)
        with self.transaction() as db:
            db.execute(
                "INSERT INTO tests VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (protocol.digest, text, time.time()),
            )
        return protocol.digest

    def tests(self) -> tuple[tuple[str, float], ...]:
        """Returns digest and time of every frozen test, newest first."""
        rows = self.rows("SELECT digest, created FROM tests ORDER BY created DESC, digest")
        return tuple((row["digest"], row["created"]) for row in rows)

    def protocol(self, test: str) -> Protocol:
        """Returns the protocol with that digest, checked against it.

        Raises:
            UserError: no such test, or its record was changed.
        """
        known = self._protocols.get(test)
        if known is not None:  # a record never changes, and the page asks every moment
            return known
        rows = self.rows("SELECT protocol FROM tests WHERE digest = ?", test)
        if not rows:
            raise UserError("there is no such test.", where=test[:12], remedy="Choose another.")
        found = Protocol.from_json(json.loads(rows[0]["protocol"]), digest=test)
        self._protocols[test] = found
        return found

    def add(
        self,
        test: str,
        assessor: str,
        ballot: str,
        question: str,
        choice: str,
        *,
        shown: Mapping[str, Any],
        context: Mapping[str, Any] | None = None,
    ) -> int:
        """Returns the id of a new vote; once this returns, it is on the disk.

        Raises:
            UserError: already answered, the test was opened, or the disk refuses.
        """
        key = assessor_key(assessor)
        with self.transaction() as db:
            self._check_closed(db, test)
            given = db.execute(
                "SELECT id FROM votes LEFT JOIN withdrawals ON vote = id WHERE test = ?"
                " AND key = ? AND ballot = ? AND question = ? AND vote IS NULL",
                (test, key, ballot, question),
            ).fetchone()
            if given is not None:
                raise UserError(
                    "this question was answered before.",
                    where=question,
                    remedy="Undo it first, or go on with the next.",
                )
            cursor = db.execute(
                "INSERT INTO votes (test, assessor, key, ballot, question, choice, shown, context,"
                " time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (test, assessor_name(assessor), key, ballot, question, choice, _json(shown),
                 _json(context or {}), time.time()),
            )  # fmt: skip
            return int(cursor.lastrowid or 0)

    def withdraw_last(self, test: str, assessor: str) -> Vote:
        """Returns the latest vote of an assessor after taking it back; it stays in the log.

        Raises:
            UserError: nothing to take back, or the test was opened.
        """
        with self.transaction() as db:
            self._check_closed(db, test)
            row = db.execute(
                f"{_SELECT} WHERE test = ? AND key = ? AND vote IS NULL ORDER BY id DESC LIMIT 1",
                (test, assessor_key(assessor)),
            ).fetchone()
            if row is None:
                raise UserError("there is no vote to take back.", where=assessor)
            db.execute("INSERT INTO withdrawals VALUES (?, ?)", (row["id"], time.time()))
        return _vote(row, withdrawn=True)

    def votes(self, test: str, assessor: str | None = None) -> tuple[Vote, ...]:
        """Returns the votes that count, oldest first; of one assessor or of all."""
        return tuple(v for v in self.log(test, assessor) if not v.withdrawn)

    def log(self, test: str, assessor: str | None = None) -> tuple[Vote, ...]:
        """Returns every vote ever given, the withdrawn ones too, oldest first."""
        if assessor is None:
            rows = self.rows(f"{_SELECT} WHERE test = ? ORDER BY id", test)
        else:
            key = assessor_key(assessor)
            rows = self.rows(f"{_SELECT} WHERE test = ? AND key = ? ORDER BY id", test, key)
        return tuple(_vote(row, withdrawn=row["vote"] is not None) for row in rows)

    def assessors(self, test: str) -> tuple[str, ...]:
        """Returns who has voted, in order of their first vote, as first written."""
        rows = self.rows(
            "SELECT assessor, min(id) AS first FROM votes WHERE test = ? GROUP BY key"
            " ORDER BY first",
            test,
        )
        return tuple(row["assessor"] for row in rows)

    def reveal(self, test: str, *, early: bool) -> None:
        """Opens a test: from now on no vote is taken or taken back. A second time is no change."""
        self.protocol(test)
        with self.transaction() as db:
            db.execute(
                "INSERT INTO reveals VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (test, int(early), time.time()),
            )

    def revealed(self, test: str) -> Reveal | None:
        """Returns when a test was opened, or None."""
        rows = self.rows("SELECT early, time FROM reveals WHERE test = ?", test)
        return Reveal(early=bool(rows[0]["early"]), time=rows[0]["time"]) if rows else None

    def _check_closed(self, db: sqlite3.Connection, test: str) -> None:
        if db.execute("SELECT 1 FROM tests WHERE digest = ?", (test,)).fetchone() is None:
            raise UserError("there is no such test.", where=test[:12], remedy="Choose another.")
        if db.execute("SELECT 1 FROM reveals WHERE test = ?", (test,)).fetchone() is not None:
            raise UserError(
                "the results have been shown; votes are no longer blind.",
                where="blind test",
                remedy="Make a new test.",
            )


_SELECT = "SELECT votes.*, vote FROM votes LEFT JOIN withdrawals ON vote = id"


def _vote(row: sqlite3.Row, *, withdrawn: bool) -> Vote:
    return Vote(
        id=row["id"],
        assessor=row["assessor"],
        key=row["key"],
        ballot=row["ballot"],
        question=row["question"],
        choice=row["choice"],
        shown=json.loads(row["shown"]),
        context=json.loads(row["context"]),
        time=row["time"],
        withdrawn=withdrawn,
    )


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False)
