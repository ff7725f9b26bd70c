"""`python -m tests.jobs.sweep_chaos --kills 20`: workers, computers and drivers of sweeps die.

Each turn is a new sweep on a Ray cluster of three node processes on the loopback: its driver is
cancelled or killed, then workers and a computer die at random points, until the sweep is whole.
What is lost, made twice or differs by a bit from one process's results ends it with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from tests.jobs import test_cluster as pieces
from tests.jobs.test_sweep import RECIPES, asked
from tests.models import tiny
from vqdq.errors import Cancelled
from vqdq.jobs.sweep_store import Store


def main() -> None:
    """Ends without an error when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="at least")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    chance = random.Random(wanted.seed)
    scratch = Path(tempfile.mkdtemp(prefix="vqdq-sweep-chaos-"))
    model = tiny.folder(scratch / "tiny")
    kills = turn = 0
    while kills < wanted.kills:
        turn += 1
        kills += _turn(chance, model, scratch / str(turn))
        print(f"{time.strftime('%H:%M:%S')}  {turn} sweeps whole, {kills} kills", flush=True)
        shutil.rmtree(scratch / str(turn))
    shutil.rmtree(scratch)


def _turn(chance: random.Random, model: Path, place: Path) -> int:
    """Returns how many were killed in one sweep, after comparing it with a sweep in one process."""
    asking = asked(model, recipes=[RECIPES[0], RECIPES[1]], seeds=[1, 2, 3])
    there, here = Store(str(place / "ray")), Store(str(place / "local"))
    before = pieces.children()
    cluster = pieces.start(nodes=3)
    try:
        kills = _interrupted(chance, asking, there, cluster.address)
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


def _interrupted(chance: random.Random, asking, there: Store, address: str) -> int:  # type: ignore[no-untyped-def]
    """A driver that is cancelled, or killed without a word; returns the kills."""
    enough = chance.randint(1, 12)
    if chance.random() < 0.5:

        def stop(_event: object) -> None:
            if len(there.known()) >= enough:
                raise Cancelled

        with contextlib.suppress(Cancelled):
            pieces.drive(asking, there, address, stop)
        return 0

    def die(_event: object) -> None:
        if len(there.known()) >= enough:
            os.kill(os.getpid(), signal.SIGKILL)

    driver = multiprocessing.get_context("spawn").Process(
        target=pieces.drive, args=(asking, there, address, die)
    )
    driver.start()
    driver.join()
    return int(driver.exitcode == -signal.SIGKILL)


if __name__ == "__main__":
    main()
