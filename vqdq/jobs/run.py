"""A run's folder: the truth about one job, complete enough to rebuild its result.

`run.json` holds the request, the state, versions, device and kernels; `events.jsonl` what
happened; `result.json` what came out; pictures lie beside them as lossless PNG. Every file
appears by a rename, so a killed process never leaves half of one.
"""

from __future__ import annotations

import functools
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import psutil

from vqdq.durable import write_text
from vqdq.jobs.requests import Request

STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
FINISHED = ("done", "failed", "cancelled", "interrupted")
RESUMABLE = ("failed", "cancelled", "interrupted")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What the index knows about a run.

    Attributes:
        id: sortable by time; also the name of its folder.
        kind: see `vqdq.jobs.requests.KINDS`.
        state: "queued", "running", "done", "failed", "cancelled" or "interrupted".
        request: what was asked.
        created, started, finished: seconds since the epoch; None while it has not happened.
        stage, done, total, message: the latest progress.
        preview: path of the latest picture, or None.
        eta_seconds: expected remaining seconds of the stage, None before three samples.
        seconds: how long it ran, or has been running.
        cancelling: True when asked to stop and still running.
        error: {"what", "where", "remedy"} of a failed or interrupted run.
        folder: the run's folder.
        result: what the job returned; names of files are relative to `folder`.
        name: what a person called it, or "".
        owner: who started it, where there is a login; else "".
    """

    id: str
    kind: str
    state: str
    request: Request
    created: float
    started: float | None
    finished: float | None
    stage: str
    done: int
    total: int
    message: str
    preview: str | None
    eta_seconds: float | None
    seconds: float
    cancelling: bool
    error: dict[str, str] | None
    folder: Path
    result: dict[str, Any] | None
    name: str = ""
    owner: str = ""

    @property
    def title(self) -> str:
        """What a person called it, else what was asked in a few words."""
        return self.name or self.request.title

    @property
    def resumable(self) -> bool:
        """True when `Workspace.resume` can continue or repeat it."""
        return self.state in RESUMABLE


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON so that `path` holds either the old or the whole new content, on the disk."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False))


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in `path`, or None when there is no readable one.

    A number that is none, or is endless, is not readable: `write_json` writes none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values: object = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError):  # no JSON, or a number too long
        return None
    return cast(dict[str, Any], values) if isinstance(values, dict) else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


@functools.cache
def versions() -> Mapping[str, str]:
    """Returns the versions that can change a result, by package name."""
    found = {"python": platform.python_version()}
    for name in ("vqdq", "torch", "diffusers", "transformers", "numpy", "numba", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> dict[str, Any]:
    """Returns what the job runs on: device, cores, threads and memory in bytes."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=True) or 1,
        "threads": torch.get_num_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
    }


def kernels() -> list[dict[str, str]]:
    """Returns the implementation chosen for each operation, with the reason."""
    import vqdq.kernels

    return [
        {"op": item.op, "backend": item.backend, "reason": item.reason}
        for item in vqdq.kernels.status()
    ]


def describe_environment(folder: Path) -> None:
    """Adds versions, device and kernels to the run's `run.json`."""
    path = folder / "run.json"
    content = read_json(path) or {}
    content |= {"versions": dict(versions()), "device": device(), "kernels": kernels()}
    write_json(path, content)


def append_event(folder: Path, event: Mapping[str, Any]) -> None:
    """Appends one line to the run's `events.jsonl`."""
    line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
