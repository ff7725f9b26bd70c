"""Files that are whole or absent, also after a power cut: on the disk before they have their name.

A rename is atomic, but a disk may keep it before it keeps the bytes that it names. So what is
written is synced first, then named, then the folder is synced, which makes the name last.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LEFT = (".part", ".tmp")
"""How the names of unfinished files end; they begin with a point."""


@contextmanager
def atomic(path: Path) -> Generator[IO[bytes], None, None]:
    """Lends a file that takes the name `path` when the block ends well, and vanishes otherwise."""
    # two threads of one process may write the same file: the last one wins, whole
    part = path.with_name(f".{path.name[-200:]}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file whole or not at all; line ends stay as they are."""
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Adds one line to a file and returns when it is on the disk.

    A line that a killed process cut short before it stays alone, for the reader to skip.
    """
    with path.open("ab+") as file:
        new = file.tell() == 0
        if not new:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def publish(part: Path, target: Path) -> None:
    """Renames a finished file or folder, after everything in it reached the disk."""
    if part.is_file():
        _sync(part)
    for place, _, names in os.walk(part):
        for name in names:
            _sync(os.path.join(place, name))
        _sync(place)
    part.rename(target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and what is missing above it, and their names durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    _sync(folder)


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
