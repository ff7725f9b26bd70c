"""Sweeps on this computer: what is asked, what is planned, and that results are those of one go."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.models import tiny
from vqdq.cli import main
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import grid, grid_cluster, sweep, sweep_run
from vqdq.jobs.requests import Axis, GridRequest, request_from_json
from vqdq.jobs.sweep_file import Sweep, read_sweep
from vqdq.jobs.sweep_pack import unpack
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import packed
from vqdq.jobs.warm import WarmPipelines
from vqdq.models.compressor import compress_folder
from vqdq.models.sources import presets_folder
from vqdq.progress import Event

KEPT = {"pattern": "*", "method": None}


FEW = {"prompts": 9, "steps": 1, "tokens_per_channel": 1.0}
COARSE = {"method": "uniform", "params": {"bits": 2}}
TRELLIS = {"method": "trellis", "params": {"bits": 2}}


def recipe(name, *rules, **more):
    given = [{"pattern": pattern, **rule} for pattern, rule in rules]
    return {"name": name, "rules": [*given, KEPT], **more}


RECIPES = [
    recipe("plain", ("conv_out", COARSE)),
    recipe("known", ("conv_out", COARSE), ("mid*attn1*", TRELLIS), calibration=FEW),
    recipe("wider", ("conv_*", COARSE)),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("sweep") / "tiny")


def asked(model, **values):
    given = {
        "models": [str(model)],
        "recipes": RECIPES,
        "prompts": ["a red circle", "a blue square"],
        "seeds": [3],
        "steps": 1,
    }
    return Sweep.from_json(given | values, folder=model.parent, presets=presets_folder())


def plan_of(wanted, store):
    engine = sweep.LocalEngine(store)
    plan = sweep_run.planned(wanted.pictures, engine, store, metrics=wanted.metrics)
    return plan, engine


def run(wanted, store, **more):
    plan, engine = plan_of(wanted, store)
    return plan, sweep.drive(plan, engine, **more)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("out")))
    wanted = asked(model)
    plan, result = run(wanted, store)
    return wanted, store, plan, result


def test_models_of_a_sweep_are_those_of_one_go_byte_for_byte(whole, model, tmp_path):
    wanted, store, plan, result = whole
    assert result.finished
    for each in wanted.recipes:
        compress_folder(str(model), each, tmp_path / each.name)
        (name,) = (n for key, n in plan.models.items() if key.endswith(each.digest))
        (tmp_path / f"{each.name}-unpacked").mkdir()
        folder = unpack(store, name, str(model), tmp_path / f"{each.name}-unpacked")
        theirs = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        mine = tmp_path / each.name
        assert theirs == {
            p.relative_to(mine): p.read_bytes() for p in mine.rglob("*") if p.is_file()
        }


def test_what_recipes_share_is_made_once_and_nothing_is_made_again(whole, model):
    wanted, store, plan, result = whole
    layers = {n for unit in plan.units if unit.kind == "encode" for n in unit.makes}
    plain, wider = (
        {n for u in plan.units if u.kind == "model" and u.work["recipe"]["name"] == name
         for n in u.work["layers"].values()}
        for name in ("plain", "wider")
    )  # fmt: skip
    assert plain < wider  # the same method, bits and seed: the same address
    assert len(layers) == result.made["layer"]
    assert result.made == {
        "record": 2, "statistics": 1, "layer": len(layers), "model": 3, "picture": 8, "score": 6,
    }  # fmt: skip
    assert store.again() == []
    again, second = run(wanted, store)
    assert again.units == ()
    assert again.total == again.done
    assert second.made == {}
    more, _ = plan_of(asked(model, prompts=["a red circle", "a"]), store)
    assert {u.kind for u in more.units} == {"draw"}
    assert sum(len(u.makes) for u in more.units) == 4 + 3


def test_the_tables_tell_what_the_receipts_hold(whole):
    wanted, store, plan, _ = whole
    written = sweep_run.write_tables(store, wanted, plan)
    assert written.values["finished"]
    assert [row.recipe for row in written.rows] == ["", "plain", "known", "wider"]
    original, plain, *_ = written.rows
    assert original.measures == {}
    assert original.bits_per_weight == 16.0
    assert plain.pictures == 2
    psnr = [
        f.score["psnr"] for f in written.found if f.wish.picture.drawer.recipe is wanted.recipes[0]
    ]
    assert plain.measures["psnr"].value == pytest.approx(sum(psnr) / 2)
    assert all(math.isfinite(v) and v > 0 for v in psnr)
    lines = store.read("pictures.csv").decode().splitlines()
    assert len(lines) == 1 + wanted.count
    noise = {found.row["initial_latent_sha256"] for found in written.found}
    assert len(noise) == 1  # one seed, whoever drew
    kept = json.loads(store.read("sweep.json"))
    assert [row["recipe"] for row in kept["recipes"]] == ["original", "plain", "known", "wider"]


def test_the_command_finds_everything_done_and_writes_tables_sheets_and_a_report(
    whole, tmp_path, capsys
):
    wanted, store, _, _ = whole
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(wanted.to_json()))

    def said(*words):
        code = main(["sweep", str(file), "--json", *words])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    code, told = said("--output", store.url, "--dry-run")
    assert (code, told["units"], told["done"]) == (0, 0, told["total"])
    code, told = said("--output", store.url)
    assert (code, told["made"], told["made_again"], told["failures"]) == (0, {}, 0, [])
    assert told["finished"]
    assert set(told["files"]) >= {"recipes.csv", "frontier.svg", "sheet-1.png", "report.html"}
    assert all((store.folder / name).is_file() for name in told["files"])
    with Image.open(store.folder / "sheet-1.png") as sheet:
        axes = json.loads(sheet.text["vqdq"])["axes"]
    assert axes[0]["values"] == ["original", "plain", "known", "wider"]
    rows = list(csv.DictReader((store.folder / "recipes.csv").read_text().splitlines()))
    assert [float(row["bytes"]) for row in rows] == [row["bytes"] for row in told["recipes"]]
    file.write_text(json.dumps(wanted.to_json() | {"prompts": ["a"]}))
    code, told = said("--output", store.url)
    assert code == 2
    assert "a sweep with other prompts" in told["error"]["what"]
    assert said("--output", store.url, "--workers", "2")[0] == 2
    file.write_text(json.dumps(wanted.to_json()))
    with sweep_run.alone(store):
        code, told = said("--output", store.url)
    assert (code, told["error"]["what"]) == (
        1, f"another sweep (process {os.getpid()}) is at work there."
    )  # fmt: skip


def test_a_stopped_sweep_goes_on_in_memory_too(model):
    wanted = asked(model, recipes=RECIPES[:1])
    store = Store("memory://stopped")
    seen = []

    def stop(event):
        seen.append(event)
        if len(store.known()) >= 7:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(wanted, store, report=stop)
    left = len(store.known())
    plan, result = run(wanted, store)
    assert result.finished
    assert sum(len(u.makes) for u in plan.units) == len(store.known()) - left
    assert store.again() == []
    assert {e.stage for e in seen} <= {"encode", "cells"}


def test_one_fault_keeps_nobody_else_from_being_done_and_says_the_way(whole, model, tmp_path):
    _, _, plan, _ = whole
    (unit,) = (u for u in plan.units if u.kind == "model" and u.work["recipe"]["name"] == "plain")
    broken = Store(str(tmp_path / "broken"))
    _, result = run(asked(model, recipes=RECIPES[:1]), broken)
    layer = next(iter(unit.work["layers"].values()))
    receipt = broken.receipt(layer)
    (tmp_path / "broken" / receipt["object"]).write_bytes(b"not what was written")
    for name in (*unit.makes, *(w.image for w in plan.wishes if w.picture.seed == 3)):
        (tmp_path / "broken" / "receipts" / f"{name}.json").unlink(missing_ok=True)
    plan, result = run(asked(model, recipes=RECIPES[:1]), broken)
    assert list(result.faults) == list(unit.makes)
    assert {name.partition("/")[0] for name in result.waiting} == {"picture"}
    assert result.made == {"picture": 2}  # the original's
    told = sweep.fault_of(result, {}, "Try: vqdq sweep x")
    assert "1 results could not be made, 2 wait for them" in told.what
    assert "only this is made anew" in told.remedy
    assert told.remedy.endswith("Try: vqdq sweep x")


def test_a_grid_on_an_engine_has_the_rows_and_pictures_of_a_grid_here(model, tmp_path, monkeypatch):
    other = tiny.folder(tmp_path / "other", seed=1)
    models = Axis(name="model", values=("mine", str(other)))
    places = {"mine": str(model)}
    cache = WarmPipelines(lambda name: places.get(name, name))
    request = GridRequest(model="mine", axes=(models,), prompt="a red circle", steps=1)
    monkeypatch.setattr(grid_cluster, "RayEngine", sweep.LocalEngine)
    events: list[Event] = []
    found: list[Any] = []
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        made = grid.execute(
            replace(request, engine=engine), tmp_path / engine, cache=cache, report=events.append
        )
        found.append(made["rows"])
        assert made["drawn"] == 2
    measured = {"seconds": 0, "peak_memory_bytes": 0}
    assert [row | measured for row in found[0]] == [row | measured for row in found[1]]
    assert found[0][1]["psnr"] < 40
    for row in found[0]:
        here, there = (Image.open(tmp_path / e / row["image"]) for e in ("local", "ray"))
        with here, there:
            assert here.tobytes() == there.tobytes()
    assert {event.stage for event in events} == {"load", "cells"}
    assert {event.total for event in events if event.stage == "cells"} == {2}
    again = request_from_json(replace(request, engine="ray").to_json())
    assert again == replace(request, engine="ray")
    assert "engine" not in request.to_json()  # folders of earlier versions stay the same grid


def test_a_cancelled_grid_on_an_engine_goes_on_where_it_was(model, tmp_path, monkeypatch):
    seeds = Axis(name="seed", values=(1, 2, 3))
    request = GridRequest(
        model=str(model), axes=(seeds,), prompt="a red circle", steps=1, engine="ray"
    )
    monkeypatch.setattr(grid_cluster, "RayEngine", sweep.LocalEngine)

    def stop(event):
        if event.preview:
            raise Cancelled

    with pytest.raises(Cancelled):
        grid.execute(request, tmp_path, cache=WarmPipelines(), report=stop)
    (first,) = tmp_path.glob("*.png")
    drawn = first.stat().st_mtime_ns
    made = grid.execute(request, tmp_path, cache=WarmPipelines())
    assert (made["drawn"], made["kept"], len(made["rows"])) == (2, 1, 3)
    assert first.stat().st_mtime_ns == drawn


def test_of_two_that_do_the_same_one_counts_and_the_other_says_so(tmp_path):
    for store in (Store(str(tmp_path)), Store("memory://twice")):
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(b"1")
        two.write_bytes(b"22")
        first = store.keep("layer/x", {"who": 1}, one)
        assert store.keep("layer/x", {"who": 2}, two) == first
        assert store.again() == ["layer/x"]
        assert store.fetch("layer/x", tmp_path / "back").read_bytes() == b"1"
        assert hashlib.sha256(b"1").hexdigest() == first["sha256"]
        assert store.known() == {"layer/x"}
        assert store.tidy() == 1  # the loser's bytes
        assert store.fetch("layer/x", tmp_path / "back").read_bytes() == b"1"


def test_chunks_are_alike_and_hold_everything_once():
    sizes = [9, 1, 1, 7, 3, 3, 8, 2, 2, 4]
    chunks = packed(sizes, float, 10)
    assert sorted(s for chunk in chunks for s in chunk) == sorted(sizes)
    loads = [sum(chunk) for chunk in chunks]
    assert len(loads) == 4
    assert max(loads) <= 4 / 3 * sum(sizes) / 4
    assert sorted(packed([1, 2, 3], float, 0)) == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ["x"]}, 'unknown key "prompt".*prompts'),
        ({"recipes": ["trellis-3bits"]}, "trellis-3bit"),
        ({"recipes": [RECIPES[0], RECIPES[0]]}, "there twice"),
        ({"seeds": [1, 1]}, "named twice"),
        ({"seeds": "1-"}, "is no number"),
        ({"prompts": []}, "there is none"),
        ({"metrics": ["psnr", "lpip"]}, "no metric"),
        ({"steps": 0}, "out of range"),
        ({"device": "tpu"}, "no device"),
        ({"version": 2}, "version 2 is not supported"),
    ],
)
def test_a_bad_file_says_where_and_what(model, tmp_path, values, words):
    path = tmp_path / "bad.json"
    given = {"models": [str(model)], "recipes": RECIPES[:1], "prompts": ["x"], "seeds": [1]}
    path.write_text(json.dumps(given | values))
    with pytest.raises(UserError) as caught:
        read_sweep(path, presets_folder())
    assert re.search(words, str(caught.value))
    assert "bad.json" in str(caught.value)


def test_a_recipe_that_does_not_fit_is_told_and_the_others_are_planned(model, tmp_path):
    odd = recipe("odd", ("no such layer", COARSE))
    plan, _ = plan_of(asked(model, recipes=[RECIPES[0], odd]), Store(str(tmp_path)))
    (problem,) = plan.problems.values()
    assert "no layer" in problem.what
    assert len(plan.wishes) == 4
