"""How much memory a piece of work needed: the peak of this process, in bytes."""

from __future__ import annotations

import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Starts a new peak where the system allows it (Linux); elsewhere the old one goes on."""
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM to the memory in use now
    except OSError:
        return


def peak_bytes() -> int:
    """Returns the peak of resident memory since `reset_peak`, mapped file pages included."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
