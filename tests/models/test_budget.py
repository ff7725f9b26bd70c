"""Targets become recipes that meet them to the byte, on a small pipeline with real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests.models import tiny
from vqdq import codecs
from vqdq.codecs.base import InputStats
from vqdq.codecs.feedback import factor
from vqdq.errors import UserError
from vqdq.models import compressor
from vqdq.models.budget import Target, targeted
from vqdq.models.denoisers import denoiser
from vqdq.models.distortion import feedback_gains, rate_setting, rates, relative_error
from vqdq.models.footprint import footprint
from vqdq.models.pipelines import component
from vqdq.models.sensitivity import Effect, Sensitivity
from vqdq.recipe import Recipe, resolve
from vqdq.rules import Rule

Kind = Literal["average_bits", "bytes", "card"]
UNIFORM = codecs.create("uniform", bits=4, clip="absmax").params
RECIPE = Recipe(
    name="small",
    rules=(
        Rule(pattern="conv_in"),
        Rule(pattern="conv_out"),
        Rule(pattern="time_embedding.*"),
        Rule(pattern="*", method="uniform", params=UNIFORM),
    ),
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPipeline:
    made: Any = tiny.pipeline(tmp_path_factory.mktemp("tiny"))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sensitivity(pipeline: DiffusionPipeline) -> Sensitivity:
    """Made up: later layers matter more, by a factor of 10 000 from the first to the last."""
    names = [planned.layer.name for planned in resolve(RECIPE, component(pipeline)).quantized]
    effects = {
        name: Effect(raw=10 ** (4 * place / len(names) - 4), guided=10 ** (4 * place / len(names)))
        for place, name in enumerate(names)
    }
    return Sensitivity(effects=effects, calls=1, probes=1, seed=0)


@pytest.mark.parametrize("bits", [2.7, 3.0, 5.25])
def test_an_average_is_met_closely_and_follows_the_effects(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity, bits: float
) -> None:
    target = Target(kind="average_bits", value=bits)
    found = targeted(pipeline, RECIPE, target, sensitivity=sensitivity)
    assert bits - 0.02 < found.average_bits <= bits
    assert found.plan.bits_per_weight <= bits
    assert found.recipe.name == f"uniform-{found.average_bits:.2f}bit"
    assert found.plan == resolve(found.recipe, component(pipeline))
    assert found.predicted_bytes == found.plan.predicted_bytes
    by_name = {planned.layer.name: planned for planned in found.plan.layers}
    assert by_name["conv_in"].method is None
    assert [row.name for row in found.table] == list(sensitivity.effects)
    for row in found.table:
        planned = by_name[row.name]
        assert (row.method, row.params) == (planned.method, planned.params)
        assert row.bytes == planned.storage.total_bytes
        assert row.loss == pytest.approx(row.effect * row.error)
    half = len(found.table) // 2
    first, last = found.table[:half], found.table[half:]
    mean = [sum(8 * r.bytes for r in part) / sum(r.weights for r in part) for part in (first, last)]
    assert mean[1] > mean[0] + 1


def test_the_recipe_is_an_ordinary_one_and_compresses(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    found = targeted(
        pipeline, RECIPE, Target(kind="average_bits", value=3.3), sensitivity=sensitivity
    )
    again = Recipe.from_json(json.loads(json.dumps(found.recipe.to_json())))
    assert again == found.recipe
    small = compressor.compress(pipeline, again)
    for row in found.table:
        layer: Any = denoiser(small)[1].get_submodule(row.name)
        assert (layer.packed.params if row.method else None) == row.params


@pytest.mark.parametrize("share", [0.2, 0.27, 0.55])
def test_bytes_are_a_promise_about_the_file(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity, share: float
) -> None:
    whole = resolve(RECIPE, component(pipeline)).reference_bytes
    limit = int(share * whole)
    found = targeted(pipeline, RECIPE, Target(kind="bytes", value=limit), sensitivity=sensitivity)
    assert limit * 0.995 < found.predicted_bytes <= limit


def test_a_target_out_of_reach_says_what_can_be_reached(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    smallest = Recipe(
        name="two",
        rules=(
            *RECIPE.rules[:-1],
            Rule(pattern="*", method="uniform", params=codecs.create("uniform", bits=2).params),
        ),
    )
    least = resolve(smallest, component(pipeline))
    with pytest.raises(UserError, match=rf"1\.9 bits .* {least.bits_per_weight:.3f} is the least"):
        targeted(pipeline, RECIPE, Target(kind="average_bits", value=1.9), sensitivity=sensitivity)
    with pytest.raises(UserError, match=r"100 bytes are too few: the file takes at least"):
        targeted(pipeline, RECIPE, Target(kind="bytes", value=100), sensitivity=sensitivity)
    tight = Target(kind="bytes", value=least.predicted_bytes)
    found = targeted(pipeline, RECIPE, tight, sensitivity=sensitivity)
    assert found.predicted_bytes <= tight.value
    card = Target(kind="card", value=1e-4, resolution=16)
    with pytest.raises(UserError, match=r"card is too small.* ESTIMATED"):
        targeted(pipeline, RECIPE, card, sensitivity=sensitivity)


def test_a_card_leaves_the_denoiser_what_the_rest_does_not_take(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    rest = footprint(pipeline, 16)
    parts: Any = pipeline
    others: list[nn.Module] = [parts.vae, parts.text_encoder]
    weights = sum(p.numel() for part in others for p in part.parameters())
    assert rest.components == 2 * weights
    dense = [layer.shape.count for layer in component(pipeline).layers]
    assert rest.largest_layer == 2 * max(dense)
    plan = resolve(RECIPE, component(pipeline))
    gigabytes = (rest.total + plan.predicted_bytes) / 1e9
    target = Target(kind="card", value=gigabytes, resolution=16)
    found = targeted(pipeline, RECIPE, target, sensitivity=sensitivity)
    assert found.footprint == rest
    assert plan.predicted_bytes * 0.99 < found.predicted_bytes <= plan.predicted_bytes
    larger = footprint(pipeline, 64).activations
    assert larger == pytest.approx(16 * rest.activations, rel=0.1)  # the rest is embeddings
    with pytest.raises(UserError, match="17 pixels are no whole number of latents"):
        footprint(pipeline, 17)


def test_everything_may_stay_in_16_bits(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    found = targeted(
        pipeline, RECIPE, Target(kind="average_bits", value=16), sensitivity=sensitivity
    )
    assert all(row.method is None for row in found.table)
    assert found.average_bits == 16.0
    assert found.predicted_sqnr_db == float("inf")


def test_feedback_moves_bits_to_layers_it_cannot_help(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    target = Target(kind="average_bits", value=3.5)
    plain = targeted(pipeline, RECIPE, target, sensitivity=sensitivity)
    helped = max(plain.table, key=lambda row: row.bits_per_weight).name
    again = targeted(pipeline, RECIPE, target, sensitivity=sensitivity, gains={helped: 1e-4})
    bits = [
        next(row.bits_per_weight for row in table if row.name == helped)
        for table in (plain.table, again.table)
    ]
    assert bits[1] < bits[0]


def test_a_layer_that_was_not_measured_is_named(
    pipeline: DiffusionPipeline, sensitivity: Sensitivity
) -> None:
    name = next(iter(sensitivity.effects))
    effects = {key: value for key, value in sensitivity.effects.items() if key != name}
    partial = Sensitivity(effects=effects, calls=1, probes=1, seed=0)
    with pytest.raises(UserError, match=name):
        targeted(pipeline, RECIPE, Target(kind="average_bits", value=4), sensitivity=partial)


def test_it_measures_for_itself(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model", dtype=torch.float32)
    stages: dict[str, int] = {}
    one = Recipe(
        name="one",
        rules=(
            Rule(
                pattern="mid_block.resnets.*",
                method="uniform",
                params=codecs.create("uniform").params,
            ),
        ),
    )
    found = targeted(
        folder,
        one,
        Target(kind="average_bits", value=4.5),
        report=lambda event: stages.update({event.stage: event.done}),
    )
    assert all(row.effect > 0 for row in found.table)
    assert stages.keys() >= {"load", "record", "sensitivity", "distortion"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [("average_bits", 0.0), ("average_bits", 17), ("bytes", -1), ("card", float("nan"))],
)
def test_a_target_out_of_range(
    kind: Literal["average_bits", "bytes", "card"], value: float
) -> None:
    with pytest.raises(UserError, match="out of range"):
        Target(kind=kind, value=value, resolution=64)


def test_a_card_needs_a_resolution() -> None:
    with pytest.raises(UserError, match="size is missing"):
        Target(kind="card", value=8)


def test_every_rate_of_every_method_is_found() -> None:
    expected = {"uniform": range(2, 9), "additive": range(1, 5)}
    for method, values in expected.items():
        setting = rate_setting(codecs.get(method).settings)
        assert setting is not None
        assert rates(setting) == tuple(values)
    trellis = rate_setting(codecs.get("trellis").settings)
    assert trellis is not None
    assert set(rates(trellis)) >= {2, 3, 4}


def test_a_sample_tells_the_error_of_the_whole_weight() -> None:
    """Up to an eighth too little: the range of a row fits 128 columns better than 1728."""
    layer = nn.Conv2d(192, 320, 3)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    for bits, expected in ((2, 0.1188), (3, 0.0374), (4, 0.0115)):
        found = relative_error(layer, codecs.create("uniform", bits=bits))
        assert found == pytest.approx(expected, rel=0.15)
    rows = torch.arange(320)
    wild = layer.weight[200].detach().clone()
    wild[:, 1, 1] *= 30  # one row with a heavy tap: a range for all of it suits none
    with torch.no_grad():
        layer.weight[200] = wild
    coarse = codecs.create("uniform", bits=4, clip="absmax")
    alone = [relative_error(layer, coarse, (rows == row).double().tolist()) for row in (199, 200)]
    evenly = relative_error(layer, coarse, [1 / 320] * 320)
    sampled = torch.linspace(0, 319, 256).round().long().tolist()
    assert {199, 200} <= set(sampled)
    assert alone[1] != pytest.approx(alone[0], rel=0.2)
    each = [relative_error(layer, coarse, (rows == row).double().tolist()) for row in (0, 100, 319)]
    assert evenly == pytest.approx(sum(each) / 3, rel=0.2)
    with torch.no_grad():
        layer.weight.zero_()
    assert relative_error(layer, codecs.create("uniform", bits=2)) == 0.0


def test_the_gain_is_that_of_the_basis_the_codec_rounds_in() -> None:
    module = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(64, 16, bias=False))
    shapes = {"0": module[0], "1": module[1]}
    decay = torch.arange(1, 65).float() ** -1.0
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))[0]
    hessian = (basis * decay) @ basis.T
    shared = InputStats(hessian=hessian, num_samples=1000, damping=0.1)
    from vqdq.layers.surgery import candidates
    from vqdq.recipe import Component
    from vqdq.tensors import TensorSpec

    parts = Component(
        name="unet",
        layers=candidates(module),
        tensors=tuple(TensorSpec.of(k, v) for k, v in module.state_dict().items()),
    )
    method = next(name for name in codecs.names() if codecs.get(name).uses_hessian)
    params = codecs.get(method).settings()
    plan = resolve(
        Recipe(name="x", rules=(Rule(pattern="*", method=method, params=params),)), parts
    )
    found = feedback_gains({"0": shared, "1": shared}, plan.quantized)
    assert set(found) == set(shapes)
    assert found["0"] == found["1"]
    if not getattr(params, "rotation", 0):
        assert found["0"] == pytest.approx(factor(hessian, 0.1).predicted_gain)
    assert 0.1 < found["0"] < 1.0
