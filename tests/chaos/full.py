"""Full disks and the order of writes, in this process, work by work."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.chaos import work
from tests.chaos.disk import Disk, faults_of_order
from vqdq.jobs.faults import as_user_error
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.store import Workspace


def said_of(task: Callable[[], object], kind: str) -> str:
    """Returns what a person is told when a task fails, as the worker's process says it; or ""."""
    try:
        task()
    except Exception as fault:
        known = as_user_error(fault, kind)
        if known is None:
            raise
        return str(known)
    return ""


class Still:
    """Stands where a child counts its points."""

    def passed(self, _event: object = None) -> None:
        """Nothing."""


class Filler:
    """Does one kind of work on disks that are full at a chosen write."""

    def __init__(self, kind: str, model: Path, scratch: Path) -> None:
        self.kind = kind
        self.model = model
        self.scratch = scratch
        self._number = itertools.count()
        place = self._fresh()
        with Disk(place) as disk:
            self._work(place)
        self.writes = disk.count
        self.order = faults_of_order(disk.trace)
        self.expected = work.fingerprint(place)

    def _fresh(self) -> Path:
        place = self.scratch / f"{self.kind}-{next(self._number)}"
        place.mkdir()
        return place

    def _work(self, place: Path) -> None:
        work.RESUMABLE[self.kind](Still(), str(self.model), str(place))

    def full_at(self, number: int, *, lasting: bool) -> None:
        """Fails one write (and all after it), frees the disk, goes on, compares the files."""
        place = self._fresh()
        with Disk(place, full_at=number, lasting=lasting) as disk:
            said = said_of(lambda: self._work(place), self.kind)
        assert disk.failed, f"there is no write {number}"
        assert said == "" or "full" in said or "could not be drawn" in said, said
        for name, digest in work.fingerprint(place).items():
            if ("/" in name and ".partial/" in name) or name == "cells.jsonl":
                continue
            assert digest == self.expected.get(name), f"{name}: half written at write {number}"
        if not (place / "out").exists() or self.kind != "calibrate":
            self._work(place)
        assert work.fingerprint(place) == self.expected, f"after write {number} failed"
        shutil.rmtree(place)


def history_writes(place: Path) -> tuple[int, list[str]]:
    """Returns how many writes a run's life takes, and faults of their order."""
    space = Workspace.open(place)
    space.submit(GenerateRequest(model="demo", prompt="a red circle"))
    with Disk(place) as disk:
        _life(space)
    space.close()
    return disk.count, faults_of_order(disk.trace)


def history_full_at(place: Path, number: int) -> None:
    """Fails one write in the life of runs: what was said to be done is done, the rest is told."""
    space = Workspace.open(place)
    base = space.submit(GenerateRequest(model="demo", prompt="a red circle"))
    with Disk(place, full_at=number) as disk:
        said = said_of(lambda: _life(space), "history")
    assert disk.failed
    assert said == "" or "full" in said, said
    space.close()
    again = Workspace.open(place)
    again.recover()
    records = {record.id: record for record in again.runs(limit=99)}
    assert base in records
    assert {record.state for record in records.values()} <= {"queued", "done", "interrupted"}
    again.close()


def _life(space: Workspace) -> None:
    run = space.submit(GenerateRequest(model="demo", prompt="a red circle"))
    while (taken := space.take()) is not None:
        assert space.finish(taken.id, "done", result={"seed": 0})
    space.rename(run, "mine")
    space.delete(run)


def out_of_memory(kind: str, error: BaseException, at: int, model: Path, place: Path) -> None:
    """Raises `error` at the report number `at`; then does the work again."""

    class Bomb(Still):
        count = 0

        def passed(self, _event: object = None) -> None:
            self.count += 1
            if self.count == at:
                raise error

    said = said_of(lambda: work.RESUMABLE[kind](Bomb(), str(model), str(place)), kind)
    assert said == "" or "not enough memory" in said, said
    if not (place / "out").exists() or kind != "calibrate":
        work.RESUMABLE[kind](Still(), str(model), str(place))
