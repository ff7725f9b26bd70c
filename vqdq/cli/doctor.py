"""Looks at an installation: can it work, and with what?"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from vqdq.cli.terminal import Output, duration, size
from vqdq.errors import UserError
from vqdq.jobs import run as runs


def run(options: argparse.Namespace, output: Output) -> int:
    """Returns 0 when everything that is needed is there, else 1."""
    from vqdq import kernels

    problems: list[str] = []
    device = runs.device()
    free = int(psutil.virtual_memory().available)
    warm_seconds = None
    if options.warm:
        start = time.perf_counter()
        kernels.warm()
        warm_seconds = time.perf_counter() - start
    chosen = runs.kernels()
    demo, demo_lines = _demo(problems)
    workspace = _workspace(Path(options.workspace), problems)
    values: dict[str, Any] = {
        "ok": not problems,
        "problems": problems,
        "versions": dict(runs.versions()),
        **device,
        "free_memory_bytes": free,
        "kernels": chosen,
        "warm_seconds": warm_seconds,
        "demo": demo,
        "workspace": str(Path(options.workspace).absolute()),
        "workspace_writable": workspace,
    }
    lines = ["versions"]
    lines += [f"  {name} {version}" for name, version in runs.versions().items()]
    lines += [
        f"device     {device['device']}, {device['cores']} cores, {device['threads']} threads",
        f"memory     {size(free)} free of {size(device['memory_bytes'])}",
        *_kernel_lines(chosen),
        *([] if warm_seconds is None else [f"           compiled in {duration(warm_seconds)}"]),
        f"demo       {demo_lines}",
        f"workspace  {values['workspace']}, {'writable' if workspace else 'NOT writable'}",
        *(f"problem    {problem}" for problem in problems),
        "everything is in order" if not problems else f"{len(problems)} to mend",
    ]
    output.result(values, lines)
    return 1 if problems else 0


def _kernel_lines(chosen: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each backend and reason; what only few operations use is named."""
    operations: dict[tuple[str, str], list[str]] = {}
    for item in chosen:
        operations.setdefault((item["backend"], item["reason"]), []).append(item["op"])
    return [
        f"kernels    {backend}: {reason} ({', '.join(names) if len(names) < 4 else len(names)})"
        for (backend, reason), names in operations.items()
    ]


def _demo(problems: list[str]) -> tuple[dict[str, Any] | None, str]:
    from vqdq.models import pipelines

    try:
        info = pipelines.describe("demo")
    except UserError as error:
        problems.append(str(error))
        return None, "missing"
    found = {"parameters": info.parameters, "bytes": info.bytes, "pipeline": info.pipeline_class}
    return (
        found,
        f"{info.pipeline_class}, {info.parameters / 1e6:.1f} M weights, {size(info.bytes)}",
    )


def _workspace(path: Path, problems: list[str]) -> bool:
    """True when the folder, or the nearest one above it that exists, can be written."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return True
    problems.append(f"{place}: cannot be written. Choose another --workspace.")
    return False
