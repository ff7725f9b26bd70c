"""What earlier versions of the program wrote opens, or is refused with the next step; a file from a
newer one is left as it is.

The schemas are those that the program had, word for word.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest

from tests.jobs.conftest import draw, toy
from vqdq.errors import UserError
from vqdq.jobs.history import Search
from vqdq.jobs.store import Workspace
from vqdq.jobs.votes import VoteStore
from vqdq.models.packed_config import VqdqConfig
from vqdq.recipe import Recipe

RUNS = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL,
    created REAL NOT NULL, queued REAL NOT NULL, started REAL, finished REAL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '', preview TEXT, eta REAL, cancel_at REAL,
    error TEXT, result TEXT{}
);
CREATE INDEX runs_by_state ON runs (state, queued);
CREATE INDEX runs_by_time ON runs (created);
CREATE TABLE worker (id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, born REAL, beat REAL);
"""
SCHEMAS = {
    1: RUNS.format(""),
    2: RUNS.format(", name TEXT NOT NULL DEFAULT '', words TEXT NOT NULL DEFAULT ''"),
    3: RUNS.format(
        ", name TEXT NOT NULL DEFAULT '', words TEXT NOT NULL DEFAULT '',"
        " owner TEXT NOT NULL DEFAULT ''"
    ),
}
RECIPE = {
    "version": 1,
    "name": "vq",
    "title": "",
    "description": "",
    "seed": 3,
    "rules": [{"pattern": "*", "method": "uniform", "params": {"bits": 3}}],
}
SAMPLING = {"prompt": "a red circle", "seed": 5, "steps": 20, "guidance": 3.0}
FIRST_REQUESTS = {  # as the first version of each kind wrote it
    "compress": {"model": "demo", "recipe": RECIPE, "name": "small", "output": "models/small"},
    "generate": {"model": "demo", **SAMPLING},
    "compare": {"model": "demo", "variants": ["small"], **SAMPLING},
    "inspect": {"model": "demo", "variant": "small", **SAMPLING, "layer": "mid.to_q", "step": 4},
}


def earlier(folder, version):
    """A workspace with a finished run of each kind, as that version left it."""
    (folder / "runs").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(folder / "index.sqlite")) as db:
        db.executescript(SCHEMAS[version])
        for at, (kind, request) in enumerate(FIRST_REQUESTS.items()):
            run = f"20261120-12000{at}-{kind}-ab12"
            text = json.dumps({"kind": kind} | request)
            db.execute(
                "INSERT INTO runs (id, kind, state, request, created, queued, started, finished,"
                " message, result) VALUES (?, ?, 'done', ?, ?, ?, 2.0, 5.0, 'kept', '{\"a\": 1}')",
                (run, kind, text, 1.0 + at, 1.0 + at),
            )
            (folder / "runs" / run).mkdir()
        if version > 1:
            db.execute("UPDATE runs SET words = char(10) || request, name = 'mine'")
        db.execute(f"PRAGMA user_version = {version}")
        db.commit()
    return folder


@pytest.mark.parametrize("version", SCHEMAS)
def test_an_index_of_every_earlier_version_is_taken_over(tmp_path, version):
    workspace = Workspace.open(earlier(tmp_path / "space", version))
    records = workspace.runs()
    assert [record.kind for record in records] == list(FIRST_REQUESTS)[::-1]
    assert {(r.state, r.message, r.seconds, r.owner) for r in records} == {("done", "kept", 3, "")}
    assert {record.name for record in records} == ({"mine"} if version > 1 else {""})
    assert all(record.result == {"a": 1} for record in records)
    inspected = next(record.request for record in records if record.kind == "inspect")
    assert inspected.variants == ("small",)
    assert workspace.find(Search(words="red circle"), limit=9)[1] == 3
    fresh = workspace.submit(draw())
    assert workspace.take().id == fresh
    workspace.close()
    again = Workspace.open(tmp_path / "space")
    assert len(again.runs()) == 5
    again.close()


def test_files_of_a_newer_program_are_left_as_they_are(tmp_path):
    Workspace.open(tmp_path).close()
    VoteStore.of(tmp_path).close()
    for path, opened in (
        (tmp_path / "index.sqlite", lambda: Workspace.open(tmp_path)),
        (tmp_path / "votes" / "votes.sqlite", lambda: VoteStore.of(tmp_path)),
    ):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        with pytest.raises(UserError, match="version 99") as caught:
            opened()
        assert "newer program" in caught.value.remedy
        assert path.read_bytes() == before


def test_a_run_that_a_newer_program_asked_for_hides_itself_alone(workspace):
    known = workspace.submit(draw())
    strange = workspace.submit(toy())
    workspace._index.rows(
        "UPDATE runs SET kind = 'dream', request = '{\"kind\": \"dream\"}' WHERE id = ?", strange
    )
    assert [record.id for record in workspace.runs()] == [known]
    assert workspace.take().id == known
    assert workspace.take() is None
    assert workspace.models() == ()


def test_formats_say_what_to_do():
    with pytest.raises(UserError, match="version 2") as caught:
        Recipe.from_json(RECIPE | {"version": 2, "dreams": []})
    assert "the one that wrote it" in caught.value.remedy
    assert Recipe.from_json({k: v for k, v in RECIPE.items() if k != "version"}).seed == 3
    layer = {"codec": 0, "shape": [8, 16], "taps": 1}
    table = [{"method": "lloyd_max", "params": {}}]
    for version in (2, 3):
        config = VqdqConfig(recipe={}, codecs=table, layers={"to_q": layer}, version=version)
        assert config.expected()["to_q"].shape.count == 128
        assert config.inputs() == {}
    for version in (1, 4):
        with pytest.raises(UserError, match=f"version {version}") as caught:
            VqdqConfig(recipe={}, codecs=table, layers={}, version=version)
        assert "compress the model again" in caught.value.remedy
