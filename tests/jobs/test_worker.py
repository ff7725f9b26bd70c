"""The worker with a toy engine: queueing, cancelling, dying, resuming. One process start per
test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs.conftest import draw, toy, wait_for, wait_state
from vqdq.errors import UserError
from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def gone(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_runs_in_order_and_reports(workspace, worker):
    first = worker.submit(toy("toy-8-30", name="one"))
    second = worker.submit(draw())
    assert wait_state(workspace, first, "running").state == "running"
    assert workspace.run(second).state == "queued"
    assert workspace.active().id == first
    done = wait_state(workspace, second, "done")
    one = workspace.run(first)
    assert one.state == "done"
    assert one.finished <= done.started
    assert (one.stage, one.done, one.total) == ("encode", 7, 8)
    assert one.result["fresh_layers"] == 8
    assert done.result == {"seed": 0}
    assert done.preview == str(done.folder / "picture.png")
    assert [entry.name for entry in workspace.models()] == ["one"]
    assert workspace.models()[0].bits_per_weight == 3.0
    assert (one.folder / "events.jsonl").read_text().count("\n") >= 2


def test_cancel_stops_soon_and_resume_gives_the_same_bytes(workspace, worker):
    whole = worker.submit(toy("toy-40-1", name="whole"))
    stopped = worker.submit(toy("toy-40-50", name="stopped"))
    wait_for(lambda: workspace.run(stopped).done >= 3)
    workspace.cancel(stopped)
    record = wait_state(workspace, stopped, "cancelled")
    assert not (workspace.models_folder / "stopped").exists()
    assert record.resumable
    kept = len(list((workspace.models_folder / "stopped.partial").glob("*.bin")))
    assert 3 <= kept < 40
    assert workspace.resume(stopped) == stopped
    worker.wake()
    resumed = wait_state(workspace, stopped, "done")
    assert resumed.result["fresh_layers"] == 40 - kept
    outputs = [workspace.run(run_id).result["output"] for run_id in (whole, stopped)]
    assert contents(outputs[0]) == contents(outputs[1])


def test_cancel_of_a_call_that_never_reports(workspace, worker):
    stuck = worker.submit(draw("stuck"))
    waiting = worker.submit(draw())
    wait_for(lambda: workspace.run(stuck).stage == "stuck")
    started = psutil.Process(int(workspace.run(stuck).message))
    asked = time.monotonic()
    workspace.cancel(stuck)
    wait_state(workspace, stuck, "cancelled")
    wait_for(lambda: gone(started))
    assert time.monotonic() - asked < 300  # the call itself takes an hour
    assert wait_state(workspace, waiting, "done").error is None


def test_cancel_of_a_queued_run(workspace, worker):
    stuck = worker.submit(draw("stuck"))
    waiting = worker.submit(draw())
    workspace.cancel(waiting)
    assert workspace.run(waiting).state == "cancelled"
    workspace.cancel(stuck)
    assert wait_state(workspace, stuck, "cancelled").state == "cancelled"


def test_kill_of_the_worker_interrupts_and_resumes(workspace, worker):
    run_id = worker.submit(toy("toy-60-30", name="killed"))
    wait_for(lambda: workspace.run(run_id).done >= 3)
    os.kill(worker.pid, signal.SIGKILL)
    record = wait_state(workspace, run_id, "interrupted")
    assert "SIGKILL" in record.error["what"]
    assert "Resume" in record.error["remedy"]
    workspace.resume(run_id)
    resumed = wait_state(workspace, run_id, "done")
    assert 0 < resumed.result["fresh_layers"] < 60
    whole = wait_state(workspace, worker.submit(toy("toy-60-0", name="whole")), "done")
    assert contents(resumed.result["output"]) == contents(whole.result["output"])


def test_faults_are_told_and_the_next_run_goes_on(workspace, worker):
    runs = {
        name: worker.submit(draw(name)) for name in ("refuse", "full", "fault", "crash", "demo")
    }
    ended = {n: wait_state(workspace, r, "done", "failed", "interrupted") for n, r in runs.items()}
    assert ended["refuse"].error == {"what": "no.", "where": "here", "remedy": "Do that."}
    assert ended["full"].error["what"] == "the disk is full."
    assert ended["fault"].error["what"] == "ValueError: a bug"
    assert "Traceback" in (ended["fault"].folder / "error.txt").read_text()
    assert ended["crash"].state == "interrupted"
    assert ended["demo"].state == "done"


def test_stop_interrupts_the_running_job(workspace, worker):
    run_id = worker.submit(toy("toy-99-50"))
    wait_for(lambda: workspace.run(run_id).done >= 1)
    child = psutil.Process(worker.pid)
    worker.stop()
    assert workspace.run(run_id).state == "interrupted"
    assert not child.is_running()


def test_second_server_is_refused_and_a_dead_one_is_not(workspace, worker):
    other = Workspace.open(workspace.path)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        Worker(other, engine="tests.jobs.toy_engine").start()
    other.close()
    worker.stop()
    with Worker(workspace, engine="tests.jobs.toy_engine"):
        pass


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.jobs.conftest import toy
from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker
worker = Worker(Workspace.open(sys.argv[1]), engine="tests.jobs.toy_engine")
worker.start()
worker.submit(toy("toy-200-50"))
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_kill_of_the_parent_ends_the_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    space = tmp_path / "space"
    command = [sys.executable, "-c", PARENT, str(space), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        workspace = Workspace.open(space)
        run_id = workspace.runs()[0].id
        wait_for(lambda: workspace.run(run_id).done >= 2)
        parent.kill()
    wait_for(lambda: not child.is_running())
    assert workspace.run(run_id).state == "running"  # nobody was there to say otherwise
    with Worker(workspace, engine="tests.jobs.toy_engine") as worker:
        assert workspace.run(run_id).state == "interrupted"
        workspace.resume(run_id)
        worker.wake()
        wait_for(lambda: workspace.run(run_id).state == "running")
    workspace.close()


def test_a_worker_that_cannot_start_is_said(workspace, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TOY_ENGINE", "broken")
    with Worker(workspace, engine="tests.jobs.toy_engine") as worker:
        run_id = worker.submit(draw())
        record = wait_state(workspace, run_id, "failed")
        assert "does not start" in record.error["what"]
        assert worker.fault is not None
        assert "cannot start" in (workspace.path / "worker.log").read_text()
