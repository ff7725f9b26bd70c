"""Finding earlier runs again, and what they take on the disk.

Sizes are counted by a thread, a folder only when it changed: the page never waits for a disk.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vqdq.errors import UserError

MAX_NAME = 80
STALE_SECONDS = 5.0
_SEED = re.compile(r"\bseed \d+\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What is looked for; an empty field fits every run.

    Attributes:
        words: each of them stands in the prompt, the models, the name or the id; case is ignored.
            "seed 7" means that very seed.
        kind, state: as in `RunRecord`.
    """

    words: str = ""
    kind: str = ""
    state: str = ""

    def where(self) -> tuple[str, tuple[str, ...]]:
        """Returns the condition in SQL and its values."""
        parts: list[str] = []
        values: list[str] = []
        for column, value in (("kind", self.kind), ("state", self.state)):
            if value:
                parts.append(f"{column} = ?")
                values.append(value)
        text = self.words[:400].casefold()
        for word in (
            *(f"\n{seed}\n" for seed in _SEED.findall(text)),
            *_SEED.sub("", text).split(),
        ):
            parts.append("instr(words, ?) > 0")
            values.append(word)
        return " AND ".join(parts) or "1", tuple(values)


def name_of(text: str) -> str:
    """Returns a person's name for a run, on one line.

    Raises:
        UserError: it is too long.
    """
    name = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(name) > MAX_NAME:
        raise UserError(
            f"the name has {len(name)} characters.", where="name", remedy=f"Use at most {MAX_NAME}."
        )
    return name


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a workspace takes on the disk, in bytes.

    Attributes:
        runs, models: folder name -> bytes; what is being made counts too.
        free: of the disk that holds the workspace.
        counted: False before the first count is done.
    """

    runs: Mapping[str, int] = field(default_factory=dict[str, int])
    models: Mapping[str, int] = field(default_factory=dict[str, int])
    other: int = 0
    free: int = 0
    counted: bool = False

    @property
    def total(self) -> int:
        """Everything in the workspace."""
        return sum(self.runs.values()) + sum(self.models.values()) + self.other

    def by_kind(self) -> dict[str, int]:
        """Returns the bytes of the runs of each kind; the kind is part of a run's id."""
        found: dict[str, int] = {}
        for name, count in self.runs.items():
            parts = name.split("-")
            kind = parts[2] if len(parts) > 3 else "other"
            found[kind] = found.get(kind, 0) + count
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class DiskUse:
    """Counts a workspace's bytes in a thread and keeps the last answer.

    Args:
        path: folder of the workspace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Path, tuple[tuple[int, ...], int]] = {}
        self._usage = Usage()
        self._counted_at = float("-inf")
        self._lock = threading.Lock()
        self._busy = False

    def look(self) -> Usage:
        """Returns the last count at once; a new one starts when it is older than a few seconds."""
        with self._lock:
            if not self._busy and time.monotonic() - self._counted_at > STALE_SECONDS:
                self._busy = True
                threading.Thread(target=self._work, daemon=True, name="disk-use").start()
            return self._usage

    def count(self) -> Usage:
        """Returns the bytes now."""
        known: dict[Path, tuple[tuple[int, ...], int]] = {}
        parts = {name: self._folders(self.path / name, known) for name in ("runs", "models")}
        other = sum(
            entry.stat(follow_symlinks=False).st_size
            for entry in _entries(self.path)
            if entry.is_file(follow_symlinks=False)
        )
        self._known = known
        free = shutil.disk_usage(self.path).free
        return Usage(
            runs=MappingProxyType(parts["runs"]),
            models=MappingProxyType(parts["models"]),
            other=other,
            free=free,
            counted=True,
        )

    def _work(self) -> None:
        try:
            usage = self.count()
        except OSError:  # the workspace is gone or the disk refuses: the last count stays
            usage = self._usage
        with self._lock:
            self._usage, self._counted_at, self._busy = usage, time.monotonic(), False

    def _folders(
        self, parent: Path, known: dict[Path, tuple[tuple[int, ...], int]]
    ) -> dict[str, int]:
        found: dict[str, int] = {}
        for entry in _entries(parent):
            if not entry.is_dir(follow_symlinks=False):
                continue
            path = Path(entry.path)
            stamp = _stamp(path)
            before = self._known.get(path)
            unchanged = before is not None and before[0] == stamp
            known[path] = before if unchanged and before else (stamp, tree_bytes(path))
            found[entry.name] = known[path][1]
        return found


def tree_bytes(folder: Path) -> int:
    """Returns the bytes of all files below a folder; links are not followed."""
    total, left = 0, [folder]
    while left:
        for entry in _entries(left.pop()):
            try:
                if entry.is_dir(follow_symlinks=False):
                    left.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # written and renamed while we look
                continue
    return total


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when a file is added or replaced here or one folder deeper, or the log grows."""
    parts = [entry.path for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]
    times: list[int] = []
    for path in (folder, folder / "events.jsonl", *parts):
        try:
            times.append(os.stat(path).st_mtime_ns)
        except FileNotFoundError:
            times.append(0)
    return tuple(times)


def _entries(folder: Path) -> Sequence[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return ()
