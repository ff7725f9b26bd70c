"""A grid: which cells there are and in which order, and that what is drawn is kept."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.models import tiny
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import grid, grid_records
from vqdq.jobs.draw import CHUNK
from vqdq.jobs.grid import preset
from vqdq.jobs.grid_cells import expand, label, recipe_of
from vqdq.jobs.requests import Axis, GridRequest, request_from_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.metrics import images

PROMPT = "a red circle"


def asked(*axes, model="demo", **values):
    sides = tuple(Axis(name=name, values=tuple(given)) for name, given in axes)
    return GridRequest(**({"model": model, "axes": sides, "prompt": PROMPT} | values))


def test_models_are_outermost_the_reference_first_and_equal_pictures_drawn_once():
    request = asked(("bits", [3, 16]), ("method", ["trellis", "uniform"]), ("seed", [5, 4]))
    found = expand(request, preset)
    assert found.shape == (2, 2, 2)
    places = [cell.place for cell in found.cells]
    assert places == [(c, r, p) for p in range(2) for r in range(2) for c in range(2)]
    assert all(found.at(*place).place == place for place in places)
    order = [(p.drawer.recipe and p.drawer.recipe.name, p.seed) for p in found.pictures]
    assert order == [
        (None, 5), (None, 4),
        ("trellis-3bit", 5), ("trellis-3bit", 4),
        ("uniform-3bit", 5), ("uniform-3bit", 4),
    ]  # fmt: skip
    assert found.at(1, 0, 0).picture is found.at(1, 1, 0).picture  # 16 bits of any method
    assert {p.reference for p in found.pictures} == {p.key for p in found.pictures[:2]}
    assert [each.compresses for each in found.drawers] == [False, True, True]


def test_method_and_bits_are_the_presets_so_that_models_made_with_them_are_used():
    skeleton = preset("trellis-3bit")
    twins = {("trellis", 2): "trellis-2bit", ("additive", 4): "vq-4bit", ("uniform", 4): "rtn-4bit"}
    for (method, bits), name in twins.items():
        made = recipe_of(method, bits, skeleton)
        assert made.digest == preset(name).digest
    request = asked(("bits", [2, 3])).with_made({skeleton.digest: "small"})
    assert [each.made for each in expand(request, preset).drawers] == ["", "small"]
    assert [each.compresses for each in expand(request, preset).drawers] == [True, False]


def test_what_cannot_be_is_an_empty_cell_that_says_why():
    request = asked(("bits", [3, 7, 16]), ("method", ["trellis", "uniform", "nf4", "gptq"]))
    found = expand(request, preset)
    why = {cell.place[:2]: cell.why for cell in found.empty}
    assert why[1, 0] == "Trellis offers 2 to 6 bits."
    assert (1, 1) not in why
    assert "no choice of bits" in why[0, 2]
    assert "calibration" in why[0, 3]
    assert len(why) == 5
    needs = expand(asked(("recipe", ["original", "trellis-3bit-calibrated"])), preset)
    assert "needs prompts" in needs.empty[0].why
    with pytest.raises(UserError, match="no cell can have a picture"):
        expand(asked(("bits", [7])), preset)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([("model", ["a"]), ("recipe", ["b"])], "models and recipes each decide the model"),
        ([("recipe", ["a"]), ("bits", [3])], "recipes and bits each"),
        ([("seed", [1]), ("seed", [2])], "the axes are seed, seed"),
        ([("seed", [1, 1])], "'?1'? is named twice"),
        ([("steps", [0])], "0 is out of range"),
        ([("guidance", ["x"])], "out of range"),
        ([("seed", range(21)), ("steps", range(1, 21))], r"420 cells: 21 seeds × 20 steps"),
        ([], "the axes are none"),
    ],
)
def test_requests_that_cannot_be_say_why(axes, words):
    with pytest.raises(UserError, match=words):
        asked(*axes)


def test_a_request_comes_back_from_json_also_one_of_an_older_version():
    request = asked(("prompt", ["a", "b"]), ("guidance", [1, 2.5]), prompt="").with_made({"d": "m"})
    values = json.loads(json.dumps(request.to_json()))
    assert request_from_json(values) == request
    for name in ("variant", "method", "bits", "made"):
        del values[name]
    assert request_from_json(values).axes == request.axes
    assert request.title == "prompt × guidance · 4 cells"
    assert [label(Axis(name="bits", values=(3,)), v) for v in (3, 16)] == ["3 bits", "original"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    tiny.folder(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def cache():
    return WarmPipelines()


def test_a_stopped_grid_goes_on_and_a_fault_stays_in_its_cell(place, cache, tmp_path):
    """One grid, stopped after two pictures, continued with one model missing, then mended."""
    model, absent = str(place / "tiny"), str(tmp_path / "absent")
    request = asked(("seed", [1, 2]), ("model", [absent, model]), model=model, steps=2)
    folder = tmp_path / "run"
    folder.mkdir()
    events = []

    def stops(event):
        events.append(event)
        if event.stage == "cells" and event.done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        grid.execute(request, folder, report=stops, cache=cache)
    rows = grid_records.read(folder)
    assert len(rows) == 1  # the reference's first picture was kept
    with (folder / "cells.jsonl").open("a") as file:
        file.write('{"key": "cut off by a ki')
    first = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    with pytest.raises(UserError, match="2 of 4 pictures could not be drawn") as fault:
        grid.execute(request, folder, cache=cache)
    assert "Try again draws only these" in fault.value.remedy
    rows = grid_records.read(folder)
    assert len(rows) == 4
    assert len(grid_records.failed(rows)) == 2
    tiny.folder(tmp_path / "absent", seed=1)
    result = grid.execute(request, folder, report=events.append, cache=cache)
    assert (result["drawn"], result["kept"], result["made"]) == (2, 2, [])
    assert first.items() <= {p.name: p.stat().st_mtime_ns for p in folder.glob("*.png")}.items()
    done = [event.done for event in events[-6:] if event.stage == "cells"]
    assert done == sorted(done)
    assert events[-1].done == events[-1].total == 4
    for row in result["rows"]:
        with Image.open(folder / row["image"]) as image:
            chunk = json.loads(image.text[CHUNK])
            assert (chunk["prompt"], chunk["seed"], chunk["steps"]) == (PROMPT, row["seed"], 2)
            if row["reference"]:
                with Image.open(folder / row["reference"]) as twin:
                    assert row["psnr"] == pytest.approx(images.psnr(twin, image), rel=1e-12)
    assert [bool(row["reference"]) for row in result["rows"]] == [False, False, True, True]


def test_models_are_made_once_inside_the_run(place, cache, tmp_path):
    request = asked(("bits", [16, 2]), ("guidance", [1, 3]), model=str(place / "tiny"), steps=1)
    request = GridRequest.from_json(request.to_json() | {"method": "uniform"})
    events = []
    result = grid.execute(request, tmp_path, report=events.append, cache=cache)
    digest = recipe_of("uniform", 2, preset("trellis-3bit")).digest
    assert result["made"] == [f"uniform-2bit-{digest[:8]}"]
    assert (tmp_path / "models" / result["made"][0] / "model_index.json").is_file()
    assert sum(event.stage == "plan" for event in events) == 1
    rows = result["rows"]
    assert [row["bits_per_weight"] == 16 for row in rows] == [True, True, False, False]
    assert all(0 < row["psnr"] < 100 for row in rows[2:])
    with Image.open(tmp_path / rows[2]["image"]) as image:
        chunk = image.text[CHUNK]
    assert json.loads(chunk)["recipe_digest"] == digest
    assert str(tmp_path) not in chunk
    assert len({row["initial_latent_sha256"] for row in rows}) == 1
    left = tmp_path / "models" / f"{result['made'][0]}.partial"  # killed after the model was named
    left.mkdir()
    (tmp_path / rows[2]["image"]).unlink()
    assert grid.execute(request, tmp_path, cache=cache)["drawn"] == 1
    assert not left.exists()
