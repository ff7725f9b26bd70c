"""`python -m tests.chaos --minutes 60 --seed 1`: faults on purpose, for as long as one likes.

First at least `--kills` kills of each kind, then rounds of everything until the time is up. What
is lost ends it with an error.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.chaos import full, kills, nest, sweeps, work
from tests.models import tiny

KINDS = ("vote", "history", *work.RESUMABLE, "ending", "cluster")
"""Of "ending" is a compression between the naming of its model and its end."""
ROOT = Path(__file__).parents[2]
DAMAGED = ("tests/chaos/test_hostile.py", "tests/models/test_fuzz.py")


class Chaos:
    """Attacks of each kind on one model, and how often each was done."""

    def __init__(self, chance: random.Random, model: Path, scratch: Path) -> None:
        self.done: Counter[str] = Counter()
        self._chance, self._model, self._scratch = chance, model, scratch
        self._number = itertools.count()
        self._victims: dict[str, kills.Victim] = {}
        self._fillers: dict[str, tuple[full.Filler, list[int]]] = {}
        self._ending: kills.Publication | None = None

    def kill(self, kind: str) -> None:
        """Kills work of a kind a few times."""
        self._tell(f"kills of {kind}", self._way(kind)())

    def fill(self, kind: str) -> None:
        """Finds the disk full at some writes of a kind of work, until each had its turn."""
        if kind not in self._fillers:
            filler = full.Filler(kind, self._model, self._scratch)
            assert filler.order == [], filler.order
            left = self._chance.sample(range(1, filler.writes + 1), filler.writes)
            self._fillers[kind] = filler, left
            print(f"{kind}: {filler.writes} writes", flush=True)
        filler, left = self._fillers[kind]
        for _ in range(min(4, len(left))):
            filler.full_at(left.pop(), lasting=self._chance.random() < 0.5)
            self._tell(f"full disks of {kind}", 1)

    def starve(self, kind: str) -> None:
        """Takes the memory away in the middle of a kind of work."""
        place = self._place()
        place.mkdir()
        full.out_of_memory(kind, MemoryError(), self._chance.randint(1, 30), self._model, place)
        assert work.fingerprint(place) == self._victim(kind).expected
        shutil.rmtree(place)
        self._tell(f"no memory for {kind}", 1)

    def damage(self) -> None:
        """Runs the tests of damaged files with damage that they have not seen."""
        seed = f"{self._chance.getrandbits(32):08x}"
        words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *DAMAGED]
        told = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | {"VQDQ_CHAOS_SEED": seed, "PYTHONHASHSEED": str(int(seed, 16))},
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, f"VQDQ_CHAOS_SEED={seed}\n{told.stdout}"
        self._tell("rounds of damaged files", 1)

    def _way(self, kind: str) -> Callable[[], int]:
        return {
            "vote": lambda: self._aside(lambda place: kills.attack_votes(self._chance, place, 5)),
            "history": lambda: self._aside(
                lambda place: kills.attack_history(self._chance, place, 5)
            ),
            "ending": self._end,
            "cluster": lambda: self._aside(
                lambda place: sweeps.attack(self._chance, self._model, place)
            ),
        }.get(kind, lambda: self._victim(kind).attack(self._chance, times=4))

    def _end(self) -> int:
        if self._ending is None:
            self._ending = kills.Publication(self._model, self._scratch)
        first = self._chance.randint(1, self._ending.points)
        return self._ending.kill_at(first, *self._chance.sample(range(1, 60), 2))

    def _aside(self, attack: Callable[[Path], int]) -> int:
        place = self._place()
        found = attack(place)
        shutil.rmtree(place)
        return found

    def _victim(self, kind: str) -> kills.Victim:
        if kind not in self._victims:
            self._victims[kind] = kills.Victim(kind, self._model, self._scratch)
            print(f"{kind}: {self._victims[kind].points} points", flush=True)
        return self._victims[kind]

    def _place(self) -> Path:
        return self._scratch / f"{next(self._number)}"

    def _tell(self, what: str, count: int) -> None:
        self.done[what] += count
        print(f"{time.strftime('%H:%M:%S')}  {what}: {self.done[what]}", flush=True)


def main() -> int:
    """Returns 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="of each kind, at least")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    wanted = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="vqdq-chaos-"))
    model = tiny.folder(scratch / "tiny")
    nest.start_nest()
    deadline = time.monotonic() + 60 * wanted.minutes
    chaos = Chaos(random.Random(wanted.seed), model, scratch)
    for kind in wanted.only:
        while chaos.done[f"kills of {kind}"] < wanted.kills:
            chaos.kill(kind)
    while time.monotonic() < deadline:
        for kind in wanted.only:
            chaos.kill(kind)
            if kind in work.RESUMABLE:
                chaos.fill(kind)
                chaos.starve(kind)
        chaos.damage()
    shutil.rmtree(scratch)
    found = ", ".join(f"{count} {what}" for what, count in chaos.done.items())
    print("nothing was lost:", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
