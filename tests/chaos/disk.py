"""A disk that is full at the n-th write, and that remembers the order of writes, syncs and names.

Everything that Python writes below a folder passes here: files, syncs, renames, new folders, and
the statements of SQLite that change something.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHANGING = ("INSERT", "UPDATE", "DELETE", "COMMIT")


class Disk:
    """Patched in while its block runs.

    Args:
        place: only what lies below counts.
        full_at: number of the write that finds the disk full, from 1; 0 for never.
        lasting: every later write fails as well.
    """

    def __init__(self, place: Path, *, full_at: int = 0, lasting: bool = False) -> None:
        self.place = str(place)
        self.count = 0
        self.failed = 0
        self.trace: list[tuple[str, str, int]] = []
        self._full_at = full_at
        self._lasting = lasting
        self._undo: list[tuple[Any, str, Any]] = []

    def step(self, what: str, path: str, inode: int) -> None:
        """One write; raises when the disk is full."""
        self.count += 1
        full = self.count == self._full_at or (self._lasting and self.count > self._full_at > 0)
        if full:
            self.failed += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self.trace.append((what, path, inode))

    def inside(self, path: object) -> bool:
        """True for what lies below the folder."""
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.place)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        for module, name, made in (
            (io, "open", self._open),
            (builtins, "open", self._open),
            (os, "fsync", self._fsync),
            (os, "rename", self._rename),
            (os, "replace", self._rename),
            (os, "link", self._rename),  # a second name
            (os, "mkdir", self._mkdir),
            (sqlite3, "connect", self._connect),
        ):
            real = getattr(module, name)
            self._undo.append((module, name, real))
            setattr(module, name, made(real))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for module, name, real in reversed(self._undo):
            setattr(module, name, real)
        self._undo.clear()

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any):
            if not disk.inside(file) or not set(mode) & set("wax+"):
                return real(file, mode, buffering, *rest, **named)
            named.pop("closefd", None)
            named.pop("opener", None)
            raw = _File(file, mode.replace("b", "").replace("t", ""))
            raw.disk = disk
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, *rest, **named)

        return opened

    def _fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def synced(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            facts = os.fstat(number)
            path = os.readlink(f"/proc/self/fd/{number}")
            if self.inside(path):
                kind = "sync folder" if stat.S_ISDIR(facts.st_mode) else "sync"
                self.step(kind, path, facts.st_ino)
            real(number)

        return synced

    def _rename(self, real: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: Any, target: Any, **named: Any) -> None:
            if self.inside(target):
                for path in [source, *Path(source).rglob("*")]:  # what becomes visible with it
                    self.trace.append(("named", str(path), os.stat(path).st_ino))
                self.step("rename", os.fspath(target), os.stat(source).st_ino)
            real(source, target, **named)

        return renamed

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def made(path: Any, *rest: Any, **named: Any) -> None:
            if self.inside(path) and not os.path.isdir(path):
                self.step("mkdir", os.fspath(path), 0)
            real(path, *rest, **named)

        return made

    def _connect(self, real: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> Any:
                if sql.lstrip().startswith(_CHANGING):
                    try:
                        disk.step("statement", sql, 0)
                    except OSError:
                        raise sqlite3.OperationalError("database or disk is full") from None
                return super().execute(sql, *values)

        def connected(path: Any, *rest: Any, **named: Any) -> Any:
            if disk.inside(path):
                named["factory"] = Connection
            return real(path, *rest, **named)

        return connected


class _File(io.FileIO):
    disk: Disk

    def write(self, data: Any) -> int | None:
        self.disk.step("write", str(self.name), os.fstat(self.fileno()).st_ino)
        return super().write(data)


def faults_of_order(trace: list[tuple[str, str, int]]) -> list[str]:
    """Returns what could be lost or half there after a power cut.

    A file has to be synced between its last write and the moment when it, or a folder around it,
    takes a name that does not begin with a point; and the folder that holds the name, afterwards.
    """
    dirty: dict[int, str] = {}
    entries: dict[str, str] = {}  # folders whose names are not on the disk -> the latest name
    pending: list[int] = []
    found: list[str] = []
    for what, path, inode in trace:
        if what == "write":
            dirty[inode] = path
        elif what == "sync":
            dirty.pop(inode, None)
        elif what == "sync folder":
            entries.pop(path, None)
        elif what == "named":
            pending.append(inode)
        elif what == "rename":
            if not Path(path).name.startswith("."):
                found += [
                    f"{dirty[one]} is named before it is synced" for one in pending if one in dirty
                ]
                entries[str(Path(path).parent)] = path
            pending = []
    found += [f"the name {name} is never synced" for name in entries.values()]
    found += [
        f"{path} is never synced"
        for path in dirty.values()
        if not path.endswith("events.jsonl") and not Path(path).name.startswith(".")
    ]
    return found
