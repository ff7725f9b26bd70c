"""What a compression takes on the disk, known before it starts, and what a full disk means."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vqdq.errors import UserError
from vqdq.models.copying import component_bytes
from vqdq.models.partial import FULL, Partial
from vqdq.models.sources import Source
from vqdq.recipe import Plan


def needed_bytes(plan: Plan, source: Source) -> int:
    """Returns what the work takes on the disk: each packed layer, then the whole final folder."""
    plans = (plan, *plan.others)
    packed = sum(planned.storage.total_bytes for each in plans for planned in each.quantized)
    copied = component_bytes(source, [other.component.name for other in plan.others])
    return packed + plan.total_bytes + copied


def require_space(partial: Partial, needed: int) -> None:
    """Raises `UserError` before any work when the disk cannot hold what is still to be written."""
    done = sum(item.stat().st_size for item in partial.folder.rglob("layers/*"))
    free = shutil.disk_usage(partial.folder).free
    if free < needed - done:
        raise UserError(
            f"the disk has {free:,} bytes free, {needed - done:,} are needed.",
            where=str(partial.folder),
            remedy="Free space or choose another disk; finished layers are kept.",
        )


@contextmanager
def full_disk(output: Path, needed: int) -> Generator[None, None, None]:
    """Turns "no space left" into a `UserError` that says what is needed and what is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"the disk is full; the work takes {needed:,} bytes in all.",
            where=str(output),
            remedy="Free space and start again: finished layers are kept in "
            f"{output.with_name(output.name + '.partial')}.",
        ) from error
