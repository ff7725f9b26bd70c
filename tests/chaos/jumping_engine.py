"""The toy engine in a process whose clock jumps: days ahead and days back, at every look."""

from __future__ import annotations

import random
import time

from tests.jobs import toy_engine

DAY = 86400.0
_real, _chance = time.time, random.Random(4)


def jumping() -> float:
    """Returns a time that may be wrong by days."""
    return _real() + _chance.choice((-400 * DAY, -DAY, 0.0, DAY, 400 * DAY))


class Engine(toy_engine.Engine):
    def __init__(self, workspace, warm):
        super().__init__(workspace, warm)
        time.time = jumping
