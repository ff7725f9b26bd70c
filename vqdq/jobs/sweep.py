"""Runs a sweep to its end: gives engines what is ready, counts what comes back, stops when asked.

The driver knows what depends on what, and nothing else: the results lie in the store, so a driver
that dies is started again and finds them, and an engine may lose a worker or a whole computer.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs.grid_records import Fault
from vqdq.jobs.sweep_plan import SweepPlan
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import MAKING, Engine, Environment, Outcome, Unit, here
from vqdq.jobs.sweep_work import Bench
from vqdq.progress import Event, Report, silent

IN_FLIGHT = 2
"""Units an engine holds for each that it can run: one under way, one waiting at the door."""
STAGES = {"make": "encode", "draw": "cells"}
SAME_WAY = "Do the same again: only what is missing is made."


@dataclass(kw_only=True, slots=True)
class SweepResult:
    """How a sweep went.

    Attributes:
        made: results by kind that were made in this run.
        faults: why results are missing, by name; what waits for them is in `waiting`.
        waiting: results that could not be begun.
        workers: units that each worker finished.
        seconds: wall time; `unit_seconds`: of all units together.
    """

    made: dict[str, int] = field(default_factory=dict[str, int])
    faults: dict[str, Fault] = field(default_factory=dict[str, Fault])
    waiting: set[str] = field(default_factory=set[str])
    workers: dict[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0
    unit_seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """True when nothing is missing."""
        return not self.faults and not self.waiting


class LocalEngine:
    """Does one unit after the other in this process, whose device it has for itself."""

    name = "local"

    def __init__(self, store: Store, *, report: Report = silent) -> None:
        self._store = store
        self._report = report
        self._queue: deque[Unit] = deque()
        self._bench: Bench | None = None
        self._environment: Environment | None = None

    def environment(self, device: str, threads: int) -> Environment:
        """Returns what this process runs on."""
        self._environment = here(device, threads)
        return self._environment

    def slots(self) -> int:
        """Returns 1."""
        return 1

    def start(self, unit: Unit) -> None:
        """Takes a unit."""
        self._queue.append(unit)

    def finished(self) -> list[Outcome]:
        """Returns the next unit's outcome, after doing it."""
        if not self._queue:
            return []
        assert self._environment is not None
        if self._bench is None:
            self._bench = Bench(self._store, self._environment)
        return [self._bench.perform(self._queue.popleft(), report=self._report)]

    def close(self) -> None:
        """Forgets what was not begun."""
        self._queue.clear()
        self._bench = None


def drive(
    plan: SweepPlan,
    engine: Engine,
    *,
    report: Report = silent,
    arrived: Callable[[Sequence[str]], None] | None = None,
) -> SweepResult:
    """Returns how the units of a plan went, after all that could be done is done.

    Args:
        report: stages "encode" (results that models are made of) and "cells" (pictures), each with
            its own count; may raise `Cancelled`, which stops the engine.
        arrived: is told the names of results as they come.
    """
    driver = _Driver(plan, engine, report, arrived or _nobody)
    try:
        return driver.run()
    finally:
        engine.close()


class _Driver:
    def __init__(
        self,
        plan: SweepPlan,
        engine: Engine,
        report: Report,
        arrived: Callable[[Sequence[str]], None],
    ) -> None:
        self._arrived = arrived
        self._engine = engine
        self._report = report
        self._units = {unit.number: unit for unit in plan.units}
        self._missing = {unit.number: set(unit.needs) for unit in plan.units}
        self._waits: dict[str, list[int]] = {}
        for unit in plan.units:
            for name in unit.needs:
                self._waits.setdefault(name, []).append(unit.number)
        self._ready = [unit.number for unit in plan.units if not unit.needs]
        heapq.heapify(self._ready)
        self._flying: set[int] = set()
        self._result = SweepResult()
        self._plan = plan
        self._counts = {"make": [0, 0], "draw": [0, 0]}
        for unit in plan.units:
            self._counts[_side(unit)][1] += len(unit.makes)

    def run(self) -> SweepResult:
        started = time.perf_counter()
        self._tell("")
        while self._ready or self._flying:
            room = IN_FLIGHT * self._engine.slots()
            while self._ready and len(self._flying) < room:
                number = heapq.heappop(self._ready)
                self._flying.add(number)
                self._engine.start(self._units[number])
            outcomes = self._engine.finished()
            for outcome in outcomes:
                self._take(outcome)
            self._tell(self._words())
        done = {name for unit in self._units.values() for name in unit.makes}
        result = self._result
        result.waiting = {
            name
            for number, left in self._missing.items()
            if left
            for name in self._units[number].makes
        } & done
        result.seconds = time.perf_counter() - started
        return result

    def _take(self, outcome: Outcome) -> None:
        unit = self._units[outcome.number]
        self._flying.discard(outcome.number)
        result = self._result
        result.unit_seconds += outcome.seconds
        if outcome.worker:
            result.workers[outcome.worker] = result.workers.get(outcome.worker, 0) + 1
        for name in outcome.made:
            kind = name.partition("/")[0]
            result.made[kind] = result.made.get(kind, 0) + 1
        result.faults |= outcome.faults
        self._arrived((*outcome.made, *outcome.found))
        self._counts[_side(unit)][0] += len(unit.makes)
        for name in (*outcome.made, *outcome.found):
            for number in self._waits.pop(name, ()):
                left = self._missing[number]
                left.discard(name)
                if not left:
                    heapq.heappush(self._ready, number)

    def _tell(self, words: str) -> None:
        done, total = self._counts["make"]
        stage = "make" if done < total else "draw"
        done, total = self._counts[stage]
        self._report(Event(stage=STAGES[stage], done=done, total=total, message=words))

    def _words(self) -> str:
        drawn, pictures = self._counts["draw"]
        slots = self._engine.slots()
        parts = [f"{drawn:,} of {pictures:,} pictures and comparisons"]
        parts += [f"{slots} at a time"] if slots > 1 else []
        parts += [f"{len(self._result.faults)} failed"] if self._result.faults else []
        return " · ".join(parts)


def _nobody(_names: Sequence[str]) -> None:
    """Is told what came, and does nothing."""


def _side(unit: Unit) -> str:
    return "make" if unit.kind in MAKING else "draw"


def fault_of(result: SweepResult, problems: Mapping[str, UserError], remedy: str) -> UserError:
    """Returns what to tell of a sweep that is not complete: how much, the first reason, the way.

    Args:
        remedy: the one line that tries again.
    """
    reasons: list[Any] = [*problems.values(), *(_error(each) for each in result.faults.values())]
    first: UserError = reasons[0]
    waiting = f", {len(result.waiting):,} wait for them" if result.waiting else ""
    return UserError(
        f"{len(reasons):,} results could not be made{waiting}. The first: {first.what}",
        where=first.where,
        remedy=f"{first.remedy} {remedy}".strip(),
    )


def _error(fault: Fault) -> UserError:
    return UserError(fault["what"], where=fault["where"], remedy=fault["remedy"])
