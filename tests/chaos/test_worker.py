"""The worker when it hangs, when clocks jump, when its store is locked, when it is not alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import app
from tests.chaos.jumping_engine import jumping
from tests.jobs.conftest import draw, toy, wait_for, wait_state
from vqdq.errors import UserError
from vqdq.jobs import index
from vqdq.jobs.store import Workspace
from vqdq.jobs.watch import Watch
from vqdq.jobs.worker import Worker
from vqdq.ui import page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Workspace.open(tmp_path / "space")
    yield made
    made.close()


def test_a_worker_that_hangs_is_ended_and_says_so(workspace):
    watch = Watch(idle_seconds=4.0)
    with Worker(workspace, engine="tests.jobs.toy_engine", watch=watch) as worker:
        hung = worker.submit(toy("toy-200-30", name="hung"))
        after = worker.submit(draw())
        wait_for(lambda: workspace.run(hung).done >= 2)
        frozen = psutil.Process(worker.pid)
        frozen.send_signal(signal.SIGSTOP)  # as a driver does that never answers
        record = wait_state(workspace, hung, "interrupted")
        assert "did nothing for" in record.error["what"]
        assert "device is free" in record.error["what"]
        wait_state(workspace, after, "done")
        assert not frozen.is_running()
        workspace.resume(hung)
        worker.wake()
        assert wait_state(workspace, hung, "done").result["fresh_layers"] < 200


def test_what_computes_or_writes_does_not_hang(workspace, monkeypatch):
    run, now = workspace.submit(draw()), [0.0]
    workspace.take()
    record, lived = workspace.run(run), [0.0, 0.0]

    class Process:
        def __init__(self, _pid):
            pass

        def cpu_times(self):
            return SimpleNamespace(user=lived[0], system=0.0)

        def io_counters(self):
            return SimpleNamespace(write_bytes=int(lived[1]))

    monkeypatch.setattr(psutil, "Process", Process)

    def hung(seconds, *, processor=0.0, written=0.0, report=False):
        watch, lived[:] = Watch(idle_seconds=300, deaf_seconds=3600, clock=lambda: now[0]), [0, 0]
        for _ in range(int(seconds / 10)):
            now[0] += 10.0
            lived[0] += 10 * processor
            lived[1] += 10 * written
            if report:
                with (record.folder / "events.jsonl").open("a") as file:
                    file.write("{}\n")
            error = watch.hung(record.folder, os.getpid())
            if error is not None:
                return error["what"]
        return ""

    assert hung(290) == ""
    assert "did nothing for 5 minutes" in hung(320)
    assert "did nothing" in hung(320, processor=0.005, written=20_000)  # a heartbeat alone
    assert hung(3500, processor=1.0) == ""
    assert hung(3500, written=1e6) == ""
    assert "said nothing for 60 minutes" in hung(3700, processor=1.0)
    assert hung(9000, report=True) == ""


def test_clocks_that_jump_change_no_order_and_lose_nothing(workspace, monkeypatch):
    monkeypatch.setattr(time, "time", jumping)
    queued = [workspace.submit(draw(seed=number)) for number in range(12)]
    assert [record.id for record in workspace.queue()] == queued
    with Worker(workspace, engine="tests.chaos.jumping_engine") as worker:
        ended = [wait_state(workspace, run, "done") for run in queued]
        assert [record.result["seed"] for record in ended] == list(range(12))
        stuck = worker.submit(draw("stuck"))
        wait_for(lambda: workspace.run(stuck).stage == "stuck")
        workspace.cancel(stuck)
        wait_state(workspace, stuck, "cancelled")  # by a clock that does not jump
    assert all(record.seconds >= 0 for record in workspace.runs())
    assert workspace.reindex() == 13


HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_store_that_another_process_locks_is_said_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PATIENCE_SECONDS", 0.2)
    space = Workspace.open(tmp_path / "space")
    first = space.submit(draw())
    command = [sys.executable, "-c", HOLDER, str(space.path / "index.sqlite")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        holder.stdout.readline()
        for ask in (lambda: space.submit(draw()), space.take, lambda: space.rename(first, "x")):
            with pytest.raises(UserError, match="index is busy") as caught:
                ask()
            assert "Close other programs" in caught.value.remedy
        assert [record.id for record in space.runs()] == [first]  # reading goes on
        holder.stdin.write(b"\n")
        holder.stdin.close()
    assert space.take().id == first
    assert space.finish(first, "done")
    assert space.recover() == ()
    assert [record.state for record in space.runs()] == ["done"]
    space.close()


def test_a_second_server_is_refused_before_it_shows_a_page(tmp_path, monkeypatch, capsys):
    def never(*_arguments, **_options):
        raise AssertionError("a page was built")

    monkeypatch.setattr(page, "build", never)
    space = Workspace.open(tmp_path)
    worker = Worker(space)
    worker.reserve()
    assert app.main(["--workspace", str(tmp_path), "--port", "0"]) == 2
    worker.stop()
    space.close()
    said = capsys.readouterr().err
    assert f"another VQDQ (process {os.getpid()}) already uses this workspace" in said
