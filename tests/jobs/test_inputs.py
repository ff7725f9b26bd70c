"""What recipes do to inputs, and in which arithmetic a model is computed: counts and words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq import activations, codecs
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import Site
from vqdq.calibration import RangeParams
from vqdq.jobs import arithmetic, compare, compress, costs, inputs
from vqdq.jobs.requests import CompareRequest, CompressRequest
from vqdq.jobs.run import read_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers.execution import Execution
from vqdq.layers.inputs import LayerInput, NoiseLevel
from vqdq.layers.quantized import pack
from vqdq.models.compressor import plan
from vqdq.recipe import Recipe

BASE = Recipe.from_json(
    {
        "name": "four",
        "rules": [
            {"pattern": "conv_in", "method": None},
            {"pattern": "*attn*", "method": "uniform", "params": {"bits": 4}},
        ],
    }
)


def given(method: str, **values) -> Recipe:
    return inputs.with_activations(BASE, method, activations.get(method).settings(**values))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny.folder(folder / "tiny")
    return folder


def test_counts_add_up_and_say_why() -> None:
    found = arithmetic.counted(
        [Execution(kind="integer", exact=False)] * 5
        + [Execution(kind="simulated", reason="too fine")] * 2
        + [Execution(kind="16-bit", reason="faster so")],
        [Execution(kind="simulated", reason="float")] * 3,
        total=10,
    )
    assert found["integer"] + found["simulated"] + found["sixteen_bit"] == found["layers"] == 10
    assert (found["integer"], found["simulated"], found["rounded_weights"]) == (5, 2, 5)
    assert found["reasons"] == {"too fine": 2, "faster so": 1}
    assert (found["attention"], found["attention_simulated"]) == (3, 3)
    said = arithmetic.in_words(found)
    assert said.startswith("5 of 10 layers run in integer arithmetic on this machine; 2 are")
    assert "too fine; 1 more reason" in said
    assert "Attention is simulated." in said


def test_8_bit_floats_are_counted_and_said_by_their_own_name() -> None:
    some, none = [Execution(kind="fp8", exact=False)] * 3, [Execution(kind="integer")] * 2
    found = arithmetic.counted([*some, *none], (), total=6)
    assert (found.get("fp8"), found["integer"], found["sixteen_bit"]) == (3, 2, 1)
    assert (found["simulated"], found["reasons"], found["rounded_weights"]) == (0, {}, 3)
    assert arithmetic.in_words(found) == (
        "2 of 6 layers run in integer arithmetic on this machine; 3 of 6 layers run in 8-bit floats"
        " on this machine; 1 takes its input in 16 or 32 bits. 3 of them use the stored weight"
        " rounded to 8 bits a row."
    )
    alone = arithmetic.counted(some, (), total=3)
    assert "8-bit floats save on a card has not been measured" in arithmetic.price(alone)
    del alone["fp8"]  # as an earlier run's record
    assert arithmetic.in_words(alone | {"integer": 3}).startswith("3 of 3 layers run in integer")


def test_a_model_is_asked_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 4))
    assert arithmetic.measured(model) is None
    weight = codecs.create("int8").encode(torch.randn(8, 16))
    layer = pack(model[0], weight)
    site = Site(channels=16)
    layer.quantize_input_(
        LayerInput(activations.create("dynamic"), site, NoiseLevel(), where="0"), {}
    )
    model[0] = layer
    found = arithmetic.measured(model)
    assert found is not None
    assert (found["layers"], found["integer"] + found["simulated"]) == (3, 1)
    assert found["sixteen_bit"] == 2
    layer.input.enabled = False
    off = arithmetic.measured(model)
    assert off is not None
    assert (off["sixteen_bit"], off["reasons"]) == (3, {"activations are switched off": 1})


@pytest.mark.parametrize("name", activations.names())
def test_what_is_expected_of_a_plan(place, name: str) -> None:
    found = arithmetic.expected(plan(place / "tiny", given(name)))
    assert found is not None
    activated = sum("attn" in layer.layer.name for layer in plan(place / "tiny", BASE).layers)
    assert found["integer"] + found["simulated"] == activated
    assert found["sixteen_bit"] == found["layers"] - activated
    assert arithmetic.expected(plan(place / "tiny", BASE)) is None


def test_channels_cannot_be_integers(place) -> None:
    found = arithmetic.expected(plan(place / "tiny", given("minmax", granularity="channel")))
    assert found is not None
    assert found["integer"] == 0
    assert arithmetic.price(found).startswith("Simulated layers show")
    (reason,) = found["reasons"]
    assert "each channel" in reason


def test_names_and_words() -> None:
    recipe = inputs.with_attention(given("dgq", bits=6), AttentionParams(bits=4))
    assert inputs.suffix(recipe) == "-a6-s4"
    assert inputs.renamed(recipe, BASE).name == "four-a6-s4"
    assert inputs.in_words(recipe) == (
        "activations 6 bits (dgq), attention scores 4 bits (log), q, k, v 8 bits"
    )
    assert inputs.in_words(BASE) == ""
    other = inputs.with_activations(recipe, "minmax", activations.get("minmax").settings(bits=6))
    named = replace(recipe, name="four-a6-s4")
    assert inputs.renamed(other, named).name == "four-a6-s4-minmax"
    assert inputs.renamed(inputs.with_activations(named, None), named).name == "four-s4"
    own = replace(recipe, name="w4a6")
    assert inputs.renamed(BASE, own).name == "w4a6-a16"


def test_ranges_cost_what_their_calls_cost(place) -> None:
    recipe = inputs.with_ranges(given("dgq"), RangeParams(prompts=3, steps=5, guidance=1.0))
    ready = plan(place / "tiny", recipe)
    stages = costs.stages(ready, 0)
    assert list(stages) == ["plan", "load", "encode", "record", "ranges"]
    calls = 15 * costs.call_seconds(ready.component, 0)
    assert stages["record"] == pytest.approx(1.0 + calls)
    assert stages["ranges"] == pytest.approx(2 * calls)  # the same calls, watched
    smooth = plan(place / "tiny", inputs.with_ranges(given("smooth"), recipe.ranges))
    assert costs.stages(smooth, 0)["ranges"] == pytest.approx(2 * stages["ranges"])
    assert "ranges" not in costs.stages(plan(place / "tiny", given("dynamic")), 0)


def test_a_run_says_how_it_was_computed(place, tmp_path) -> None:
    recipe = replace(given("dynamic"), attention=AttentionParams(bits=6))
    asked = CompressRequest(
        model=str(place / "tiny"), recipe=recipe, name="a8", output=str(tmp_path / "a8")
    )
    cache = WarmPipelines()
    made = compress.execute(asked, cache=cache)
    json.dumps(made, allow_nan=False)
    assert made["activations"] == inputs.in_words(recipe)
    assert made["arithmetic"] is not None
    assert read_json(tmp_path / "a8" / "recipe.json") == recipe.to_json()
    drawn = compare.execute(
        CompareRequest(
            model=str(place / "tiny"), variants=(str(tmp_path / "a8"),), prompt="a", steps=1
        ),
        tmp_path,
        cache=cache,
    )
    assert drawn["reference"]["arithmetic"] is None
    (picture,) = drawn["variants"]
    assert picture["activations"] == made["activations"]
    assert picture["arithmetic"] == made["arithmetic"]
    assert made["predicted_bytes"] == made["measured_bytes"]


def test_small_layers_of_the_embedded_model_keep_their_input_and_it_is_said() -> None:
    ready = plan("demo", "w8a8")
    spared = [planned for planned in ready.layers if planned.spared]
    assert spared
    assert len(spared) + len(ready.activated) == len(ready.quantized)
    found = arithmetic.expected(ready)
    assert found is not None
    assert found["integer"] == len(ready.activated)
    assert f"{len(spared)} of them so small that 8 bits are no faster" in arithmetic.in_words(found)
