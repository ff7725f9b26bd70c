"""Whose turn it is: one run at a time, and nobody waits for all that another person has queued.

People take turns; the one who has waited longest since a run of theirs began goes first. Without a
login everybody is the same person, and the order is that of the queue.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

QUEUED = "SELECT * FROM runs WHERE state = 'queued' ORDER BY queued, id"
LAST = "SELECT owner, max(started) AS last FROM runs WHERE owner IN ({}) GROUP BY owner"


def in_turn(
    queued: Sequence[sqlite3.Row], last: Mapping[str, float | None]
) -> tuple[sqlite3.Row, ...]:
    """Returns the queued runs in the order in which they will start.

    Args:
        queued: rows of `runs` in the order in which they were asked for; time 0 goes first.
        last: when a run of each owner began last.
    """
    seen: Counter[str] = Counter()
    keyed: list[tuple[tuple[bool, int, float], sqlite3.Row]] = []
    for row in queued:
        owner = row["owner"]
        keyed.append(((row["queued"] > 0, seen[owner], last.get(owner) or 0.0), row))
        seen[owner] += row["queued"] > 0
    keyed.sort(key=lambda pair: pair[0])  # stable: what is equal stays in the order of the queue
    return tuple(row for _, row in keyed)
