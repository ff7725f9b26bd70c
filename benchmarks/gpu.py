"""Checks every kernel against its reference on a card and measures it: one run, under 9 minutes.

    python benchmarks/gpu.py --output gpu.json       on a bare machine with torch and Triton
    python benchmarks/gpu.py --interpret             every section on a processor, tiny, as a test
    python benchmarks/gpu.py --compile 75 80 90      machine code for cards that are not here

Sections stop early when their share of the time is up, and say so. The table comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # a script, run from anywhere
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu_bench import NOTHING, Bench, Row  # noqa: E402

TOTAL_SECONDS = 510.0


@contextmanager
def section(bench: Bench, name: str, seconds: float) -> Iterator[None]:
    """Runs a section; what breaks is written down, and the next one runs all the same."""
    start = time.perf_counter()
    bench.ends = start + seconds
    print(f"{name}", flush=True)
    try:
        yield
    except Exception as error:  # a run on a lent card must go on to what still works
        bench.faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        print(f"  FAILED {bench.faults[-1]}", flush=True)
    print(f"  ({time.perf_counter() - start:.1f} s{', stopped early' * bench.is_late})", flush=True)


def environment(bench: Bench) -> dict[str, Any]:
    """Returns card, driver, versions and what is not installed."""
    from importlib import metadata

    import torch

    names = ("torch", "triton", "numba", "numpy", "diffusers")
    names += ("sdnq", "torchao", "bitsandbytes", "hqq")
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    there: dict[str, Any] = {"python": platform.python_version(), "versions": found}
    if bench.tiny:
        return there | {"card": "none: Triton's interpreter, tiny sizes; its times mean nothing"}
    properties = torch.cuda.get_device_properties(bench.device)
    return there | {
        "card": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str:
    for path in (Path("/proc/driver/nvidia/version"),):
        if path.exists():
            return path.read_text(encoding="utf-8").splitlines()[0]
    return "unknown"


def checks(bench: Bench) -> None:
    """Compares every kernel with its reference."""
    from benchmarks import gpu_kernels, gpu_products

    gpu_kernels.checks(bench)
    gpu_products.integers_check(bench)
    gpu_products.floats_check(bench)
    gpu_products.few_check(bench)


def table(bench: Bench, where: dict[str, Any]) -> str:
    """Returns the rows as a Markdown table, faults below it."""
    lines = [f"{where['card']}, {where['versions']}", ""]
    lines += ["| section | what | median (least–most) | unit | notes |", "| - | - | - | - | - |"]
    for row in bench.rows:
        spread = f" ({row.low:.4g}–{row.high:.4g})" if row.high else ""
        value = NOTHING if row.unit == NOTHING else f"{row.value:.4g}{spread}"
        lines.append(f"| {row.section} | {row.name} | {value} | {row.unit} | {row.note} |")
    checks = [row for row in bench.rows if row.section == "checks"]
    passed = sum(row.value == 1 for row in checks)
    lines += ["", f"{passed} of {len(checks)} checks pass; {len(bench.faults)} sections failed"]
    return "\n".join(lines + [f"FAILED {fault}" for fault in bench.faults])


def results() -> str:
    """Returns the section of RESULTS.md: what `benchmarks/gpu.json` holds, or that nothing is."""
    path = Path(__file__).with_name("gpu.json")
    if not path.exists():
        return (
            "Not yet measured: no card was at hand. `python benchmarks/gpu.py --output "
            "benchmarks/gpu.json` measures all of it on one, in under 9 minutes."
        )
    stored = json.loads(path.read_text(encoding="utf-8"))
    bench = Bench(device=None, tiny=False, faults=stored["faults"])
    bench.rows = [Row(**row) for row in stored["rows"]]
    return table(bench, stored["environment"])


def main(arguments: list[str]) -> int:
    """Runs what is asked; 1 when a check or a section failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--compile", type=int, nargs="*", default=None, metavar="CAPABILITY")
    parser.add_argument("--only", nargs="*", default=[], help="sections")
    options = parser.parse_args(arguments)
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if options.compile is not None:
        from benchmarks import gpu_compile

        return gpu_compile.compile_all(tuple(options.compile) or (75, 80, 90, 100))
    if not options.interpret and not torch.cuda.is_available():
        print("no card: torch finds none. --interpret runs on a processor.", file=sys.stderr)
        return 2
    from benchmarks import gpu_kernels, gpu_model, gpu_peers, gpu_products
    from vqdq.kernels.backend import interpreted

    device = torch.device("cpu" if options.interpret else "cuda")
    bench = Bench(device=device, tiny=options.interpret)
    start = time.perf_counter()
    where = environment(bench)
    sections: tuple[tuple[str, float, Callable[[Bench], None]], ...] = (
        ("checks", 70, checks),
        ("ceilings", 15, gpu_kernels.ceilings),
        ("decode", 45, gpu_kernels.decoding),
        ("products", 60, gpu_products.products),
        ("few rows", 15, gpu_products.few),
        ("encode", 50, gpu_kernels.encoding),
        ("denoiser", 160, gpu_model.denoiser),
        ("peers", 60, gpu_peers.peers),
        ("compiled", 60, gpu_model.compiled),
    )
    torch.manual_seed(0)
    with interpreted() if options.interpret else nullcontext():
        for name, seconds, run in sections:
            left = TOTAL_SECONDS - (time.perf_counter() - start)
            if options.only and name not in options.only:
                continue
            if left < 5:
                bench.faults.append(f"{name}: not run, the time was up")
                continue
            with section(bench, name, min(seconds, left)):
                run(bench)
    print(table(bench, where))
    if options.output is not None:
        values = {
            "environment": where,
            "seconds": time.perf_counter() - start,
            "rows": [asdict(row) for row in bench.rows],
            "faults": bench.faults,
        }
        options.output.write_text(json.dumps(values, indent=1), encoding="utf-8")
    failed = any(row.section == "checks" and row.value != 1 for row in bench.rows)
    return 1 if failed or bench.faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
