"""Names of files: those out of other files stay inside their folder; `~` is somebody's home."""

from __future__ import annotations

import os
from pathlib import Path

from vqdq.errors import UserError


def expanded(path: str | Path) -> Path:
    """Returns a path with `~` and `~name` as home folders; somebody unknown stays as it is."""
    return Path(os.path.expanduser(path))


def inside(folder: Path, name: object) -> Path:
    """Returns `folder / name`.

    Raises:
        UserError: it leads out of the folder, by itself or by a link, or is no name.
    """
    try:
        path = folder / str(name)
        if isinstance(name, str) and name:
            real, home = os.path.realpath(path), os.path.realpath(folder)
            if Path(real).is_relative_to(home) and real != home:
                path.exists()  # raises for a name that no file can have
                return path
    except (OSError, ValueError):  # a loop of links, a zero byte, a name too long
        pass
    raise UserError(
        f"{str(name)[:80]!r} is no file of this folder.",
        where=str(folder),
        remedy="The folder was changed by hand or is not from this program.",
    )
