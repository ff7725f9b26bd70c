"""Eight people at one studio: `python -m benchmarks.people --minutes 30`.

Each has a login, a page open in a browser (whose clock asks for news), and starts runs at times.
Told are the time of the pages' own requests while a job runs, the memory and open files of the
server over time, and whether runs worked one at a time, in turn, and were seen by their owners
alone. Times mean something on a quiet machine only; counts, memory and files on any.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import BrowserContext, Page, Request, sync_playwright

from benchmarks.timing import table
from vqdq.jobs.run import RunRecord
from vqdq.jobs.store import Workspace

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = 300.0  # seconds
SETTLED = 1 / 6  # of the time, five minutes of thirty, before memory is compared


def main() -> int:
    """Returns 0 when every promise that can be checked on any machine was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    wanted = parser.parse_args()
    told = measured(wanted)
    print(json.dumps(told, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if told["at_once"] == told["out_of_turn"] == told["strangers"] == 0 else 1


def run() -> str:
    """Returns half an hour of eight people as Markdown."""
    return results(measured(argparse.Namespace(minutes=30.0, people=8, seed=0)))


def results(told: dict[str, Any]) -> str:
    """Returns the tables of what was measured."""
    rows = [
        [
            f"{5 * place}–{5 * place + 5}",
            f"{each['requests']:,}",
            f"{each['ms_median']:.0f}",
            f"{each['ms_p95']:.0f}",
            f"{each['load']:.1f}",
        ]
        for place, each in enumerate(told["windows"])
    ]
    head = ["minutes", "light calls", "median ms", "p95 ms", "load of the machine"]
    runs = ", ".join(f"{count} {state}" for state, count in sorted(told["runs"].items()))
    words = (
        f"All {told['requests']:,} light calls: median {told['request_ms_median']:.0f} ms, p95 "
        f"{told['request_ms_p95']:.0f} ms. Memory of the server after the first sixth of the time "
        f"{told['memory_mb_settled']:.0f} MB, at the end {told['memory_mb_end']:.0f} MB "
        f"({told['memory_growth_percent']:+.1f} %); open files {told['files_settled']:.0f} and "
        f"{told['files_end']:.0f}, threads {told['threads_settled']:.0f} and "
        f"{told['threads_end']:.0f}. Runs: {runs}; {told['at_once']} at once, "
        f"{told['out_of_turn']} out of turn, {told['strangers']} seen by somebody else, "
        f"{told.get('refused', 0)} refused because fifty of that person's waited."
    )
    return f"{table(head, rows)}\n\n{words}"


def measured(wanted: argparse.Namespace) -> dict[str, Any]:
    """Returns what happened: times in milliseconds, memory in megabytes, counts."""
    folder = Path(tempfile.mkdtemp(prefix="vqdq-people-"))
    names = [f"person{number}" for number in range(wanted.people)]
    (folder / "people").write_text("".join(f"{name}:secret of {name}\n" for name in names))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "app.py", "--port", str(port), "--workspace", str(folder / "space"),
        "--auth", str(folder / "people"),
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        told = _visit(wanted, names, f"http://127.0.0.1:{port}/", psutil.Process(server.pid))
    finally:
        server.terminate()
        server.wait()
    with closing(Workspace.open(folder / "space")) as space:
        told |= _judged(space.runs(limit=100_000), names)
    told["load"] = [round(value, 1) for value in os.getloadavg()]
    shutil.rmtree(folder)
    return told


def _visit(
    wanted: argparse.Namespace, names: list[str], url: str, server: psutil.Process
) -> dict[str, Any]:
    chance = random.Random(wanted.seed)
    _wait_for(url, server)
    busy: list[tuple[float, float]] = []  # when, and how long
    loads: list[tuple[float, float]] = []
    samples: list[tuple[float, int, int, int]] = []
    own: dict[str, set[str]] = {name: set() for name in names}
    strangers = refused = 0
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        path = next(found for name in BROWSERS if (found := shutil.which(name)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        stack.callback(browser.close)
        pages = [_page(browser.new_context(), url, name, busy) for name in names]
        clients = {
            name: Client(
                url, auth=(name, f"secret of {name}"), verbose=False, httpx_kwargs={"timeout": 120}
            )
            for name in names
        }
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 60 * wanted.minutes:
            name = chance.choice(names)
            for _ in range(chance.choice((1, 1, 3))):  # some ask for several at once
                prompt = (
                    f"a large red circle on a plain {chance.choice(('navy', 'sand'))} background"
                )
                arguments = (prompt, "", chance.randrange(1000), 4)
                try:
                    own[name].add(clients[name].predict(*arguments, api_name="/generate"))
                except AppError as error:  # fifty of a person's runs wait: no more are taken
                    if "are waiting" not in str(error):
                        raise
                    refused += 1
            other = chance.choice(names)
            seen = clients[other].predict(api_name="/status")
            strangers += bool(seen) and seen["id"] not in own[other]
            until = time.monotonic() + chance.uniform(2.0, 6.0)
            while time.monotonic() < until:
                pages[0].wait_for_timeout(200)  # lets all pages' events arrive
            loads.append((time.time(), os.getloadavg()[0]))
            with server.oneshot():
                samples.append(
                    (passed, server.memory_info().rss, server.num_fds(), server.num_threads())
                )
        for other in names:
            listed = clients[other].predict(500, api_name="/runs")
            strangers += sum(run["id"] not in own[other] for run in listed)
        for client in clients.values():
            client.close()
    told = _told(samples, [took for _, took in busy], 60 * wanted.minutes)
    return told | {"windows": _windows(busy, loads), "strangers": strangers, "refused": refused}


def _windows(
    busy: list[tuple[float, float]], loads: list[tuple[float, float]]
) -> list[dict[str, float]]:
    """The same times by five minutes, each with the load of the machine in them."""
    told: list[dict[str, float]] = []
    begin = loads[0][0]
    while begin < loads[-1][0]:
        end = begin + WINDOW
        took = [value for when, value in busy if begin <= when < end]
        load = [value for when, value in loads if begin <= when < end]
        if len(took) > 20:
            p95 = statistics.quantiles(took, n=20)[-1]
            told.append({
                "requests": len(took), "ms_median": round(statistics.median(took), 1),
                "ms_p95": round(p95, 1), "load": round(statistics.median(load), 1),
            })  # fmt: skip
        begin = end
    return told


def _page(context: BrowserContext, url: str, name: str, times: list[tuple[float, float]]) -> Page:
    context.request.post(f"{url}login", form={"username": name, "password": f"secret of {name}"})
    page = context.new_page()

    def finished(request: Request) -> None:
        if request.method == "POST":
            timing = request.timing
            if timing["responseEnd"] > 0:
                times.append((time.time(), timing["responseEnd"] - timing["requestStart"]))

    page.on("requestfinished", finished)
    page.goto(url, timeout=180_000)
    page.wait_for_selector("#vq-compress:not([disabled])", timeout=180_000)
    return page


def _wait_for(url: str, server: psutil.Process) -> None:
    host, port = url.split("/")[2].split(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            if not server.is_running() or server.status() == psutil.STATUS_ZOMBIE:
                raise RuntimeError("the studio did not start") from None
            time.sleep(0.5)
        else:
            return


def _told(
    samples: list[tuple[float, int, int, int]], busy: list[float], seconds: float
) -> dict[str, Any]:
    settled = [sample for sample in samples if sample[0] >= SETTLED * seconds]
    fifth = max(1, len(settled) // 5)
    first = statistics.median(sample[1] for sample in settled[:fifth])
    last = statistics.median(sample[1] for sample in settled[-fifth:])
    return {
        "minutes": seconds / 60,
        "requests": len(busy),
        "request_ms_median": round(statistics.median(busy), 1),
        "request_ms_p95": round(statistics.quantiles(busy, n=20)[-1], 1),
        "memory_mb_settled": round(first / 1e6, 1),
        "memory_mb_end": round(last / 1e6, 1),
        "memory_growth_percent": round(100 * (last / first - 1), 2),
        "files_settled": statistics.median(sample[2] for sample in settled[:fifth]),
        "files_end": statistics.median(sample[2] for sample in settled[-fifth:]),
        "threads_settled": statistics.median(sample[3] for sample in settled[:fifth]),
        "threads_end": statistics.median(sample[3] for sample in settled[-fifth:]),
    }


def _judged(records: tuple[RunRecord, ...], names: list[str]) -> dict[str, Any]:
    """One at a time, in turn: whoever waits is not passed by a second run of another person."""
    began = sorted((r for r in records if r.started is not None), key=lambda r: r.started or 0)
    pairs = itertools.pairwise(began)
    at_once = sum((one.finished or 0) > (two.started or 0) + 0.005 for one, two in pairs)
    passed = 0
    for run in began:
        others = [
            r.owner for r in began
            if run.created < (r.started or 0) < (run.started or 0) and r.owner != run.owner
        ]  # fmt: skip
        mine = sum(
            r.owner == run.owner and run.created < (r.started or 0) < (run.started or 0)
            for r in began
        )
        passed += sum(others.count(name) > mine + 1 for name in names)
    states = {state: sum(r.state == state for r in records) for state in {r.state for r in records}}
    return {"runs": states, "at_once": at_once, "out_of_turn": passed}


if __name__ == "__main__":
    sys.exit(main())
