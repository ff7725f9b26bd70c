"""Names of files that come from others: what no file can be called is refused in words."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from vqdq.cli.flags import parse_size
from vqdq.errors import UserError
from vqdq.jobs import batch, grid_records
from vqdq.jobs.permitted import Permitted
from vqdq.jobs.recents import Recent
from vqdq.jobs.requests import CompareRequest
from vqdq.models import opening, sources
from vqdq.models.glance import glance
from vqdq.places import expanded, inside
from vqdq.ui.subject import Subject

LONG = ("[" * 300, "x" * 5000, "a/" * 3000 + "b", "\N{GREEK SMALL LETTER ALPHA}" * 200)
NONE = ("", ".", "..", "/etc/passwd", "a/../../b", "a\0b", "\ud800\0", 3, None, ["a"])


@pytest.mark.parametrize("name", LONG + NONE, ids=lambda name: repr(name)[:12])
def test_a_name_leads_to_a_file_of_its_folder_or_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is no file of this folder"):
        inside(tmp_path, name)


def test_a_name_of_255_bytes_is_a_name(tmp_path):
    assert not inside(tmp_path, "x" * 255).exists()
    (tmp_path / "deep").mkdir()
    assert inside(tmp_path, "deep/a.png") == tmp_path / "deep" / "a.png"
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(UserError):
        inside(tmp_path, "link/passwd")


@pytest.mark.parametrize("name", LONG, ids=lambda name: repr(name)[:12])
def test_a_long_name_is_an_answer_at_every_door(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    row = {"error": None, "image": name}
    assert not grid_records.is_done(row, tmp_path)  # type: ignore[arg-type]
    line = json.dumps({"set": 0, "model": 1, "picture": {"image": name, "variant": "a"}})
    (tmp_path / batch.FILE).write_text(f"{line}\n", "utf-8")
    asked = CompareRequest(model="demo", variants=("a",), prompt="p")
    assert batch.Journal(tmp_path, asked).pictures == {}
    with pytest.raises(UserError):
        Permitted(tmp_path).check_model(f"{tmp_path}/models/{name}")
    assert Recent(model=name, title="", folder=name, parameters=0, opened=0.0).missing
    assert Subject(f"{name}@b").stays_here  # because the hub is off
    assert glance(name).kind == "fault"
    for reference in (name, f"{name}.safetensors@demo", f"{name}.safetensors"):
        with pytest.raises(UserError):
            sources.locate(reference)
    with pytest.raises(UserError):
        opening.import_file(name, tmp_path / "out")


def test_the_home_of_somebody_unknown(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    assert expanded("~nobody-of-that-name/a") == Path("~nobody-of-that-name/a")
    assert expanded(Path("a/~")) == Path("a/~")
    assert os.fspath(expanded("")) == "."
    with pytest.raises(UserError, match="does not exist"):
        sources.locate("~nobody-of-that-name/a/b")


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "9" * 5000, "1e3", "GB", "-1", "8XB", "nan"])
def test_a_size_is_a_number_of_bytes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        parse_size(text)
