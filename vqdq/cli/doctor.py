"""Looks at an installation: can it work, and with what?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from vqdq.cli.checks import new_path
from vqdq.cli.terminal import Output
from vqdq.errors import UserError
from vqdq.jobs import diagnosis
from vqdq.jobs import run as runs
from vqdq.quantities import duration, size


def run(options: argparse.Namespace, output: Output) -> int:
    """Returns 0 when everything that is needed is there, else 1."""
    from vqdq import kernels

    target = None if options.bundle is None else new_path(options.bundle)
    device = runs.device()
    free = int(psutil.virtual_memory().available)
    warm_seconds = None
    if options.warm:
        start = time.perf_counter()
        kernels.warm()
        warm_seconds = time.perf_counter() - start
    chosen = runs.kernels()
    workspace = Path(options.workspace).absolute()
    found = diagnosis.faults(workspace, options.port)
    problems = [str(fault) for fault in found if fault.blocking]
    hints = [str(fault) for fault in found if not fault.blocking]
    demo, demo_lines = _demo(problems)
    writable = diagnosis.writable(workspace) is None
    values: dict[str, Any] = {
        "ok": not problems,
        "problems": problems,
        "hints": hints,
        "found": [fault.check for fault in found],
        "versions": dict(runs.versions()),
        **device,
        "free_memory_bytes": free,
        "kernels": chosen,
        "warm_seconds": warm_seconds,
        "demo": demo,
        "workspace": str(workspace),
        "workspace_writable": writable,
    }
    lines = ["versions"]
    lines += [f"  {name} {version}" for name, version in runs.versions().items()]
    lines += [
        f"device     {device['device']}, {device['cores']} cores, {device['threads']} threads",
        f"memory     {size(free)} free of {size(device['memory_bytes'])}",
        *_kernel_lines(chosen),
        *([] if warm_seconds is None else [f"           compiled in {duration(warm_seconds)}"]),
        f"demo       {demo_lines}",
        f"workspace  {workspace}, {'writable' if writable else 'NOT writable'}",
        *(f"problem    {problem}" for problem in problems),
        *(f"hint       {hint}" for hint in hints),
        "everything is in order" if not problems else f"{len(problems)} to mend",
    ]
    if target is not None:
        from vqdq.jobs.diagnostics import bundle

        values["bundle"] = str(bundle(target, workspace, values))
        lines.append(f"bundle     {target}, without prompts, names and paths: look before you send")
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
