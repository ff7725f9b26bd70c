"""Faults of the machine, said as `UserError`: a full or read-only disk, a path without rights,
no memory.

Each is caught exactly where a job or the workspace touches the disk; anything unexpected passes
through.
"""

from __future__ import annotations

import errno
import re
import sqlite3
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from vqdq.errors import UserError

_REMEDIES = {
    errno.ENOSPC: ("the disk is full.", "Free some space and try again; finished work is kept."),
    errno.EDQUOT: (
        "the disk quota is used up.",
        "Free some space and try again; finished work is kept.",
    ),
    errno.EROFS: ("the disk is read-only.", "Choose a folder that can be written."),
    errno.EACCES: ("access is denied.", "Choose another path, or change its permissions."),
    errno.EPERM: ("access is denied.", "Choose another path, or change its permissions."),
    errno.ENAMETOOLONG: ("the name is too long.", "Use a shorter one."),
    errno.ENOTDIR: ("a part of the path is a file.", "Choose another path."),
    errno.EIO: ("the disk reports a fault.", "Check the disk; choose another folder."),
    errno.EMFILE: ("too many files are open.", "Close other programs and try again."),
    errno.ENFILE: ("too many files are open.", "Close other programs and try again."),
}


@contextmanager
def disk_faults(where: str | Path) -> Generator[None]:
    """Raises `UserError` in place of an expected fault of the disk or index inside the block."""
    try:
        yield
    except OSError as error:
        known = as_user_error(error, where)
        if known is None:
            raise
        raise known from error
    except sqlite3.DatabaseError as error:
        text = str(error)
        for words, what, remedy in _INDEX_FAULTS:
            if words in text:
                raise UserError(what, where=str(where), remedy=remedy) from error
        raise


_INDEX_FAULTS = (
    ("disk is full", "the disk is full.", "Free some space and try again; finished work is kept."),
    ("readonly", "the workspace is read-only.", "Choose a folder that can be written."),
    ("unable to open", "the workspace cannot be opened.", "Choose a folder that can be written."),
    ("disk I/O", "the disk reports a fault.", "Check the disk; choose another folder."),
    ("locked", "the index is busy.", "Close other programs that use this workspace, try again."),
)


def as_user_error(error: BaseException, where: str | Path) -> UserError | None:
    """Returns an expected fault of the machine in plain words, or None for any other exception."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        what, remedy = _REMEDIES[error.errno]
        return UserError(what, where=str(error.filename or where), remedy=remedy)
    text = str(error)
    full = _is_full(error)
    if full and (asked := _ASKED.search(text)):
        return _card_full(error, where, _FEWER.format(asked[1]))
    # torch says it in words on the CPU
    little = "allocate memory" in text or "start new thread" in text  # its stack finds no room
    if full or isinstance(error, MemoryError) or little:
        if full:
            _let_go(error)
        return UserError(
            "there was not enough memory.",
            where=str(where),
            remedy="Close other programs, then resume; finished work is kept.",
        )
    return None


@contextmanager
def card_faults(where: str, change: Callable[[BaseException], str]) -> Generator[None]:
    """Raises `UserError` in place of a full card inside the block; the card is usable afterwards.

    Args:
        change: from the error to the smallest change that would fit, in a sentence; it is asked
            while the card is as full as it was.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_full(error):
            raise
        raise _card_full(error, where, change(error)) from error


_ASKED = re.compile(r"Tried to allocate ([\d.]+ [KMG]iB)")
_FREE = re.compile(r"of which ([\d.]+ [KMG]iB) is free")
_FEWER = (
    "Keep at least {} fewer decoded weights: the mode hybrid with a smaller cache, or streaming,"
    " which keeps none. Or draw fewer or smaller pictures at once."
)


def _is_full(error: BaseException) -> bool:
    """Whether a card was full; without loading torch, which then had nothing to do with it."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return False
    try:
        from vqdq.layers import card_memory
    except MemoryError:  # the computer's memory is full: there is no room to read a module
        return False
    return card_memory.is_full(error)


def _let_go(error: BaseException) -> None:
    from vqdq.layers import card_memory

    card_memory.let_go(error)


def _card_full(error: BaseException, where: str | Path, remedy: str) -> UserError:
    """Returns what torch says of a full card, after giving back what the failed work held."""
    _let_go(error)
    text = str(error)
    asked, free = _ASKED.search(text), _FREE.search(text)
    more = "" if asked is None else f": {asked[1]} more were needed"
    left = "" if free is None or not more else f", {free[1]} were free"
    return UserError(f"the card's memory is full{more}{left}.", where=str(where), remedy=remedy)
