"""How well a sweep uses several workers, and what 64 graphics cards would make of a large one."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import table
from vqdq.jobs import sweep, sweep_run
from vqdq.jobs.cluster import RayEngine
from vqdq.jobs.sweep_file import Sweep
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import Engine
from vqdq.models.sources import presets_folder

WORKERS = (1, 2, 4)
ASKED = {
    "models": ["demo"],
    "recipes": ["rtn-4bit", "rtn-8bit", "trellis-2bit", "trellis-3bit", "trellis-4bit"],
    "prompts": {"set": "demo evaluation", "sample": 6},
    "seeds": [1],
    "steps": 20,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One sweep: seconds until workers answer, seconds of the sweep, and of its units together."""

    start: float
    wall: float
    work: float
    results: frozenset[str]


def run() -> str:
    """Returns the measured table and the projection, in Markdown."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("VQDQ_BENCH_FOLDER")) as scratch:
        wanted = Sweep.from_json(ASKED, folder=Path(scratch), presets=presets_folder())
        turns = {0: _turn(wanted, Path(scratch) / "local", 0)}
        for workers in WORKERS:
            turns[workers] = _turn(wanted, Path(scratch) / str(workers), workers)
    same = all(turn.results == turns[0].results for turn in turns.values())
    cores = os.cpu_count() or 1
    alone = turns[0]
    rows: list[list[str]] = []
    for workers, turn in turns.items():
        at_once = min(max(1, workers), cores)
        ideal = alone.work / at_once
        rows.append(
            [
                f"{workers} with Ray" if workers else "this process",
                f"{turn.start:.1f}",
                f"{turn.wall:.1f}",
                f"{turn.work:.1f}",
                f"{ideal:.1f}",
                f"{100 * ideal / turn.wall:.0f} %",
            ]
        )
    head = ["workers", "start s", "sweep s", "units s", f"ideal for {cores} cores s", "efficiency"]
    word = "equal" if same else "DIFFERENT"
    return f"{table(head, rows)}\n\nResults of all rows are {word}, bit for bit.\n\n{projection()}"


def _turn(wanted: Sweep, folder: Path, workers: int) -> Turn:
    store = Store(str(folder))
    begun = time.perf_counter()
    engine: Engine = RayEngine(store, workers=workers) if workers else sweep.LocalEngine(store)
    plan = sweep_run.planned(wanted.pictures, engine, store, metrics=wanted.metrics)
    start = time.perf_counter() - begun
    result = sweep.drive(plan, engine)
    assert result.finished, result.faults
    receipts = {name: store.receipt(name) or {} for name in store.known()}
    bits = {
        f"{name} {receipt.get('sha256')} {json.dumps(receipt.get('score'))}"
        for name, receipt in receipts.items()
        if not name.startswith("layer/")  # whose files also hold how long they took
    }
    return Turn(start=start, wall=result.seconds, work=result.unit_seconds, results=frozenset(bits))


# The projection: nothing of it is measured -----------------------------------------------------

CARDS, CORES_A_CARD, CARDS_A_COMPUTER = 64, 8, 8
RECIPES, CALIBRATED, PROMPTS, STEPS = 40, 20, 500, 30
CALL_FLOP = (
    6.0e12  # of SDXL's UNet at 1024 x 1024, one picture: 2.99e12 products, ours by its config
)
DECODE_FLOP = 5.0e12  # of the autoencoder, about
CARD_FLOPS = 60e12  # a second, reached: 40 % of an A100's 156e12 in TF32
DOLLARS_AN_HOUR = 2.0  # for a card with its share of the computer
WEIGHTS = 2.57e9  # of the UNet
ENCODED_A_SECOND = 3e6  # weights by one core: trellis, half of `costs` for two
COMPONENT_BYTES = 1.8e9  # text encoders and autoencoder in 16 bits, at the base model
BITS = 3.2
SAMPLED = 20  # steps of a calibration picture; 64 of them
MOMENT_BYTES = 2.5e10  # of all layers, in 32 bits
PASSES = 7  # at 4 GB of statistics
OPEN_SECONDS = 12.0
PICTURE_BYTES = 1.1e6


def projection() -> str:
    """Returns what SDXL x 40 recipes x 500 prompts would take on 64 cards, with its assumptions."""
    call = 2 * CALL_FLOP / CARD_FLOPS  # both halves of guidance
    picture = STEPS * call + DECODE_FLOP / CARD_FLOPS
    drawn = (RECIPES + 1) * PROMPTS * picture
    record = 64 * SAMPLED * call
    statistics = PASSES * record
    units = min(CARDS, -(-int(PROMPTS * picture) // int(10 * OPEN_SECONDS)))  # see `sweep_plan`
    opened = (RECIPES + 1) * units * OPEN_SECONDS  # every unit on a card of its own
    cards = drawn + record + statistics + opened
    encode = RECIPES * WEIGHTS / ENCODED_A_SECOND
    cores = encode / (CARDS * CORES_A_CARD)
    chain = (
        record / 8 + record + 30 + 60 + 10 * OPEN_SECONDS
    )  # batch, pass, layers, model, pictures
    whole = cards / CARDS + cores
    worst = whole + chain
    model = WEIGHTS * BITS / 8
    moved = {
        "base model to each computer": CARDS / CARDS_A_COMPUTER * (2 * WEIGHTS + COMPONENT_BYTES),
        "calls and statistics, written and read": 2 * MOMENT_BYTES * (1 + CALIBRATED) / 2,
        "layers, written and read": 2 * RECIPES * model,
        "models, written": RECIPES * model,
        "models, read by those that draw": RECIPES * units * model,
        "pictures, written, and the originals read": (2 * RECIPES + 1) * PROMPTS * PICTURE_BYTES,
    }
    rows = [
        ["drawing", f"{(RECIPES + 1) * PROMPTS:,} pictures of {picture:.1f} s", _hours(drawn)],
        ["opening models", f"{RECIPES + 1} × {units} × {OPEN_SECONDS:g} s", _hours(opened)],
        ["calibration, once", f"64 pictures, {PASSES} passes", _hours(record + statistics)],
        ["encoding", f"{RECIPES} × {WEIGHTS / 1e9:.2f}e9 weights", f"{_hours(encode)} of a core"],
        ["all on 64 cards", f"{CORES_A_CARD} cores a card; then the longest chain at worst",
         f"{whole / 3600:.2f} to {worst / 3600:.2f} h"],
        ["cost", f"at {DOLLARS_AN_HOUR:g} $ a card and hour",
         f"{CARDS * whole / 3600 * DOLLARS_AN_HOUR:.0f} to"
         f" {CARDS * worst / 3600 * DOLLARS_AN_HOUR:.0f} $"],
        *([name, "", f"{count / 1e9:,.0f} GB"] for name, count in moved.items()),
        ["all bytes moved", "", f"{sum(moved.values()) / 1e12:.1f} TB"],
    ]  # fmt: skip
    words = (
        f"**A projection, nothing of it measured**: SDXL, {RECIPES} recipes ({CALIBRATED} of them"
        f" calibrated, with one calibration), {PROMPTS} prompts, {STEPS} steps with guidance at"
        f" 1024 × 1024. Assumed: {CALL_FLOP / 1e12:g} TFLOP a call and picture,"
        f" {CARD_FLOPS / 1e12:g} TFLOP/s reached, {ENCODED_A_SECOND / 1e6:g} million weights a"
        " second and core, no waiting for the shared folder, no unit done twice. The upper end adds"
        " the longest chain of units that wait for each other to the work shared evenly: no order"
        " of starting them takes longer while no card idles beside a ready unit (Graham 1969)."
    )
    return f"{words}\n\n{table(['part', 'how', 'takes'], rows)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h"
