"""One SQLite file of a workspace: a connection in WAL mode, shared by the threads of a process.

Every transaction is short and takes the write lock at once, so that waiting (`busy_timeout`)
cannot deadlock, whoever else has the file open.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqdq.jobs.faults import disk_faults

_UNREADABLE = ("not a database", "malformed")


class DamagedFileError(Exception):
    """The file is no database that can be read; nothing in it was changed."""


class Database:
    """A connection to one file.

    Args:
        path: the file, made when absent.
        prepare: makes or checks the tables, inside a write transaction.
        durable: every commit reaches the disk before it returns, so that it survives a power cut;
            otherwise a kill only.
        patience_seconds: how long to wait for another process.

    Raises:
        DamagedFileError: the file cannot be read.
        UserError: from `prepare`, or the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        *,
        durable: bool,
        patience_seconds: float,
    ) -> None:
        self.path = path
        self._lock = threading.RLock()
        with disk_faults(path):
            self._db = sqlite3.connect(
                path, timeout=patience_seconds, isolation_level=None, check_same_thread=False
            )
            try:
                self._db.row_factory = sqlite3.Row
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._db.execute("PRAGMA foreign_keys = ON")
                self._db.execute("BEGIN IMMEDIATE")
                prepare(self._db)
                self._db.execute("COMMIT")
            except BaseException as error:
                self._db.close()
                if isinstance(error, sqlite3.DatabaseError) and any(
                    words in str(error) for words in _UNREADABLE
                ):
                    raise DamagedFileError(str(path)) from error
                raise

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


def version_of(db: sqlite3.Connection) -> int:
    """Returns the version of the tables in a file; 0 for a new one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])
