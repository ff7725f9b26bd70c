"""What a sweep hands to workers: a unit of work, what its workers run on, how a unit ended."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from vqdq.jobs import run
from vqdq.jobs.grid_records import Fault

T = TypeVar("T")
MAKING = ("record", "statistics", "smoothing", "encode", "model")
"""Kinds of units whose results become models; "draw" is the other one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A piece of work for one worker: large enough to be worth a trip, small enough to share.

    Attributes:
        number: its place in the plan; lower ones are started first.
        kind: of `MAKING`, or "draw".
        makes: names of results; what is there already when the unit begins is not made again.
        needs: names of results that have to be there before.
        seconds: estimated.
        gpu_share: of a graphics card that it occupies; 0 works on the CPU.
        work: what to do, JSON values; see `sweep_work`.
    """

    number: int
    kind: str
    makes: tuple[str, ...]
    needs: frozenset[str]
    seconds: float
    work: Mapping[str, Any]
    gpu_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a unit ended.

    Attributes:
        number: of the unit.
        made: names of results that this execution made; `found`: that were there already.
        faults: why others were not made, by name.
        seconds: wall time; `worker`: "<computer> <process id>", "" where nobody lived to tell.
    """

    number: int
    made: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    faults: Mapping[str, Fault] = field(default_factory=dict[str, Fault])
    seconds: float = 0.0
    worker: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What decides the last bit of a result beside what is asked.

    Attributes:
        versions: of the program and of the libraries that compute.
        processor: instructions that the kernels choose by, and the kernels chosen.
        device: name of the graphics card, or "cpu".
        threads: of one piece of work.
    """

    versions: Mapping[str, str]
    processor: str
    device: str
    threads: int

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest_of(asdict(self))

    def differs(self, other: Environment) -> str:
        """Returns in words what `other` has otherwise; "" for nothing."""
        mine, theirs = asdict(self), asdict(other)
        mine |= mine.pop("versions")
        theirs |= theirs.pop("versions")
        different = [name for name in mine if mine[name] != theirs.get(name)]
        return ", ".join(f"{name} {theirs.get(name)} instead of {mine[name]}" for name in different)


class Engine(Protocol):
    """Does units somewhere, in any order, each at least once; the driver asks for nothing more.

    Where a unit runs, and that it runs again when its worker dies, is the engine's business.
    """

    name: str

    def environment(self, device: str, threads: int) -> Environment:
        """Returns what its workers run on."""
        ...

    def slots(self) -> int:
        """Returns how many units can run at the same time now; at least 1."""
        ...

    def start(self, unit: Unit) -> None:
        """Takes a unit."""
        ...

    def finished(self) -> Sequence[Outcome]:
        """Returns how units ended since the last call; waits a moment when none did."""
        ...

    def close(self) -> None:
        """Stops what is under way and lets go of everything."""
        ...


def here(device: str, threads: int) -> Environment:
    """Returns what this process would run a unit on."""
    import torch

    found = {name: text for name, text in run.versions().items() if name != "python"}
    chosen = ",".join(f"{item['op']}:{item['backend']}" for item in run.kernels())
    features = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else "cpu"
    return Environment(
        versions=found,
        processor=f"{platform.machine()} {features} {digest_of(chosen)[:12]}",
        device=name,
        threads=threads,
    )


def worker_name() -> str:
    """Returns the name of this process for the record."""
    return f"{platform.node()} {os.getpid()}"


def digest_of(values: object) -> str:
    """Returns the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def packed(items: Sequence[T], seconds: Callable[[T], float], target: float) -> list[list[T]]:
    """Returns items in as few chunks of about `target` seconds as hold them, alike in length.

    The longest first, each to the chunk that has least (Graham 1969: at most 4/3 of the best
    possible longest chunk); inside a chunk they keep their order.
    """
    if not items:
        return []
    total = sum(map(seconds, items))
    count = max(1, min(len(items), round(total / target) if target > 0 else len(items)))
    loads = [0.0] * count
    chunks: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(items)), key=lambda at: -seconds(items[at])):
        least = loads.index(min(loads))
        chunks[least].append(place)
        loads[least] += seconds(items[place])
    return [[items[at] for at in sorted(chunk)] for chunk in chunks if chunk]
