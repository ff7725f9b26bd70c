"""Sweeps on a cluster whose workers, computers and drivers die.

Each attack is a new sweep on a Ray cluster of three node processes on the loopback: its driver is
cancelled or killed, then workers and a computer die at random points, until the sweep is whole.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.jobs import test_cluster as pieces
from tests.jobs.test_sweep import RECIPES, asked
from vqdq.errors import Cancelled
from vqdq.jobs.sweep_file import Sweep
from vqdq.jobs.sweep_store import Store


def attack(chance: random.Random, model: Path, place: Path) -> int:
    """Returns how many were killed in one sweep, after comparing it with a sweep in one process.

    Nothing is lost, nothing made twice, and every bit is that of one process.
    """
    asking = _asked(model)
    there, here = Store(str(place / "ray")), Store(str(place / "local"))
    before = pieces.children()
    cluster = pieces.start(nodes=3)
    try:
        kills = _interrupted(chance, model, there, cluster.address)
        kept = there.known()
        time.sleep(2)
        assert there.known() == kept, "somebody works on after the driver is gone"
        points = sorted(len(kept) + chance.randint(1, 20) for _ in range(3))
        ways = [pieces.kill_a_worker, pieces.kill_a_worker, lambda: pieces.kill_a_computer(cluster)]
        steps = list(zip(points, ways, strict=True))
        plan, result = pieces.drive(asking, there, cluster.address, pieces.harming(there, steps))
        assert result.finished, result.faults
        assert not kept & {name for unit in plan.units for name in unit.makes}
        pieces.check_whole(asking, there, here)
        return kills + 3 - len(steps)
    finally:
        cluster.shutdown()
        pieces.gone(before)


def _interrupted(chance: random.Random, model: Path, there: Store, address: str) -> int:
    """A driver that is cancelled, or killed without a word; returns the kills."""
    enough = chance.randint(1, 12)
    if chance.random() < 0.5:

        def stop(_event: object) -> None:
            if len(there.known()) >= enough:
                raise Cancelled

        with contextlib.suppress(Cancelled):
            pieces.drive(_asked(model), there, address, stop)
        return 0

    command = [sys.executable, "-m", __name__, str(model), there.url, address, str(enough)]
    return int(subprocess.run(command, check=False).returncode == -signal.SIGKILL)


def main() -> None:
    """A driver that kills itself once there are so many results."""
    model, url, address, enough = sys.argv[1:]
    store = Store(url)

    def die(_event: object) -> None:
        if len(store.known()) >= int(enough):
            os.kill(os.getpid(), signal.SIGKILL)

    pieces.drive(_asked(Path(model)), store, address, die)


def _asked(model: Path) -> Sweep:
    return asked(model, recipes=[RECIPES[0], RECIPES[1]], seeds=[1, 2, 3])


if __name__ == "__main__":
    main()
