"""Commands around a recipe on a tiny model: calibration, fine-tuning, targets."""

from __future__ import annotations

import argparse
import json

import pytest

from tests.models import tiny
from vqdq.calibration import CalibrationParams
from vqdq.cli import flags, main
from vqdq.jobs import compress
from vqdq.jobs.plan import concrete
from vqdq.jobs.results import PlanResult
from vqdq.params import describe

RULE = {"pattern": "*attn2.to_*", "method": "uniform", "params": {"bits": 4}}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, a recipe, and a calibration of two prompts and two steps."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny.folder(folder / "tiny")
    (folder / "recipe.json").write_text(json.dumps({"version": 1, "name": "mine", "rules": [RULE]}))
    words = ["calibrate", folder / "tiny", "--output", folder / "seen", "--prompts", 2]
    assert main([*map(str, words), "--steps", "2", "--damping", "0.2", "--json"]) == 0
    return folder


def answer(capsys, *words):
    """Returns what a command that works tells programs, and its stages in order."""
    assert main([*map(str, words), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stages = dict.fromkeys(line["stage"] for line in lines[:-1])
    return lines[-1], list(stages)


def asked(place, command, *words):
    return [command, place / "tiny", "--recipe", place / "recipe.json", *words]


def refused(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_calibrate_keeps_what_it_was_asked(place, capsys):
    values = json.loads((place / "seen" / "calibration.json").read_text())
    assert values["params"] == CalibrationParams(prompts=2, steps=2, damping=0.2).to_json()
    assert "already exists" in refused(capsys, "calibrate", place / "tiny", "--output",
                                       place / "seen")  # fmt: skip
    said = refused(capsys, "calibrate", place / "tiny", "--output", place / "x", "--damping", "11")
    assert "damping: 11.0 is out of range" in said


def test_a_kept_calibration_serves_a_compression(place, capsys, tmp_path):
    words = asked(place, "compress", "--calibration", place / "seen", "--output", tmp_path / "out")
    found, stages = answer(capsys, *words)
    assert stages == ["plan", "encode", "save"]  # the model is not run again
    assert found["calibrated"]
    assert found["recipe"] == "mine-calibrated"
    errors = [row["output_error_db"] for row in found["layers"] if row["method"]]
    assert all(error < 0 for error in errors)
    assert all(row["output_error_db"] is None for row in found["layers"] if not row["method"])
    stored = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert stored["calibration"]["damping"] == 0.2
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_calibrate_and_finetune_without_writing_json(place, capsys, tmp_path):
    recipe = json.loads((place / "recipe.json").read_text())
    recipe |= {"calibration": {"steps": 2}, "finetune": {"prompts": 8, "batch_size": 2}}
    (place / "both.json").write_text(json.dumps(recipe))
    words = ["compress", place / "tiny", "--recipe", place / "both.json"]
    found, stages = answer(
        capsys, *words, "--calibrate", 1, "--finetune", 2, "--output", tmp_path / "out"
    )
    wanted = ["record", "calibrate", "encode", "finetune", "save"]
    assert [stage for stage in stages if stage in wanted] == wanted
    assert found["learnt"]["steps"] <= 2
    assert found["learnt"]["after_db"] >= found["learnt"]["before_db"]
    stored = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert (stored["calibration"]["prompts"], stored["finetune"]["steps"]) == (1, 2)


def test_a_plan_for_a_target_is_what_compress_writes(place, capsys, tmp_path):
    kept = tmp_path / "sensitivity.json"
    words = asked(place, "plan", "--target-bits", "5.5", "--sensitivity", kept)
    found, stages = answer(capsys, *words, "--save", tmp_path / "mine.json")
    assert "sensitivity" in stages
    packed = [row for row in found["layers"] if row["sensitivity"] is not None]
    assert sum(row["sensitivity"] for row in packed) == pytest.approx(1)
    bits = {row["settings"]["bits"] for row in packed if row["method"]}
    assert len(bits) > 1  # not all alike
    assert 5 < found["average_bits"] <= 5.5
    assert found["estimated_seconds"]["encode"] > 0
    again, stages = answer(capsys, *words)  # measured once
    assert "sensitivity" not in stages
    assert again["recipe_digest"] == found["recipe_digest"]
    words = ["compress", place / "tiny", "--recipe", tmp_path / "mine.json"]
    made, _ = answer(capsys, *words, "--output", tmp_path / "out")
    assert made["measured_bytes"] == found["predicted_bytes"]
    other = asked(place, "plan", "--target-bytes", f"{found['predicted_bytes']}")
    smaller, _ = answer(capsys, *other, "--sensitivity", kept)
    assert smaller["predicted_bytes"] <= found["predicted_bytes"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target-bits", "0.5"], "bits: 0.5 is out of range"),
        (["--target-bytes", "many"], "is not a size"),
        (["--target-bits", "3", "--target-bytes", "8MB"], "not allowed with"),
        (["--card", "8GB@big"], "is not like 8GB@1024"),
        (["--sensitivity", "s.json"], "Add --target-bits"),
        (["--finetune", "0"], "not a number of at least 1"),
        (["--calibration", "nowhere"], "nowhere"),
        (["--save", "nowhere/x.json"], "no such folder"),
    ],
)
def test_what_cannot_be_meant(place, capsys, words, says):
    assert says in refused(capsys, *asked(place, "plan", *words))


def test_a_method_that_needs_calibration_says_so(place, capsys):
    said = refused(capsys, "plan", place / "tiny", "--recipe", gptq(place))
    assert "--calibrate" in said
    assert main(["plan", str(place / "tiny"), "--recipe", gptq(place), "--calibrate"]) == 0
    assert "calibration on 64 prompts, 20 steps: 1 pass" in capsys.readouterr().out


def gptq(place):
    rule = RULE | {"method": "gptq"}
    (place / "gptq.json").write_text(json.dumps({"version": 1, "name": "g", "rules": [rule]}))
    return str(place / "gptq.json")


def test_every_setting_of_the_declaration_is_a_flag():
    parser = argparse.ArgumentParser()
    flags.add_settings(parser, CalibrationParams)
    given = vars(parser.parse_args(["--no-bias-correction", "--weighting", "effect"]))
    assert list(given) == [info.name for info in describe(CalibrationParams)]
    assert (given["bias_correction"], given["weighting"], given["prompts"]) == (
        False, "effect", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"), [("8MB", 8_000_000), ("1.5 GiB", 3 * 2**29), ("500000", 500_000)]
)
def test_sizes(text, size):
    assert flags.parse_size(text) == size
    assert flags.parse_card(f"{text}@1024") == (size, 1024)
    assert flags.parse_card(text) == (size, 0)


def test_a_full_result_says_what_fine_tuning_did(place, capsys, monkeypatch, tmp_path):
    made = {
        "output": "out", "measured_bytes": 8, "reference_bytes": 16, "bits_per_weight": 3.0,
        "calibrated": True, "learnt": {"before_db": 30.04, "after_db": 32.16, "steps": 40},
        "seconds": 1.0, "peak_memory_bytes": 1, "arithmetic": None,
    }  # fmt: skip
    monkeypatch.setattr(compress, "execute", lambda *_, **__: made)
    words = asked(place, "compress", "--output", tmp_path / "out")
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "calibrated" in said
    assert "fine-tuned 40 steps: 30.0 dB before, 32.2 dB after" in said


def test_a_concrete_recipe_comes_back_whole():
    recipe = {"version": 1, "name": "p", "rules": [RULE], "calibration": {"prompts": 3}}
    result: PlanResult = {"recipe": recipe}  # pyright: ignore[reportAssignmentType]
    assert concrete(result).calibration == CalibrationParams(prompts=3)
