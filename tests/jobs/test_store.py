"""The workspace: the files are the truth, the index finds them, two writers lose nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.jobs.conftest import draw, toy
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import published, run
from vqdq.jobs.eta import Eta
from vqdq.jobs.history import Search
from vqdq.jobs.lock import Lock
from vqdq.jobs.results import CompressResult
from vqdq.jobs.store import Workspace
from vqdq.jobs.tracker import Tracker
from vqdq.progress import Event

ROOT = Path(__file__).parents[2]


def facts(record):
    return (record.id, record.kind, record.state, record.request, record.error, record.result)


def finish_one(workspace, state="done", **values):
    run_id = workspace.submit(draw())
    assert workspace.take().id == run_id
    assert workspace.finish(run_id, state, **values)
    return run_id


def test_a_run_goes_through_its_states(workspace):
    run_id = workspace.submit(draw(seed=5))
    assert workspace.run(run_id).state == "queued"
    assert workspace.run(run_id).request.seed == 5
    assert workspace.active().id == run_id
    taken = workspace.take()
    assert (taken.id, taken.state) == (run_id, "running")
    assert workspace.take() is None
    workspace.progress(run_id, Event(stage="draw", done=3, total=9, preview="p.png"), 1.5)
    record = workspace.run(run_id)
    assert (record.stage, record.done, record.total, record.eta_seconds) == ("draw", 3, 9, 1.5)
    workspace.progress(run_id, Event(stage="draw", done=4, total=9), None)
    assert workspace.run(run_id).preview == "p.png"  # the last picture stays in sight
    workspace.finish(run_id, "done", result={"answer": 42})
    record = workspace.run(run_id)
    assert record.result == {"answer": 42}
    assert record.eta_seconds is None
    assert record.seconds == record.finished - record.started
    assert workspace.active() is None
    assert not workspace.finish(run_id, "failed")  # an end is final
    assert workspace.run(run_id).state == "done"


def test_reindex_finds_everything_in_the_files(workspace):
    finish_one(workspace, result={"psnr": 30.5})
    finish_one(workspace, "failed", error={"what": "no.", "where": "x", "remedy": "y"})
    workspace.submit(toy())
    (workspace.runs_folder / "strange").mkdir()
    (workspace.runs_folder / "strange" / "run.json").write_text('{"id": "other"}')
    before = [facts(record) for record in workspace.runs()]
    assert workspace.reindex() == 3
    assert [facts(record) for record in workspace.runs()] == before
    workspace.close()
    (workspace.path / "index.sqlite").write_bytes(b"this is no database" * 99)
    for name in ("index.sqlite-wal", "index.sqlite-shm"):
        (workspace.path / name).unlink(missing_ok=True)
    again = Workspace.open(workspace.path)
    assert [facts(record) for record in again.runs()] == before
    again.close()


def test_a_name_is_kept_in_the_file_and_every_word_is_found(workspace):
    plain = finish_one(workspace)
    named = workspace.submit(draw(prompt="a BLUE Straße ring", seed=77))
    workspace.rename(named, "  for the\npaper ")
    made = workspace.submit(toy(name="small"))
    assert workspace.run(named).title == "for the paper"
    assert workspace.run(plain).title == workspace.run(plain).request.title
    for search, found in (
        (Search(), [made, named, plain]),
        (Search(words="blue strasse"), [named]),
        (Search(words="PAPER seed 77"), [named]),
        (Search(words="seed 7"), []),
        (Search(words="100%_"), []),
        (Search(words="small", kind="compress"), [made]),
        (Search(kind="generate", state="done"), [plain]),
    ):
        records, count = workspace.find(search, limit=9)
        assert ([record.id for record in records], count) == (found, len(found))
    assert workspace.find(Search(), limit=1, skip=1)[0][0].id == named
    assert workspace.reindex() == 3
    assert workspace.run(named).name == "for the paper"
    assert workspace.find(Search(words="paper"), limit=9)[1] == 1
    workspace.rename(named, "")
    assert workspace.run(named).title == "a BLUE Straße ring · seed 77"
    with pytest.raises(UserError, match="81 characters"):
        workspace.rename(named, "n" * 81)


def test_recover_believes_the_files(workspace):
    running = workspace.submit(draw())
    workspace.take()
    lost = workspace.submit(draw())
    workspace._index.rows("DELETE FROM runs WHERE id = ?", lost)
    ended = workspace.submit(draw())  # its process died between the file and the index
    path = workspace.runs_folder / ended / "run.json"
    run.write_json(path, run.read_json(path) | {"state": "failed"})
    assert workspace.recover() == (running,)
    states = {r.id: r.state for r in workspace.runs()}
    assert states == {running: "interrupted", lost: "queued", ended: "failed"}
    assert "Resume" in workspace.run(running).error["remedy"]


def test_queue_cancel_resume_delete(workspace):
    first, second = workspace.submit(draw()), workspace.submit(draw())
    assert [record.id for record in workspace.queue()] == [first, second]
    workspace.cancel(first)
    assert workspace.run(first).state == "cancelled"
    assert workspace.take().id == second
    workspace.cancel(second)
    assert workspace.run(second).cancelling
    assert workspace.stop_asked(second)
    assert workspace.running().id == second
    with pytest.raises(UserError, match="is running"):
        workspace.delete(second)
    with pytest.raises(UserError, match="can be resumed"):
        workspace.resume(second)
    workspace.finish(second, "cancelled")
    assert workspace.resume(second) == second
    record = workspace.run(second)
    assert (record.state, record.cancelling, record.done) == ("queued", False, 0)
    workspace.delete(first)
    assert not (workspace.runs_folder / first).exists()
    with pytest.raises(UserError, match="no run"):
        workspace.run(first)


def test_names_of_models_are_taken_once(workspace):
    workspace.submit(toy(name="small"))
    with pytest.raises(UserError, match="exists already") as caught:
        workspace.submit(toy(name="small"))
    assert "small-2" in caught.value.remedy
    assert workspace.free_name("small") == "small-2"
    assert workspace.free_name("demo") == "demo-2"
    assert workspace.free_name("other") == "other"


def test_its_own_model_does_not_keep_a_run_from_being_resumed(workspace):
    run_id = workspace.submit(toy(name="small"))
    record = workspace.take()
    model = workspace.models_folder / "small"
    model.mkdir()
    (model / "SHA256SUMS").write_text("0123  weights")
    result = dict.fromkeys(CompressResult.__required_keys__) | {"output": str(model)}
    published.keep(record.folder, model, result)
    assert published.kept(record.folder, record.request) == result
    workspace.finish(run_id, "interrupted")
    assert workspace.resume(run_id) == run_id
    workspace.cancel(run_id)
    (model / "SHA256SUMS").write_text("4567  weights")  # somebody made another one since
    with pytest.raises(UserError, match="exists already"):
        workspace.resume(run_id)
    for damage in ("{", "[]", '{"result": 3}', '{"sums": "", "result": {}}'):
        (record.folder / published.FILE).write_text(damage)
        assert published.kept(record.folder, record.request) is None


def test_models_are_found_by_their_files(workspace):
    folder = workspace.models_folder / "small"
    folder.mkdir()
    assert workspace.models() == ()
    (folder / "model_index.json").write_text("{}")
    values = {"recipe": "vq-3bit", "bits_per_weight": 3.02, "weight_bytes": 7, "base_model": "demo"}
    (folder / "vqdq.json").write_text(json.dumps(values))
    (workspace.models_folder / "half.partial").mkdir()
    (entry,) = workspace.models()
    assert (entry.name, entry.model, entry.recipe) == ("small", "demo", "vq-3bit")
    assert (entry.bits_per_weight, entry.measured_bytes) == (3.02, 7)
    assert workspace.locate("small") == str(folder)
    for other in ("demo", "../small", "a/b", "nobody"):
        assert workspace.locate(other) == other
    run_id = workspace.submit(draw("small"))
    with pytest.raises(UserError, match="queue uses it"):
        workspace.delete_model("small")
    workspace.cancel(run_id)
    workspace.delete_model("small")
    assert list(workspace.models_folder.glob("*small*")) == []
    with pytest.raises(UserError, match="no model"):
        workspace.delete_model("small")


def test_a_deleted_run_takes_its_unfinished_work_along(workspace):
    run_id = workspace.submit(toy(name="small"))
    partial = workspace.models_folder / "small.partial"
    partial.mkdir()
    workspace.cancel(run_id)
    workspace.delete(run_id)
    assert not partial.exists()


WRITER = """
import sys
from tests.jobs.conftest import draw
from vqdq.jobs.store import Workspace
space = Workspace.open(sys.argv[1])
for _ in range(30):
    space.submit(draw())
"""


def test_two_processes_and_threads_lose_nothing(workspace):
    command = [sys.executable, "-c", WRITER, str(workspace.path)]
    with subprocess.Popen(command, cwd=ROOT) as other:
        done = []

        def serve():
            while (record := workspace.take()) is not None or other.poll() is None:
                if record is None:
                    time.sleep(0.05)
                    continue
                workspace.finish(record.id, "done")
                done.append(record.id)

        threads = [threading.Thread(target=serve) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert other.returncode == 0
    serve()
    assert len(done) == len(set(done)) == 30
    assert {record.state for record in workspace.runs()} == {"done"}


def test_one_owner(tmp_path):
    lock = Lock(tmp_path)
    with pytest.raises(UserError, match="already uses this workspace"):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_faults_of_the_disk_are_told(tmp_path, workspace, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="path is a file"):
        Workspace.open(tmp_path / "file" / "space")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "run.json")

    before = len(workspace.runs())
    monkeypatch.setattr(run, "write_json", full)
    with pytest.raises(UserError, match="disk is full") as caught:
        workspace.submit(draw())
    assert caught.value.where == "run.json"
    monkeypatch.undo()
    assert len(workspace.runs()) == before  # nothing of it is in the index
    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(UserError, match="read-only"):
        Workspace.open(tmp_path / "other")


def read_only(*_args):
    raise OSError(errno.EROFS, "Read-only file system")


def test_tracker_throttles_but_keeps_the_last_and_notices_cancel(workspace):
    workspace.submit(draw())
    record = workspace.take()
    tracker = Tracker(workspace, record, threading.Event())
    for done in range(500):
        tracker(Event(stage="encode", done=done, total=500, message=f"layer {done}"))
    tracker.flush()
    assert workspace.run(record.id).done == 499
    lines = (record.folder / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["done"] == 499
    assert len(lines) < 400
    workspace.cancel(record.id)
    with pytest.raises(Cancelled):
        tracker(Event(stage="save"))  # a new stage is always looked at


def test_tracker_stops_with_the_worker(workspace):
    workspace.submit(draw())
    stopping = threading.Event()
    tracker = Tracker(workspace, workspace.take(), stopping)
    tracker(Event(stage="draw", total=9))
    stopping.set()
    with pytest.raises(Cancelled):
        tracker(Event(stage="draw", total=9))


def test_eta_is_the_median_of_recent_rates():
    eta = Eta()
    seen = [eta.update("encode", done, 10, float(at)) for at, done in ((0, 0), (2, 1), (4, 2))]
    assert seen == [None, None, None]
    assert eta.update("encode", 3, 10, 6.0) == 14.0
    assert eta.update("encode", 3, 10, 7.0) == 13.0  # waiting is counted
    assert eta.update("encode", 4, 10, 106.0) == 12.0  # one slow layer does not frighten
    assert eta.update("save", 0, 3, 107.0) is None
    assert eta.update("save", 1, 0, 108.0) is None


def test_eta_of_unequal_layers_is_by_their_work():
    """Three layers of 1, 1 and 2 units of work, one of 16: 5 s a unit, so the last takes 80."""
    eta, at, work = Eta(), 0.0, 0
    for done, more in enumerate((1, 1, 2)):
        assert eta.update("encode", done, 4, at, work / 20) is None
        at, work = at + 5 * more, work + more
    assert eta.update("encode", 3, 4, at, work / 20) == pytest.approx(80.0)
    assert eta.update("encode", 3, 4, at + 30, work / 20) == pytest.approx(50.0)
    resumed = Eta()  # what was done before it began here took no time here
    for done in range(4):
        left = resumed.update("encode", 10 + done, 20, 5.0 * done, 0.5 + done / 20)
    assert left == pytest.approx(5.0 * 7)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), min_size=4, max_size=30))
@settings(max_examples=50)
def test_eta_is_never_negative(steps):
    eta, now, done = Eta(), 0.0, 0
    for wait, more in steps:
        now, done = now + wait, done + more
        left = eta.update("s", done, 100, now)
        assert left is None or left >= 0


def test_a_run_can_end_on_a_full_disk(workspace, monkeypatch):
    workspace.submit(draw())
    record = workspace.take()
    assert workspace._reserve.stat().st_size > 100_000
    write = run.write_json

    def full_while_reserved(path, values):
        if workspace._reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, values)

    monkeypatch.setattr(run, "write_json", full_while_reserved)
    assert workspace.finish(record.id, "failed", error={"what": "full", "where": "", "remedy": ""})
    assert workspace.run(record.id).state == "failed"
