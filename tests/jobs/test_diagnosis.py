"""Each common fault of an installation, provoked; and a bundle that tells nothing private."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import zipfile
from collections import namedtuple
from pathlib import Path

import psutil
import torch

from tests.jobs.conftest import draw, toy
from vqdq.cli import main
from vqdq.jobs import diagnosis, log
from vqdq.jobs.lock import Lock
from vqdq.jobs.store import Workspace

SECRET = "a portrait of my neighbour Ottilie"


def found(check, *arguments):
    fault = check(*arguments)
    assert fault is not None
    assert fault.what.endswith(".")
    assert fault.remedy.endswith(".")
    return fault.check, fault.what


def test_the_disk_the_memory_and_the_workspace(tmp_path, monkeypatch):
    assert diagnosis.disk(tmp_path) is None or shutil.disk_usage(tmp_path).free < 2e9
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 300_000_000))
    assert found(diagnosis.disk, tmp_path) == ("disk", "The disk of the workspace has 0.3 GB left.")
    memory = namedtuple("memory", "available total")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(400_000_000, 8e9))
    assert found(diagnosis.memory)[0] == "memory"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(4_000_000_000, 8e9))
    assert diagnosis.memory() is None
    (tmp_path / "file").write_text("")
    check, what = found(diagnosis.writable, tmp_path / "file" / "space")
    assert (check, what) == ("workspace", f"{tmp_path / 'file'}: cannot be written.")
    assert diagnosis.writable(tmp_path / "new" / "space") is None


def test_torch_the_driver_threads_and_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "has_card", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built for the CPU alone" in found(diagnosis.torch_build)[1]
    assert diagnosis.driver() is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert diagnosis.torch_build() is None
    assert "CUDA 13.0" in found(diagnosis.driver)[1]
    monkeypatch.setattr(diagnosis, "has_card", lambda: False)
    assert diagnosis.driver() is diagnosis.torch_build() is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 512)
    assert "512 threads" in found(diagnosis.threads)[1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert diagnosis.threads() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert found(diagnosis.compiled)[0] == "kernels"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    assert diagnosis.compiled() is None


def test_versions_proxies_and_ports(tmp_path):
    pins = tmp_path / "requirements.txt"
    pins.write_text(f"# pinned\ntorch=={torch.__version__.partition('+')[0]}\nnumpy>=2\n")
    assert diagnosis.versions(pins) is None
    pins.write_text("numpy==1.0\nno-such-library>=3\n-r other.txt\nodd line\n")
    fault = diagnosis.versions(pins)
    assert fault.blocking
    assert "tested is ==1.0; no-such-library is missing." in fault.what
    proxy = {"HTTP_PROXY": "http://proxy:3128"}
    assert found(diagnosis.proxies, proxy)[0] == "proxy"
    assert found(diagnosis.proxies, proxy | {"no_proxy": "example.org"})[0] == "proxy"
    assert diagnosis.proxies(proxy | {"no_proxy": "localhost,127.0.0.1"}) is None
    assert diagnosis.proxies(proxy | {"NO_PROXY": "*"}) is None
    assert diagnosis.proxies({"https_proxy": "http://proxy:3128"}) is None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert found(diagnosis.free_port, taken.getsockname()[1])[0] == "port"
    assert found(diagnosis.free_port, 70_000)[0] == "port"
    assert diagnosis.free_port(0) is None


def test_locks_history_and_clock(tmp_path):
    assert (
        diagnosis.lock(tmp_path) is diagnosis.index(tmp_path) is diagnosis.clock(tmp_path) is None
    )
    Workspace.open(tmp_path).close()
    for name, words in (("server", "A studio"), ("worker", "A worker that lost its studio")):
        held = Lock(tmp_path, name)
        assert found(diagnosis.lock, tmp_path) == (
            "lock",
            f"{words} (process {os.getpid()}) uses this workspace.",
        )
        held.release()
    assert diagnosis.lock(tmp_path) is None
    path = tmp_path / "index.sqlite"
    ahead = path.stat().st_mtime + 9 * 86400
    os.utime(path, (ahead, ahead))
    assert "9 days from now" in found(diagnosis.clock, tmp_path)[1]
    assert diagnosis.index(tmp_path) is None
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    assert "newer program (version 99" in found(diagnosis.index, tmp_path)[1]
    path.write_bytes(b"no database" * 999)
    assert "is damaged" in found(diagnosis.index, tmp_path)[1]


def test_a_log_has_ids_and_no_words(tmp_path, monkeypatch):
    space = Workspace.open(tmp_path)
    error = {
        "what": f'"{SECRET}" cannot be drawn with /home/ottilie/model.', "where": "/home/x/y",
        "remedy": "",
    }  # fmt: skip
    for details in (False, True):
        handler = log.open_log(tmp_path, f"log-{details}", details=details)
        run = space.submit(draw(prompt=SECRET))
        space.take()
        space.finish(run, "failed", error=error)
        log.close_log(handler)
        text = (tmp_path / "log" / f"log-{details}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [(line["event"], line["run"], line["state"]) for line in lines] == [
            ("run", run, state) for state in ("queued", "running", "failed")
        ]
        assert lines[-1]["seconds"] >= 0
        assert ("Ottilie" in text) is details
        assert ("/home" in text) is details
        if not details:
            assert lines[-1]["what"] == "<text> cannot be drawn with <path>"
    monkeypatch.setattr(log, "MAX_BYTES", 2000)
    handler = log.open_log(tmp_path, "small")
    for number in range(200):
        log.note("beat", number=number)
    log.close_log(handler)
    kept = sorted((tmp_path / "log").glob("small.jsonl*"))
    assert len(kept) == 1 + log.KEPT
    assert all(path.stat().st_size <= 2000 for path in kept)
    assert json.loads(kept[0].read_text().splitlines()[-1])["number"] == 199
    space.close()


def test_a_bundle_tells_nothing_private(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home" / "ottilie"
    place = home / "studio"
    place.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    space = Workspace.open(place)
    handler = log.open_log(place, "studio", details=True)  # the worst case: details were asked for
    for request in (draw(prompt=SECRET), toy(model="Ottilie-9-1", name="Ottilie")):
        run = space.submit(request)
        space.rename(run, SECRET)
        space.take()
        what = f"“{SECRET}” in '{home}/x.png' and {home}/Ottilie/model.safetensors: no."
        space.finish(run, "failed", error={"what": what, "where": str(home), "remedy": SECRET})
    log.close_log(handler)
    (place / "worker.log").write_text(
        f'{SECRET}\nTraceback (most recent call last):\n  File "{home}/x/vqdq/jobs/draw.py", line'
        f' 7, in draw\n    prompt = "{SECRET}"\nValueError: {SECRET}\n  File "{home}/me.py", line'
        " 1, in Ottilie\n"
    )
    space.close()
    target = tmp_path / "bundle.zip"
    main(["doctor", "--json", "--workspace", str(place), "--bundle", str(target)])
    assert json.loads(capsys.readouterr().out)["bundle"] == str(target)
    with zipfile.ZipFile(target) as made:
        parts = {name: made.read(name).decode() for name in made.namelist()}
    assert set(parts) == {"doctor.json", "runs.json", "worker.txt", "log/studio.jsonl"}
    everything = "\n".join(parts.values())
    for word in ("Ottilie", "ottilie", "neighbour", "portrait", str(Path.home()), str(tmp_path)):
        assert word not in everything, word
    runs = json.loads(parts["runs.json"])
    assert [(run["kind"], run["state"]) for run in runs] == [
        ("compress", "failed"),
        ("generate", "failed"),
    ]
    assert runs[0]["error"].endswith("no.")
    assert parts["log/studio.jsonl"].count(runs[0]["id"]) == 3
    assert parts["worker.txt"].split("\n") == ["  vqdq/jobs/draw.py:7 in draw", "ValueError", ""]
    assert json.loads(parts["doctor.json"])["versions"]["torch"] == torch.__version__
    assert main(["doctor", "--workspace", str(place), "--bundle", str(target)]) == 2
