"""Activations on the command line: what the flags ask for is in the recipe, and in the plan."""

from __future__ import annotations

import json

import pytest

import vqdq
from tests.models import tiny
from vqdq import activations
from vqdq.activations.attention import AttentionParams
from vqdq.cli import main
from vqdq.layers import execution
from vqdq.params import describe
from vqdq.recipe import Recipe

RULES = [
    {"pattern": "conv_in", "method": None},
    {"pattern": "*attn2.to_*", "method": "uniform", "params": {"bits": 4}},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.folder(folder / "tiny")
    (folder / "mine.json").write_text(json.dumps({"version": 1, "name": "mine", "rules": RULES}))
    return folder


def planned(place, capsys, *words):
    """What `plan --json` answers."""
    asked = ["plan", place / "tiny", "--recipe", place / "mine.json", *words, "--json"]
    assert main([str(word) for word in asked]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def recipe_of(place, capsys, *words) -> Recipe:
    return Recipe.from_json(planned(place, capsys, *words)["recipe"])


def test_a_method_with_settings_goes_to_every_layer_that_is_encoded(place, capsys) -> None:
    recipe = recipe_of(place, capsys, "--activations", "dgq:bits=6,groups=16")
    kept, rule = recipe.rules
    assert (kept.method, kept.activation) == (None, None)
    assert rule.activation == "dgq"
    assert rule.activation_params.to_json() | {"bits": 6, "groups": 16} == (
        rule.activation_params.to_json()
    )
    assert recipe.ranges is not None
    assert recipe.name == "mine-a6"
    assert recipe_of(place, capsys, "--activations", "dynamic").ranges is None


def test_8_bit_floats_have_8_bits_and_are_simulated_on_a_processor(place, capsys) -> None:
    values = planned(place, capsys, "--activations", "fp8")
    taken = [row for row in values["layers"] if row["activation"]]
    assert {row["activation"] for row in taken} == {"fp8"}
    assert {row["activation_bytes"] for row in taken} == {0}
    found = values["arithmetic"]
    assert (found["integer"], found["fp8"], found["simulated"]) == (0, 0, len(taken))
    assert list(found["reasons"]) == [execution.on_processor("fp8", "row")]
    assert main(["plan", str(place / "tiny"), "--recipe", str(place / "mine.json"),
                 "--activations", "fp8:bits=6"]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "6 is not offered" in said
    assert "Use one of: 8." in said


def test_attention_ranges_and_calibration_together(place, capsys) -> None:
    words = ["--activations", "minmax", "--attention", "bits=4,scores=log2"]
    recipe = recipe_of(place, capsys, *words, "--range-prompts", 3, "--calibrate", 2)
    assert recipe.attention == AttentionParams(bits=4, scores="log2")
    assert recipe.ranges is not None
    assert recipe.calibration is not None
    assert (recipe.ranges.prompts, recipe.calibration.prompts) == (3, 2)
    assert recipe.name == "mine-a8-s4-calibrated"
    alone = recipe_of(place, capsys, "--attention")
    assert (alone.attention, alone.name) == (AttentionParams(), "mine-s8")


def test_off_takes_everything_away_and_the_name_says_so(place, capsys) -> None:
    values = planned(place, capsys)
    for words in (["--activations", "off"], ["--attention", "off"]):
        assert planned(place, capsys, *words)["recipe_digest"] == values["recipe_digest"]
    asked = ["plan", "demo", "--recipe", "dgq-w4a6", "--activations", "off", "--attention", "off"]
    assert main([*asked, "--json"]) == 0
    recipe = Recipe.from_json(json.loads(capsys.readouterr().out.splitlines()[-1])["recipe"])
    assert recipe.name == "dgq-w4a6-a16"
    assert (recipe.ranges, recipe.attention) == (None, None)
    assert all(rule.activation is None for rule in recipe.rules)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--activations", "dgp"], 'Did you mean "dgq"?'),
        (["--activations", "dgq:group=8"], 'Did you mean "groups"?'),
        (["--activations", "dgq:bits=9"], "Use 4 to 8"),
        (["--activations", "dgq:bits"], "name=value"),
        (["--attention", "bits=2"], "Use 4 to 8"),
        (["--attention", "scores=even"], "off, log, log2, linear"),
        (["--range-prompts", "3"], "Add --activations dgq"),
        (["--keep-fragile", "5%"], "Add --activations dynamic"),
        (["--range-prompts", "none"], "not a number of at least 1"),
        (["--keep-fragile", "2"], "is not a share like 0.05 or 5%"),
    ],
)
def test_what_cannot_be_meant(place, capsys, words, says) -> None:
    asked = ["plan", place / "tiny", "--recipe", place / "mine.json", *words]
    assert main([str(word) for word in asked]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_says_which_arithmetic_and_how_long(place, capsys) -> None:
    words = ["--activations", "minmax:granularity=channel", "--attention"]
    values = planned(place, capsys, *words)
    taken = [row for row in values["layers"] if row["activation"]]
    assert values["activated_layers"] == len(taken) > 0
    assert values["arithmetic"]["simulated"] == len(taken)
    assert all(row["activation_bytes"] > 0 for row in taken)
    assert taken[0]["activation_settings"]["granularity"] == "channel"
    assert {"record", "ranges"} <= values["estimated_seconds"].keys()
    asked = ["plan", place / "tiny", "--recipe", place / "mine.json", *words, "--layers"]
    assert main([str(word) for word in asked]) == 0
    said = capsys.readouterr().out
    assert "activations 8 bits (minmax), attention scores 8 bits (log), q, k, v 8 bits" in said
    assert f"none of {len(values['layers'])} layers runs in 8-bit arithmetic" in said.lower()
    assert "minmax 8" in said


def test_the_most_fragile_inputs_are_kept(place, capsys) -> None:
    words = ["--activations", "dynamic:bits=4"]
    before = planned(place, capsys, *words)["activated_layers"]
    values = planned(place, capsys, *words, "--keep-fragile", "0.5")
    assert values["activated_layers"] == before - before // 2
    assert values["predicted_bytes"] == planned(place, capsys)["predicted_bytes"]
    assert len(values["recipe"]["rules"]) == len(RULES) + before // 2


def test_what_was_asked_is_made_verified_and_drawn(place, capsys, tmp_path) -> None:
    words = ["--activations", "dgq:groups=4", "--range-prompts", 1, "--attention", "bits=6"]
    asked = ["compress", place / "tiny", "--recipe", place / "mine.json", *words]
    assert main([str(word) for word in (*asked, "--output", tmp_path / "made")]) == 0
    said = capsys.readouterr().out
    assert "activations 8 bits (dgq), attention scores 6 bits (log)" in said
    assert "layers run in integer arithmetic" in said or "simulated" in said
    assert main(["verify", str(tmp_path / "made")]) == 0
    drawing = ["--prompt", "a", "--steps", "1", "--json", "--output", str(tmp_path / "seen")]
    capsys.readouterr()
    assert main(["compare", str(place / "tiny"), str(tmp_path / "made"), *drawing]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = result["variants"][0]["arithmetic"]
    assert found["integer"] + found["simulated"] > 0
    assert found["attention_simulated"] > 0
    assert "activations 8 bits (dgq)" in (tmp_path / "seen" / "index.html").read_text()


def test_methods_and_kernels_are_listed(capsys) -> None:
    assert main(["methods", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    ranges = {each["name"]: each["ranges"] for each in values["activations"]}
    assert ranges.keys() == set(activations.names())
    assert (ranges["dynamic"], ranges["dgq"], ranges["smooth"]) == ("not used", "needed", "needed")
    assert {each["name"] for each in values["attention"]} == {
        info.name for info in describe(AttentionParams)
    }
    assert [each.name for each in vqdq.activation_methods()] == list(activations.names())
    assert main(["doctor"]) == 0
    assert "integer_products" in capsys.readouterr().out
