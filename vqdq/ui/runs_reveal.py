"""Showing a folder in the file manager of the computer that the studio runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from vqdq.ui import people


def reveal(folder: Path) -> bool:
    """Returns whether the system's file manager was asked to show `folder`.

    Raises:
        UserError: somebody asks who may sit at another computer.
    """
    people.refuse_visitors("Show in folder")
    opener = opener_command()
    if opener is None or not folder.is_dir():
        return False
    subprocess.Popen(
        [opener, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return True


def opener_command() -> str | None:
    """Returns the program that shows a folder on this computer's desktop, or None without a
    desktop, or for people at other computers.
    """
    if people.current() is not None:
        return None
    if sys.platform == "darwin":
        return shutil.which("open")
    if sys.platform == "win32":
        return shutil.which("explorer")
    has_desktop = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return shutil.which("xdg-open") if has_desktop else None
