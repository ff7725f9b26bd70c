"""`vqdq inspect`: a folder of figures and data, whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable

import numpy as np
import pytest

from tests.models import tiny
from vqdq.cli import main
from vqdq.jobs import compress
from vqdq.jobs.inspected import opened
from vqdq.jobs.requests import CompressRequest
from vqdq.recipe import Recipe
from vqdq.views import layer_map
from vqdq.views.style import View

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
RECIPE = {
    "name": "coarse",
    "rules": [
        {
            "pattern": "mid_block.*",
            "method": "uniform",
            "params": {"bits": 3},
            "activation": {"method": "rotated"},
        }
    ],
    "attention": {"scores": "log2"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    tiny.folder(folder / "tiny")
    compress.execute(
        CompressRequest(
            model=str(folder / "tiny"),
            recipe=Recipe.from_json(RECIPE),
            name="small",
            output=str(folder / "small"),
        )
    )
    return folder


@pytest.fixture
def said(capsys) -> Callable[[], dict]:
    def last() -> dict:
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return last


def command(place, *words):
    return main([
        "inspect", str(place / "tiny"), "--variant", str(place / "small"), "--prompt",
        "a red circle", "--steps", "2", "--seed", "5", "--json", *words,
    ])  # fmt: skip


def test_a_folder_of_figures_and_data(place, tmp_path, monkeypatch, said):
    drawn: list[str] = []

    def sketch(view: View, scale: float = 2.0) -> bytes:  # drawing them is tested elsewhere
        del scale
        drawn.append(view.alt)
        return b"picture"

    monkeypatch.setattr(View, "png", sketch)
    monkeypatch.setattr(View, "svg_file", lambda _view: b"<svg/>")
    few = ("absmax", "paired_sqnr_db", "sqnr_db", "clipped")
    shown = {name: layer_map.QUANTITIES[name] for name in few}
    monkeypatch.setattr(layer_map, "QUANTITIES", shown)
    target = tmp_path / "look"
    assert command(place, "--layer", "mid*attn2.to_q", "--step", "2", "--output", str(target)) == 0
    values = said()
    assert values["output"] == str(target)
    report = json.loads((target / "report.json").read_text())
    assert report["request"]["step"] == 1
    assert report["layers"] == [QUERY]
    models = opened(target, report)
    names = report["figures"]
    assert len(drawn) == len(names) - 1  # the previews are no figure
    wanted = {
        "maps/absmax-reference", "maps/absmax-variant-1-difference", "maps/sqnr_db-variant-1",
        "maps/paired_sqnr_db-variant-1", "maps/clipped-variant-1",
        "attention/scores", "attention/scores-levels-variant-1", "attention/roles",
        "attention/mass-by-step-variant-1", "attention/mass-by-head-variant-1",
        "attention/word-03-circle-variant-1", "attention/drift-variant-1", "trajectory",
        "previews-variant-1",
    } | {
        f"layers/{QUERY}/{name}"
        for name in (
            "channels", "channels-sorted", "values", "places", "surface", "surface-raised",
            "levels-variant-1", "before-after-variant-1", "weight-variant-1",
            "weight-codes-variant-1", "weight-rows-variant-1",
        )
    }  # fmt: skip
    assert wanted <= set(names)
    assert any(name.startswith("attention/self-mid_block") for name in names)
    for name in names:
        kinds = ("png",) if name.startswith("previews") else ("png", "svg", "csv")
        assert all((target / "figures" / f"{name}.{kind}").is_file() for kind in kinds)
    with (target / "figures" / "maps" / "paired_sqnr_db-variant-1.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["layer"] == QUERY]
    record = models[1].activity
    found = record.scalars.paired_sqnr_db[1, record.layers.index(QUERY)]
    label = "output against FP16, same inputs (dB)"
    np.testing.assert_allclose([float(row[label]) for row in rows], found, rtol=1e-5)
    assert command(place, "--output", str(target)) == 2
    assert "already exists" in said()["error"]["what"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--layer", "mid*attn9.to_q"), "no such layer"),
        (("--step", "3"), "no step 3"),
        (("--variant", "nowhere"), ""),
        (("--guidance", "-1"), ""),
    ],
)
def test_wrong_use_writes_nothing(place, tmp_path, said, words, what):
    assert command(place, *words, "--output", str(tmp_path / "look")) == 2
    error = said()["error"]
    assert what in error["what"]
    assert not list(tmp_path.iterdir())
    if "--layer" in words:
        assert "attn2.to_q" in error["remedy"]


def test_a_variant_of_another_model_leaves_nothing(place, tmp_path, said):
    other = tiny.pipeline(tmp_path / "scratch")
    config = dict(other.unet.config) | {"layers_per_block": 2}
    other.unet = type(other.unet)(**config)
    other.save_pretrained(tmp_path / "scratch" / "other")
    words = ("--variant", str(tmp_path / "scratch" / "other"), "--output", str(tmp_path / "look"))
    assert command(place, *words) == 1
    assert "another model" in said()["error"]["what"]
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
