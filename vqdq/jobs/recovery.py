"""What a dead process left behind: the index brought in line with the files, and litter removed.

Called by the owner of a workspace while no worker lives.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from vqdq.durable import LEFT
from vqdq.jobs.index import insert_file

TRASH = ".trash-"
"""How the name of a folder begins that was being removed."""


def from_files(db: sqlite3.Connection, runs: Path) -> int:
    """Returns how many runs were found after filling an empty table from the files."""
    return sum(insert_file(db, path) for path in sorted(runs.glob("*/run.json")))


def reconcile(db: sqlite3.Connection, runs: Path) -> None:
    """Takes in what the files know better: runs that have not ended, are unknown, or are gone."""
    rows = db.execute("SELECT id, state FROM runs").fetchall()
    ended = {row["id"] for row in rows if row["state"] not in ("queued", "running")}
    for name in ended:
        if not (runs / name).is_dir():  # killed while it was being deleted
            db.execute("DELETE FROM runs WHERE id = ?", (name,))
    for path in sorted(runs.glob("*/run.json")):
        if path.parent.name not in ended:
            db.execute("DELETE FROM runs WHERE id = ?", (path.parent.name,))
            insert_file(db, path)


def tidy(*folders: Path) -> int:
    """Returns how many half-written files and half-removed folders were removed.

    Looked at are the folders and, in them, the folders of runs; unfinished work that can be
    resumed is none of these.
    """
    found = 0
    for folder in folders:
        for path in [*folder.glob(f"{TRASH}*"), *folder.glob(".*"), *folder.glob("*/.*")]:
            if path.name.startswith(TRASH):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith(LEFT) and path.is_file():
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                continue
            found += 1
    return found
