"""What is done in a process that may be killed. Imported once by the process that all fork from."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import threading
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers  # noqa: F401 - so that no child has to
import torch
import transformers  # noqa: F401

from tests.jobs.test_protocol import protocol
from tests.jobs.test_sweep import RECIPES, asked
from tests.models import tiny  # noqa: F401 - imports the classes of the pipeline
from vqdq import kernels
from vqdq.calibration import CalibrationParams
from vqdq.jobs import child, grid_records, sweep_run
from vqdq.jobs import compress as compressing
from vqdq.jobs import generate as generating
from vqdq.jobs import grid as gridding
from vqdq.jobs import sweep as sweeping
from vqdq.jobs.engine import Engine
from vqdq.jobs.faults import as_user_error
from vqdq.jobs.requests import Axis, CompressRequest, GenerateRequest, GridRequest
from vqdq.jobs.store import Workspace
from vqdq.jobs.sweep_store import RECEIPTS, Store, sha256
from vqdq.jobs.votes import VoteStore
from vqdq.jobs.warm import WarmPipelines
from vqdq.models import calibration_folder, pipelines  # noqa: F401
from vqdq.models import compressor as _compressor  # noqa: F401
from vqdq.recipe import Recipe
from vqdq.rules import Rule

torch.set_num_threads(1)
ROUNDED = {
    "pattern": "*",
    "method": "lloyd_max",
    "params": {"bits": 3},
    "activation": {"method": "dynamic", "params": {"bits": 8}},
}
"""Inputs are quantized, too, so that a finished model is opened before its run ends."""
RECIPE = Recipe(name="chaos", rules=(Rule.from_json(ROUNDED, "rule"),))
FEW = Recipe(name="few", rules=(Rule.from_json(ROUNDED | {"pattern": "mid*attn1*"}, "rule"),))
PROMPT = "a red circle"


def compress(points, model, place, *, tell=None):
    """A model compressed into `place/out`; the run's folder is `place/run`."""
    del tell
    folder = Path(place) / "run"
    folder.mkdir(exist_ok=True)
    request = CompressRequest(
        model=model, recipe=RECIPE, name="out", output=str(Path(place) / "out")
    )
    compressing.execute(request, folder, report=points.passed)


def worker(points, place, *, tell):
    """Returns how the runs that wait in a workspace ended, done as the worker's process does it."""
    del points, tell
    ended = []
    space = Workspace.open(place)
    engine = Engine(space)
    while (taken := space.take()) is not None:
        child.perform(space, taken, engine, threading.Event())
        ended.append(space.run(taken.id).state)
    space.close()
    return ended


def calibrate(points, model, place, *, tell=None):
    """Statistics of a model in `place/out`."""
    del tell
    params = CalibrationParams(prompts=2, steps=2)
    calibration_folder.calibrate_folder(model, params, Path(place) / "out", report=points.passed)


def generate(points, model, place, *, tell=None):
    """One picture in `place/out`."""
    del tell
    (Path(place) / "out").mkdir(exist_ok=True)
    request = GenerateRequest(model=model, prompt=PROMPT, steps=2)
    folder = Path(place) / "out"
    generating.execute(request, folder, report=points.passed, cache=WarmPipelines())


def grid(points, model, place, *, tell=None):
    """Four pictures, two of them by a model that is made on the way, in `place/out`."""
    del tell
    (Path(place) / "out").mkdir(exist_ok=True)
    request = GridRequest(
        model=model,
        axes=(Axis(name="bits", values=(16, 3)), Axis(name="seed", values=(1, 2))),
        prompt=PROMPT,
        method="lloyd_max",
        steps=2,
    )
    folder = Path(place) / "out"
    gridding.execute(request, folder, report=points.passed, cache=WarmPipelines())


def sweep(points, model, place, *, tell=None):
    """A recipe beside the original in one process, as the command does it, into `place/out`."""
    del tell
    store = Store(str(Path(place) / "out"))
    wanted = asked(Path(model), recipes=RECIPES[1:2], prompts=[PROMPT], seeds=[1, 2])
    sweep_run.check_same(store, wanted)
    with sweep_run.alone(store):
        engine = sweeping.LocalEngine(store, report=points.passed)
        plan = sweep_run.planned(wanted.pictures, engine, store, metrics=wanted.metrics)
        result = sweeping.drive(plan, engine, report=points.passed)
        sweep_run.write_tables(store, wanted, plan)
        if not result.finished:
            raise sweeping.fault_of(result, plan.problems, sweeping.SAME_WAY)
        store.tidy()


def limited(points, model, place, room_bytes, *, tell=None):
    """`compress` with so much more address space than is used now; the fault in plain words."""
    kernels.status()  # numba's own library is mapped before the limit: no layer can lack it
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + room_bytes, size + room_bytes))
    try:
        compress(points, model, place, tell=tell)
    except Exception as error:  # what the worker's process does at its own boundary
        known = as_user_error(error, "compress")
        if known is None:
            raise
        return known.what
    return "done"


def vote(points, place, name, count, *, tell):
    """Votes, each told after it was taken."""
    store = VoteStore.open(Path(place) / "votes.sqlite")
    test = store.freeze(protocol())
    for number in range(count):
        shown = {"pair": number}
        tell(store.add(test, name, f"{name} {number}", "overall", "a", shown=shown))
        points.passed()
    store.close()


def history(points, place, count, *, tell):
    """Runs asked for, worked on, named, deleted; each step told after it was done."""
    space = Workspace.open(place)
    space.recover()
    for number in range(count):
        run = space.submit(GenerateRequest(model="demo", prompt=PROMPT, seed=number))
        tell(("submitted", run))
        taken = space.take()
        assert taken is not None
        tell(("taken", taken.id))
        if space.finish(taken.id, "done", result={"seed": taken.request.seed}):
            tell(("done", taken.id))
        if number % 3 == 1:
            space.rename(run, f"name {number}")
            tell(("named", run))
        if number % 5 == 4:
            tell(("deleting", taken.id))
            space.delete(taken.id)
            tell(("deleted", taken.id))
        points.passed()
    space.close()


RESUMABLE = {each.__name__: each for each in (compress, calibrate, generate, grid, sweep)}
"""Work that gives the same files however often it is killed on the way."""


def fingerprint(place: Path) -> dict[str, str]:
    """Returns the digest of every file of what a work has made, by its name.

    What a grid says about its pictures holds times: of its latest words, the rest counts. Of a
    sweep its results count, by their receipts: those that hold no times bit for bit.
    """
    out = place / "out"
    found: dict[str, str] = {}
    if (out / RECEIPTS).is_dir() or (out / sweep_run.ASKED).exists():
        store = Store(str(out))
        return {name: _result(name, store) for name in store.known()}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file():
            continue
        if path.name == "cells.jsonl":
            rows = [
                {key: value for key, value in row.items() if not _timed(key)}
                for row in grid_records.read(path.parent).values()
            ]
            content = json.dumps(sorted(rows, key=lambda row: row["key"])).encode()
        else:
            content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _result(name: str, store: Store) -> str:
    receipt = store.receipt(name)
    assert receipt is not None, name
    if name.partition("/")[0] in ("picture", "model", "record", "moments"):
        assert sha256(store.folder / receipt["object"]) == receipt["sha256"], name
        return receipt["sha256"]
    return json.dumps(receipt.get("score"))


def _timed(key: str) -> bool:
    return "seconds" in key or "memory" in key
