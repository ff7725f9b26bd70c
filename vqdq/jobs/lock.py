"""One server per workspace: a lock that the operating system drops when its holder dies, however
it dies.

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

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            UserError: another process holds it (its process id is named), or the disk refuses.
        """
        holder = folder / "server.json"
        with disk_faults(folder):
            self._db = sqlite3.connect(
                folder / "server.lock", timeout=0, isolation_level=None, check_same_thread=False
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

    def release(self) -> None:
        """Gives the workspace free."""
        self._db.close()
