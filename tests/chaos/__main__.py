"""`python -m tests.chaos --minutes 60 --seed 1`: faults on purpose, for as long as one likes.

First at least `--kills` kills of each kind, then rounds of everything until the time is up. What
is lost ends it with an error.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos import full, kills, nest, work
from tests.models import tiny


def main() -> int:
    """Returns 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20, help="of each kind, at least")
    wanted = parser.parse_args()
    chance = random.Random(wanted.seed)
    scratch = Path(tempfile.mkdtemp(prefix="vqdq-chaos-"))
    model = tiny.folder(scratch / "tiny")
    nest.start_nest()
    deadline = time.monotonic() + 60 * wanted.minutes
    done: Counter[str] = Counter()

    def tell(what: str, count: int) -> None:
        done[what] += count
        print(f"{time.strftime('%H:%M:%S')}  {what}: {done[what]}", flush=True)

    for kind, attack in (("vote", kills.attack_votes), ("history", kills.attack_history)):
        tell(f"kills of {kind}", attack(chance, scratch / kind, wanted.kills))
    victims = {kind: kills.Victim(kind, model, scratch) for kind in work.RESUMABLE}
    for kind, victim in victims.items():
        while victim.kills < wanted.kills:
            victim.attack(chance, times=wanted.kills - victim.kills)
        tell(f"kills of {kind}", victim.kills)
    publication = kills.Publication(model, scratch)
    count = 0
    while count < wanted.kills:
        count += publication.kill_at(*points_of(chance, publication))
    tell("kills between a model's name and its run's end", count)
    fillers: dict[str, full.Filler] = {}
    writes: dict[str, list[int]] = {}
    for kind in work.RESUMABLE:
        filler = fillers[kind] = full.Filler(kind, model, scratch)
        assert filler.order == [], filler.order
        writes[kind] = chance.sample(range(1, filler.writes + 1), filler.writes)
        print(f"{kind}: {victims[kind].points} points, {filler.writes} writes", flush=True)
    number = 0
    while time.monotonic() < deadline:
        number += 1
        for kind, victim in victims.items():
            before = victim.kills
            victim.attack(chance, times=4)
            tell(f"kills of {kind}", victim.kills - before)
            for _ in range(4):
                if writes[kind]:
                    fillers[kind].full_at(writes[kind].pop(), lasting=chance.random() < 0.5)
                    tell(f"full disks of {kind}", 1)
        count = publication.kill_at(*points_of(chance, publication))
        tell("kills between a model's name and its run's end", count)
        for kind, attack in (("vote", kills.attack_votes), ("history", kills.attack_history)):
            place = scratch / f"{kind}-{number}"
            tell(f"kills of {kind}", attack(chance, place, 5))
            shutil.rmtree(place)
        for kind in victims:
            place = scratch / "memory"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            at = chance.randint(1, 30)
            full.out_of_memory(kind, MemoryError(), at, model, place)
            assert work.fingerprint(place) == victims[kind].expected
            tell(f"no memory for {kind}", 1)
    shutil.rmtree(scratch)
    print("nothing was lost:", ", ".join(f"{count} {what}" for what, count in done.items()))
    return 0


def points_of(chance: random.Random, publication: kills.Publication) -> list[int]:
    """Returns one point after the naming, and two of the runs that go on."""
    return [chance.randint(1, publication.points), *chance.sample(range(1, 60), 2)]


if __name__ == "__main__":
    sys.exit(main())
