"""One server and one worker per workspace: locks that the operating system drops when their
holder dies, however it dies.

The lock is SQLite's own exclusive lock on a file of its own: portable, and never stale. Beside
it stands who holds it, for the message only.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.run import read_json, write_json


class Lock:
    """Exclusive ownership of a folder by this process until `release` or its death."""

    def __init__(self, folder: Path, name: str = "server") -> None:
        """Takes the lock called `name`.

        Raises:
            UserError: another process holds it (its process id is named), or the disk refuses.
        """
        holder = folder / f"{name}.json"
        with disk_faults(folder):
            self._db = sqlite3.connect(
                folder / f"{name}.lock", timeout=0, isolation_level=None, check_same_thread=False
            )
        try:
            with disk_faults(folder):
                self._take(folder, holder)
        except BaseException:
            self._db.close()
            raise

    def _take(self, folder: Path, holder: Path) -> None:
        try:
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            pid = (read_json(holder) or {}).get("pid", "unknown")
            raise UserError(
                f"another VQDQ (process {pid}) already uses this workspace.",
                where=str(folder),
                remedy="Open its page, stop it, or start this one with another --workspace.",
            ) from None
        write_json(holder, {"pid": os.getpid()})

    @staticmethod
    def holder(folder: Path, name: str) -> int | None:
        """Returns the process id of who took the lock last, or None when nobody ever did."""
        pid = (read_json(folder / f"{name}.json") or {}).get("pid")
        return pid if isinstance(pid, int) else None

    @staticmethod
    def test(folder: Path, name: str) -> None:
        """Raises `UserError` when somebody holds the lock; changes nothing."""
        with disk_faults(folder):
            db = sqlite3.connect(folder / f"{name}.lock", timeout=0, isolation_level=None)
            try:
                db.execute("BEGIN EXCLUSIVE")
            finally:
                db.close()

    def release(self) -> None:
        """Gives the workspace free."""
        self._db.close()
