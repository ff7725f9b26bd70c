"""`vqdq sweep`: recipes × prompts × seeds × models, on this computer or on a cluster."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import Any

from vqdq.cli.checks import asking, check_models
from vqdq.cli.recipes import Stopped
from vqdq.cli.terminal import Output, table
from vqdq.errors import UserError
from vqdq.jobs import sweep as driving
from vqdq.jobs import sweep_run
from vqdq.jobs.sweep_file import Sweep, read_sweep
from vqdq.jobs.sweep_plan import SweepPlan
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import Engine
from vqdq.places import expanded
from vqdq.quantities import duration, size

_KINDS = {
    "record": "recorded calls",
    "statistics": "statistics",
    "layer": "layers",
    "model": "models",
    "picture": "pictures",
    "score": "comparisons",
}


def run(options: argparse.Namespace, output: Output) -> int:
    """Plans a sweep, does what is missing, and writes its tables; `--dry-run` stops at the plan."""
    from vqdq.models.sources import presets_folder  # heavy: diffusers

    with asking():
        wanted = read_sweep(expanded(options.file), presets_folder())
        if options.engine == "local" and (options.address or options.workers):
            raise UserError(
                "--address and --workers are for a cluster.",
                where="--engine local",
                remedy="Add --engine ray.",
            )
        share = sweep_run.gpu_share(wanted)
    check_models(*wanted.models)
    store = Store(options.output)
    with asking():
        sweep_run.check_same(store, wanted, begin=not options.dry_run)
    with sweep_run.alone(store):
        return _run(options, output, store, wanted, share)


def _run(
    options: argparse.Namespace, output: Output, store: Store, wanted: Sweep, share: float
) -> int:
    engine = _engine(options, store)
    try:
        plan = sweep_run.planned(
            wanted.pictures,
            engine,
            store,
            metrics=wanted.metrics,
            threads=wanted.threads,
            device=wanted.device,
            gpu_share=share,
        )
        slots = engine.slots()
        if options.dry_run:
            output.result(_told(plan, slots), _lines(plan, slots))
            return 0
        result = driving.drive(plan, engine, report=output.report)
    except KeyboardInterrupt:
        raise Stopped(f"What is done is in {store.url}. {_again(options)}") from None
    finally:
        engine.close()
    return _finish(options, output, store, wanted, plan, result)


def _finish(
    options: argparse.Namespace,
    output: Output,
    store: Store,
    wanted: Sweep,
    plan: SweepPlan,
    result: driving.SweepResult,
) -> int:
    from vqdq.report import swept  # heavy: matplotlib

    written = sweep_run.write_tables(store, wanted, plan)
    files = [*written.files, *swept.write(store, wanted, written)]
    values: dict[str, Any] = {
        **written.values,
        "output": store.url,
        "files": files,
        "made": result.made,
        "made_again": len(store.again()),
        "seconds": result.seconds,
        "unit_seconds": result.unit_seconds,
        "workers": result.workers,
        "failures": [dict(fault) for fault in result.faults.values()],
    }
    lines = [
        store.url,
        f"  {len(written.found)} of {wanted.count} pictures; {_made(result.made)} made in"
        f" {duration(result.seconds)} by {_workers(len(result.workers))}",
        *(f"  {line}" for line in table(_rows(written.values["recipes"]))),
        f"  {', '.join(files)} hold the numbers.",
    ]
    if result.finished and not plan.problems:
        store.tidy()
        output.result(values, lines)
        return 0
    for line in _failures(plan.problems, result):
        lines.append(f"  ! {line}")
    output.result(values, lines)
    raise driving.fault_of(result, plan.problems, _again(options))


def _engine(options: argparse.Namespace, store: Store) -> Engine:
    if options.engine == "local":
        return driving.LocalEngine(store)
    from vqdq.jobs.cluster import RayEngine  # heavy: ray

    return RayEngine(store, address=options.address or "", workers=options.workers or 0)


def _again(options: argparse.Namespace) -> str:
    """The line that goes on."""
    words = ["vqdq", "sweep", options.file, "--output", options.output]
    if options.engine != "local":
        words += ["--engine", options.engine]
    words += ["--address", options.address] if options.address else []
    words += ["--workers", str(options.workers)] if options.workers else []
    return f"To go on: {shlex.join(words)}"


def _failures(problems: Mapping[str, UserError], result: driving.SweepResult) -> list[str]:
    """Each reason once, with how many results it cost."""
    counts: dict[str, int] = {}
    for error in problems.values():
        counts[str(error)] = counts.get(str(error), 0) + 1
    for fault in result.faults.values():
        text = str(UserError(fault["what"], where=fault["where"], remedy=fault["remedy"]))
        counts[text] = counts.get(text, 0) + 1
    return [f"{text}{f' ({count} results)' if count > 1 else ''}" for text, count in counts.items()]


def _told(plan: SweepPlan, slots: int) -> dict[str, Any]:
    return {
        "units": len(plan.units),
        "total": dict(plan.total),
        "done": dict(plan.done),
        "estimated_work_seconds": plan.seconds,
        "estimated_seconds": plan.seconds / slots,
        "at_a_time": slots,
        "estimated_new_bytes": plan.store_bytes,
        "problems": {key: str(error) for key, error in plan.problems.items()},
    }


def _lines(plan: SweepPlan, slots: int) -> list[str]:
    parts = [
        f"{plan.total[kind] - plan.done.get(kind, 0):,} of {plan.total[kind]:,} {words}"
        for kind, words in _KINDS.items()
        if kind in plan.total
    ]
    together = f", about {duration(plan.seconds / slots)} with {slots} at a time" * (slots > 1)
    return [
        f"to make: {', '.join(parts)}",
        f"  {len(plan.units):,} units of work, about {duration(plan.seconds)} one after the"
        f" other{together} (estimated)",
        f"  {size(plan.store_bytes)} of new results (estimated)",
        *(f"  ! {error}" for error in plan.problems.values()),
    ]


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _made(made: Mapping[str, int]) -> str:
    words = [
        f"{made[kind]:,} {name if made[kind] > 1 else name.removesuffix('s')}"
        for kind, name in _KINDS.items()
        if made.get(kind)
    ]
    return ", ".join(words) or "nothing"


def _rows(recipes: list[dict[str, Any]]) -> list[list[str]]:
    names: list[str] = list(dict.fromkeys(name for row in recipes for name in row["measures"]))
    units = {"psnr": "PSNR dB", "ssim": "SSIM", "flip": "FLIP"}
    head = ["recipe", "bits", "size", *(units.get(name, name) for name in names), "as asked"]
    rows: list[list[str]] = [head]
    for row in recipes:
        cells = [row["recipe"], f"{row['bits_per_weight']:.3g}", size(row["bytes"])]
        for name in names:
            interval = row["measures"].get(name)
            cells.append("" if interval is None else _interval(interval))
        passed = row["passed"]
        cells.append("" if passed is None else f"{100 * passed['value']:.0f} %")
        rows.append(cells)
    return rows


def _interval(ends: Mapping[str, float | None]) -> str:
    value, low, high = (ends[name] for name in ("value", "low", "high"))
    if value is None:
        return "equal"
    known = low is not None and high is not None and low < high  # one picture has no interval
    span = f" ({low:.3g}–{high:.3g})" if known else ""
    return f"{value:.3g}{span}"
