"""Bytes on the disk are counted exactly, in a thread, and only where something changed."""

from __future__ import annotations

from tests.jobs.conftest import draw, wait_for
from vqdq.jobs import history
from vqdq.jobs.history import DiskUse, tree_bytes


def test_every_byte_is_counted_once_and_only_what_changed_again(workspace, monkeypatch):
    runs = [workspace.submit(draw()) for _ in range(3)]
    (workspace.runs_folder / runs[0] / "a.png").write_bytes(bytes(1000))
    deep = workspace.models_folder / "small" / "unet"
    deep.mkdir(parents=True)
    (deep / "weights").write_bytes(bytes(5000))
    (deep / "link").symlink_to(workspace.path)  # would count everything again, without an end
    disk = DiskUse(workspace.path)
    first = disk.count()
    files = [p for p in workspace.path.rglob("*") if p.is_file() and not p.is_symlink()]
    links = (deep / "link").lstat().st_size
    assert first.total == sum(p.stat().st_size for p in files) + links
    assert first.models == {"small": 5000 + links}
    assert first.by_kind() == {"generate": sum(first.runs.values())}
    assert first.free > 0
    seen = []
    monkeypatch.setattr(history, "tree_bytes", lambda p: seen.append(p.name) or tree_bytes(p))
    (deep / "more").write_bytes(bytes(10))
    (workspace.runs_folder / runs[1] / "b.png").write_bytes(bytes(20))
    second = disk.count()
    assert sorted(seen) == sorted(["small", runs[1]])
    assert second.total == first.total + 30


def test_a_look_never_waits(workspace):
    disk = DiskUse(workspace.path)
    assert not disk.look().counted
    assert wait_for(lambda: disk.look().counted)
    workspace.submit(draw())
    assert len(disk.look().runs) == 0  # a few seconds old, and told at once
