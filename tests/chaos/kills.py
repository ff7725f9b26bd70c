"""Kills at random points, and what must be true after each."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from tests.chaos import nest, work
from vqdq.durable import LEFT
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.run import read_json
from vqdq.jobs.store import Workspace
from vqdq.jobs.votes import VoteStore


class Victim:
    """One kind of resumable work on one model, done once undisturbed to know what it gives."""

    def __init__(self, kind: str, model: Path, scratch: Path) -> None:
        self.kind = kind
        self.model = model
        self.scratch = scratch
        whole = scratch / f"{kind}-whole"
        whole.mkdir()
        done = self._run(whole)
        assert not done.fault, done.fault
        self.points = done.points
        self.expected = work.fingerprint(whole)
        assert self.expected

    def _run(self, place: Path, **options: object) -> nest.Ended:
        function = work.RESUMABLE[self.kind]
        arguments = (str(self.model), str(place))
        return nest.run(function, *arguments, place=str(place), **options)  # type: ignore[arg-type]

    def attack(self, chance: random.Random, times: int) -> int:
        """Returns how often the work was killed, at points over its whole length, before its end.

        Args:
            times: at most.
        """
        kills = 0
        place = self.scratch / f"{self.kind}-killed"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        published = False
        for _ in range(times):
            ended = self._run(place, fatal=chance.randint(1, self.points))
            assert not ended.fault, ended.fault
            kills += ended.killed
            self.check_whole(place)
            published = self.kind == "calibrate" and (place / "out").exists()
            if not ended.killed or published:  # what was kept made it shorter, or all is there
                break
        if not published:
            ended = self._run(place)
            assert not ended.fault, ended.fault
        left = [path for path in place.rglob(".*") if path.name.endswith(LEFT)]
        for path in left:  # of killed processes; a workspace removes them when it is opened
            path.unlink()
        assert work.fingerprint(place) == self.expected
        return kills

    def check_whole(self, place: Path) -> None:
        """Every file that has its name is the one that it should be."""
        found = work.fingerprint(place)
        for name, digest in found.items():
            if self.kind == "grid" and name == "cells.jsonl":
                continue
            if name.startswith("models") and ".partial/" in name:
                continue
            if Path(name).name.endswith(LEFT) and Path(name).name.startswith("."):
                continue
            assert digest == self.expected.get(name), f"{self.kind}: {name} after a kill"
        if self.kind in ("compress", "calibrate") and found:
            assert found == self.expected, found.keys() ^ self.expected.keys()


class Publication:
    """Compressions in a workspace, killed after the model is finished and before their run is."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.request = CompressRequest(model=str(model), recipe=work.FEW, name="out")
        self.scratch = scratch
        place = self.scratch / "undisturbed"
        space, run = self._begin(place)
        ended = self._work(place)
        assert (ended.value, ended.fault) == (["done"], "")
        self.points = ended.points
        self.expected = _untimed(space.run(run).result)
        self.files = _files(space.models_folder)
        assert self.expected["arithmetic"]["integer"] == 4  # to_q, to_k, to_v, to_out
        space.close()

    def _begin(self, place: Path) -> tuple[Workspace, str]:
        space = Workspace.open(place)
        return space, space.submit(self.request)

    def _work(self, place: Path, fatal: int = 0) -> nest.Ended:
        out = place / "models" / "out"
        since = "" if out.exists() else str(out)
        return nest.run(work.worker, str(place), place=str(place), since=since, fatal=fatal)

    def kill_at(self, *points: int) -> int:
        """Returns how often it was killed, one after the other, at points like these.

        The first ones are counted from the naming on, those after the naming from the start of the
        resumed run, whose model is neither refused nor made again.
        """
        place = self.scratch / "killed"
        space, run = self._begin(place)
        out = space.models_folder / "out"
        kills, made = 0, 0
        for fatal in (*points, 0):
            ended = self._work(place, fatal)
            assert not ended.fault, ended.fault
            kills += ended.killed
            assert not made or made == out.stat().st_ino, "it was made again"
            made = out.stat().st_ino if out.exists() else 0
            if space.recover():
                assert space.run(run).state == "interrupted"
                space.resume(run)
        record = space.run(run)
        assert record.state == "done", record.error
        assert _untimed(record.result) == self.expected
        assert _files(space.models_folder) == self.files  # no unfinished work beside it
        space.close()
        shutil.rmtree(place)
        return kills


def _untimed(values: Any) -> Any:
    """A result without what no two runs have in common: times, memory, places."""
    if isinstance(values, list):
        return [_untimed(each) for each in values]
    if not isinstance(values, dict):
        return values
    other = {"seconds", "peak_memory_bytes", "stages", "output"}
    return {key: _untimed(each) for key, each in values.items() if key not in other}


def _files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def attack_votes(chance: random.Random, place: Path, rounds: int) -> int:
    """Returns how often a voter was killed; not one vote that was taken is missing."""
    place.mkdir()
    told: list[int] = []
    kills = 0
    for number in range(rounds):
        after = chance.uniform(0.0, 0.15)
        ended = nest.run(
            work.vote, str(place), f"v{number}", 100_000, place=str(place), after_seconds=after
        )
        assert not ended.fault, ended.fault
        kills += ended.killed
        told += ended.value or []
        store = VoteStore.open(place / "votes.sqlite")
        kept = {vote.id for test, _ in store.tests() for vote in store.log(test)}
        store.close()
        assert set(told) <= kept
        assert len(told) == len(set(told))
        check_database(place / "votes.sqlite")
    return kills


def attack_history(chance: random.Random, place: Path, rounds: int) -> int:
    """Returns how often a server was killed; every run that was taken in is there as it was."""
    kills = 0
    asked: set[str] = set()
    done: set[str] = set()
    gone: set[str] = set()
    maybe: set[str] = set()
    for _ in range(rounds):
        by_point = chance.random() < 0.5
        ended = nest.run(
            work.history,
            str(place),
            100_000,
            place=str(place),
            fatal=chance.randint(60, 400) if by_point else 0,
            after_seconds=None if by_point else chance.uniform(0.02, 0.3),
        )
        assert not ended.fault, ended.fault
        kills += ended.killed
        for step, run in ended.value or []:
            {"submitted": asked, "done": done, "deleted": gone, "deleting": maybe}.get(
                step, set()
            ).add(run)
        space = Workspace.open(place)
        space.recover()
        check_history(space, asked - maybe, done - maybe, gone)
        for record in space.runs(limit=10_000):  # what waits would be taken first for ever
            if record.state == "queued":
                space.cancel(record.id)
        space.close()
        check_database(place / "index.sqlite")
    return kills


def check_history(space: Workspace, asked: set[str], done: set[str], gone: set[str]) -> None:
    """Index and files agree, nothing that was taken in is missing, nothing deleted is back."""
    records = {record.id: record for record in space.runs(limit=10_000)}
    assert asked <= records.keys()
    assert not gone & records.keys()
    assert all(records[run].state == "done" for run in done)
    assert "running" not in {record.state for record in records.values()}
    for record in records.values():
        content = read_json(record.folder / "run.json")
        assert content is not None, record.id
        assert content["state"] == record.state
        if record.state == "done":
            assert record.result == {"seed": record.request.seed}  # type: ignore[union-attr]
    litter = [path for path in space.path.rglob(".*") if path.name.startswith((".trash", ".run"))]
    assert litter == []


def check_database(path: Path) -> None:
    """SQLite itself finds nothing wrong."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
