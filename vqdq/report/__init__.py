"""One file that shows a comparison, a grid or a blind test anywhere.

It works from the disk, without a network and without scripts; with them, pictures can be laid over
each other. CSV and JSON with the same numbers lie beside it.
"""

from __future__ import annotations

from vqdq.report.bundle import REPORTED, Written, write
from vqdq.report.source import open_run

__all__ = ["REPORTED", "Written", "open_run", "write"]
