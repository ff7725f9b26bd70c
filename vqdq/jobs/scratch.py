"""Folders for work under way, that nobody has to remove by hand when a process is killed.

A process keeps a lock on its own folder, which ends with it however it ends: the next process that
makes one removes those that nobody keeps. Locks, not process ids: containers may share the place.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "vqdq-sweep-"
_LOCK = "lock"


class Scratch:
    """A folder of this process, below the system's place for such; gone with it or with this."""

    def __init__(self) -> None:
        tidy()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        part = self.folder / f".{_LOCK}"
        self._lock = part.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        part.rename(self.folder / _LOCK)  # kept before anybody can look for it
        weakref.finalize(self, _end, self.folder, self._lock)

    def place(self) -> tempfile.TemporaryDirectory[str]:
        """Returns a folder for one piece of work, removed at the end of its block."""
        return tempfile.TemporaryDirectory(dir=self.folder)


def tidy() -> int:
    """Returns how many folders of processes that are gone were removed."""
    found = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open() as lock:  # another one's, or still kept
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            found += 1
    return found


def _end(folder: Path, lock: IO[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()
