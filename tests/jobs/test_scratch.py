"""Folders for work under way: gone with their process, however it ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

from vqdq.jobs.scratch import PREFIX, Scratch, tidy

OWNER = """
import os, signal
from vqdq.jobs.scratch import Scratch
mine = Scratch()
(mine.folder / "large").write_bytes(bytes(1000))
print(mine.folder, flush=True)
input()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / f"{PREFIX}of-nobody-we-know"
    foreign.mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", OWNER], **pipes) as owner:
        folder = Path(owner.stdout.readline().strip())
        mine = Scratch()
        with mine.place() as place:
            assert Path(place).parent == mine.folder
        assert tidy() == 0  # its owner lives, and so does this one
        assert (folder / "large").is_file()
        owner.stdin.write("\n")
        owner.stdin.close()
    assert tidy() == 1
    assert sorted(tmp_path.iterdir()) == sorted([foreign, mine.folder])
    del mine
    gc.collect()
    assert list(tmp_path.iterdir()) == [foreign]
