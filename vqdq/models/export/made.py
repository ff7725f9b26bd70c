"""What the formats share: what was written, the unfinished file's name, and the disk's limits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqdq.errors import UserError
from vqdq.models.partial import FULL


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What one format wrote.

    Attributes:
        bytes: of the file with the denoiser.
        decoded: how many layers were decoded.
        left_out: what the format cannot say, one sentence each.
        error_db: of weights that were quantized again: 10 log10(‖W-Ŵ‖² / ‖W‖²) against the decoded
            ones; None where every value is kept.
        kinds: how many tensors are stored as what, where they differ.
    """

    bytes: int
    decoded: int
    left_out: tuple[str, ...]
    error_db: float | None = None
    kinds: tuple[tuple[str, int], ...] = ()


def part_of(target: Path) -> Path:
    """Returns the name that an output has until it is complete."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


@contextmanager
def writing(target: Path, needed: int) -> Generator[None, None, None]:
    """Refuses a disk that cannot hold the output, before and while it is written.

    Raises:
        UserError: too little space, or a folder that may not be written to.
    """
    try:
        free = shutil.disk_usage(target.parent).free
        if free < needed:
            raise _full(target, f"has {free:,} bytes free, {needed:,} are needed.")
        yield
    except OSError as error:
        if error.errno in FULL:
            raise _full(target, f"is full; the output takes {needed:,} bytes.") from error
        if isinstance(error, (PermissionError, FileNotFoundError)):
            raise UserError(
                f"cannot be written: {error.strerror}.",
                where=str(target),
                remedy="Choose an output in a folder that exists and that you may write to.",
            ) from error
        raise


def _full(target: Path, what: str) -> UserError:
    return UserError(
        f"the disk {what}",
        where=str(target),
        remedy="Nothing was left there. Free space or choose another disk.",
    )
