"""Medians, quartiles and the order of a batch's sets, by hand; what a comparison is asked."""

from __future__ import annotations

import json
import math

import pytest

from vqdq.errors import UserError
from vqdq.jobs.store import Workspace
from vqdq.ui import compare, page
from vqdq.ui.compare_batch import lost, ranked, spread
from vqdq.ui.desk import Desk
from vqdq.ui.live import Session

ALL = dict.fromkeys(("count", "shapes", "colours", "sizes", "relation", "background"), True)


def picture(flip: float, psnr: float | None, **wrong: bool):
    return {"flip": flip, "psnr": psnr, "latent_cosine": 0.9, "verdict": ALL | wrong}


def one(*variants):
    return {"reference": picture(0, None), "variants": list(variants), "floor": None}


def test_median_and_quartiles():
    assert spread([]) is None
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.low, found.middle, found.high) == (2, 3, 4)
    found = spread([30.0, math.inf, math.inf])  # equal pictures
    assert (found.middle, found.high) == (math.inf, math.inf)


def test_a_set_counts_as_its_most_changed_variant():
    sets = [
        one(picture(0.1, 30.0), picture(0.2, 40.0)),
        one(picture(0.3, None), picture(0.0, None)),
        one(picture(0.05, 20.0, shapes=False), None),
        one(None, None),  # nothing drawn yet
    ]
    assert ranked(sets, "flip") == [1, 0, 2]
    assert ranked(sets, "psnr") == [2, 0, 1]
    assert ranked(sets, "lost") == [2, 1, 0]
    assert ranked(sets, "asked") == [0, 1, 2]
    assert lost(sets[2], sets[2]["variants"][0]) == 1


@pytest.fixture
def desk(tmp_path):
    workspace = Workspace.open(tmp_path / "workspace")
    for name, of in (("mine", "demo"), ("theirs", "/models/other")):
        folder = workspace.models_folder / name
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        (folder / "vqdq.json").write_text(json.dumps({"base_model": of}))
    yield Desk(workspace, "demo")
    workspace.close()


def test_nothing_to_compare_with_says_what_to_do(desk) -> None:
    with pytest.raises(UserError, match="no compressed model is chosen") as caught:
        compare.submit(desk, "a circle", 7, [])
    assert caught.value.remedy == "Tick one or more below the pictures."


def test_a_model_of_another_original_is_not_said_to_be_missing(desk) -> None:
    with pytest.raises(UserError, match="was made of /models/other, and this page is about demo"):
        compare.submit(desk, "a circle", 7, ["theirs"])


@pytest.mark.parametrize("floor", [True, False])
def test_the_button_of_a_result_measures_the_floor_as_the_box_says(desk, floor) -> None:
    data = {"act": "compare", "name": "mine"}
    page._act(desk, Session(), data, floor, ("a circle", 7, 4, 3.0))
    (run,) = desk.workspace.runs("compare")
    assert (run.request.floor, run.request.variants, run.request.steps) == (floor, ("mine",), 4)
