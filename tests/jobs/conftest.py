from __future__ import annotations

import time
from pathlib import Path

import pytest

from vqdq.jobs.requests import CompressRequest, GenerateRequest
from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker
from vqdq.recipe import Recipe
from vqdq.rules import Rule


def toy(model="toy-5-1", *, name="small", seed=0):
    recipe = Recipe(name="toy", rules=(Rule(pattern="*"),), seed=seed)
    return CompressRequest(model=model, recipe=recipe, name=name)


def draw(model="demo", **values):
    return GenerateRequest(**({"model": model, "prompt": "a red circle"} | values))


def wait_for(check, seconds=240.0):
    """Returns the first true value of `check`; fails after a generous time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def wait_state(workspace, run_id, *states, seconds=240.0):
    return wait_for(lambda: (r := workspace.run(run_id)).state in states and r, seconds)


@pytest.fixture
def workspace(tmp_path):
    made = Workspace.open(tmp_path / "space")
    yield made
    made.close()


@pytest.fixture
def worker(workspace, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with Worker(workspace, engine="tests.jobs.toy_engine") as started:
        yield started
