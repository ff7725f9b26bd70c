"""Blame as a job and as a command: planted faults, resuming, and the recipe that it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models import tiny
from tests.models.test_blame import PLANTED, rule
from vqdq import cli
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import blame
from vqdq.jobs.blame_result import brief
from vqdq.jobs.requests import BlameRequest
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.metrics.trajectory import decibel, energy
from vqdq.models import compressor, trajectory
from vqdq.models.blame_report import BlameReport
from vqdq.models.region import region_weights
from vqdq.models.sensitivity import spread_calls
from vqdq.progress import Event
from vqdq.recipe import Recipe

NEXT = "mid_block.resnets.0.conv1"
RECIPE = Recipe(
    name="planted",
    rules=(rule(PLANTED, 2), rule(NEXT, 3), rule("up_blocks.0.resnets.*", 6)),
)
ASKED = {"prompt": "a red circle", "seed": 3, "steps": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and what was compressed of it."""
    folder = tmp_path_factory.mktemp("blame")
    tiny.folder(folder / "model")
    compressor.compress_folder(str(folder / "model"), RECIPE, folder / "small")
    return folder


@pytest.fixture(scope="module")
def cache() -> WarmPipelines:
    return WarmPipelines()


def _request(home: Path, **changes: Any) -> BlameRequest:
    given: dict[str, Any] = {"calls": 2, "worst": 3, **ASKED, **changes}
    return BlameRequest(model=str(home / "model"), variant=str(home / "small"), **given)


def _error_db(cache: WarmPipelines, home: Path, model: str, calls: int = 2) -> float:
    """The SQNR of a model on the calls that a search measures, computed anew."""
    reference = cache.get(str(home / "model")).pipeline
    drawn = trajectory.record(reference, ["a red circle"], steps=3, guidance=3.0, seed=3)
    small = cache.get(model).pipeline.unet
    with torch.no_grad():
        parts = [
            energy(trajectory.replay(small, call), call, drawn.guidance)
            for call in spread_calls(drawn, calls)
        ]
    return decibel(sum(p.guided_signal for p in parts), sum(p.guided_error for p in parts))


def test_a_search_finds_the_planted_layer_and_offers_what_was_measured(
    home: Path, cache: WarmPipelines, tmp_path: Path
) -> None:
    events: list[Event] = []
    region = (0.0, 0.0, 0.5, 0.5)
    found = blame.execute(
        _request(home, region=region), tmp_path, report=events.append, cache=cache
    )
    json.dumps(found, allow_nan=False)
    assert found["before_db"] == pytest.approx(_error_db(cache, home, str(home / "small")))
    assert (found["measured"], len(found["layers"])) == (3, 9)
    rows = {row["name"]: row for row in found["layers"]}
    worst = max(
        (row for row in found["layers"] if row["whole"]), key=lambda row: row["whole"]["share"]
    )
    assert worst["name"] == PLANTED
    assert worst["region"] is not None
    assert [row["whole"] is None for row in found["layers"]].count(True) == 6
    assert all(row["estimate_db"] is not None for row in found["layers"])
    record = BlameReport.load(tmp_path / found["report"])
    place = record.names.index(PLANTED)
    assert rows[PLANTED]["region"]["gain_db"] == pytest.approx(record.gain_db(1)[place])
    assert rows[PLANTED]["whole"]["damage_db"] == pytest.approx(record.damage_db()[place])
    assert found["region_db"] == pytest.approx(record.sqnr_db(1))
    # The offers: each set once, prices those of the plans, one of them proposed.
    sets = [(*sorted(each["layers"]), each["bits"]) for each in found["offers"]]
    assert len(set(sets)) == len(sets) >= 2
    assert sum(each["proposed"] for each in found["offers"]) == 1
    for each in found["offers"]:
        assert each["total_bytes"] - found["variant_bytes"] == each["added_bytes"]
        assert each["gain_db"] == pytest.approx(each["after_db"] - each["before_db"])
        assert each["sentence"].endswith("dB in the region (measured).")
    bars = [event for event in events if event.stage == "repair"]
    assert [event.done for event in bars if event.total] == sorted(
        event.done for event in bars if event.total
    )
    assert {"record", "sensitivity", "blame", "repair"} <= {event.stage for event in events}


def test_a_search_that_was_stopped_goes_on_where_it_was(
    home: Path, cache: WarmPipelines, tmp_path: Path
) -> None:
    def stop(event: Event) -> None:
        if event.stage == "blame" and event.done >= event.total // 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        blame.execute(_request(home), tmp_path, report=stop, cache=cache)
    kept = BlameReport.load(tmp_path / blame.REPORT)
    assert np.isfinite(kept.repaired).any()
    assert not kept.complete
    # A mark that no measurement would make: it is not measured again.
    place = int(np.flatnonzero(np.isfinite(kept.repaired[0, 0]))[0])
    kept.repaired[0, 0, place] *= 1.01
    kept.save(tmp_path / blame.REPORT)
    found = blame.execute(_request(home), tmp_path, cache=cache)
    done = BlameReport.load(tmp_path / blame.REPORT)
    assert done.complete
    assert done.repaired[0, 0, place] == pytest.approx(kept.repaired[0, 0, place])
    assert found["measured"] == 3


def test_the_command_writes_a_recipe_that_compresses_to_what_it_says(
    home: Path, cache: WarmPipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, seen = tmp_path / "mended.json", tmp_path / "seen"
    words = ["blame", str(home / "model"), str(home / "small"), "--prompt", "a red circle"]
    words += ["--seed", "3", "--steps", "3", "--calls", "2", "--worst", "3"]
    code = cli.main(
        [*words, "--layers", "2", "--bits", "16", "--save", str(recipe), "--output", str(seen)]
    )
    told = capsys.readouterr().out
    assert code == 0, told
    assert "Keep 2 layers at 16 bits" in told
    values = json.loads((seen / "report.json").read_text())
    chosen = values["offers"][0]
    assert set(chosen["layers"]) == {PLANTED, NEXT}
    assert recipe.read_text() == json.dumps(chosen["recipe"], indent=1, ensure_ascii=False)
    assert {path.name for path in seen.iterdir()} >= {"blame.npz", "ranking.png", "repairs.csv"}
    mended = tmp_path / "mended"
    assert cli.main(["compress", str(home / "model"), "--recipe", str(recipe),
                     "--output", str(mended), "--json"]) == 0  # fmt: skip
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["measured_bytes"] == chosen["total_bytes"]
    after = _error_db(cache, home, str(mended))
    assert after == pytest.approx(chosen["after_db"], abs=1e-3)
    assert after - values["before_db"] == pytest.approx(chosen["gain_db"], abs=1e-3)


def test_bad_input_is_told_plainly(
    home: Path, cache: WarmPipelines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(home / "model")
    with pytest.raises(UserError, match="no compressed layer"):
        blame.execute(replace(_request(home), variant=model), tmp_path, cache=cache)
    stranger = tiny.folder(tmp_path / "stranger", seed=1)
    with pytest.raises(UserError, match="nothing in common"):
        blame.execute(replace(_request(home), model=str(stranger)), tmp_path, cache=cache)
    for wrong, where in (((0.2, 0.1, 0.1, 0.5), "empty"), ((0.2, 0.1, 1.5, 0.5), "range")):
        with pytest.raises(UserError, match=where):
            _request(home, region=wrong)
    words = ["blame", model, str(home / "small"), "--prompt", "a red circle"]
    for more, said in (
        (["--region", "1,2,3"], "not a region like"),
        (["--region", "0,0,2,1"], "out of range"),
        (["--bits", "8"], "nothing limits"),
        (["--save", str(tmp_path / "no" / "r.json")], "no such folder"),
        (["--output", str(home)], "already exists"),
    ):
        assert cli.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    # An old file in the folder of the run that is something else is said, not overwritten.
    write_json(tmp_path / blame.REPORT, {})
    with pytest.raises(UserError, match="damaged"):
        blame.execute(_request(home), tmp_path, cache=cache)


def test_a_region_is_the_covered_part_of_each_place() -> None:
    mask = blame.mask_of((0.0, 0.25, 0.3, 1.0), (1, 4, 2, 4))
    assert mask is not None
    expected = [[0.5, 0.1, 0.0, 0.0], [1.0, 0.2, 0.0, 0.0]]
    assert mask.tolist() == [pytest.approx(row) for row in expected]
    assert blame.mask_of((), (1, 4, 2, 4)) is None
    tokens = blame.mask_of((0.0, 0.0, 0.5, 1.0), (1, 64, 8))
    assert tokens is not None
    weights = region_weights(tokens, (1, 64, 8)).reshape(8, 8)
    assert torch.equal(weights, torch.tensor([1.0] * 4 + [0.0] * 4).expand(8, 8))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("up_blocks.2.resnets.1.conv1", "up 2 · resnet 1 · conv1"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
         "mid · attention 0 · attn2.to_out"),
        ("up_blocks.0.attentions.1.transformer_blocks.3.ff.net.0.proj",
         "up 0 · attention 1 · block 3 · ff.net.0.proj"),
        ("transformer_blocks.12.attn.to_q", "block 12 · attn.to_q"),
        ("time_embedding.linear_1", "time_embedding.linear_1"),
        ("conv_in", "conv_in"),
    ],
)  # fmt: skip
def test_names_of_layers_are_short_and_say_where(name: str, words: str) -> None:
    assert brief(name) == words
