"""What was measured of this computer is kept, and what follows from it for a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vqdq.jobs import costs, pace
from vqdq.jobs.pace import Pace, Paces
from vqdq.models import compressor
from vqdq.models.sources import presets_folder
from vqdq.recipe import Plan, load_recipe


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compressor.plan("demo", "trellis-3bit")


def test_a_plan_takes_the_sum_of_its_layers(plan: Plan, tmp_path: Path) -> None:
    method, params = pace.wanted([plan.recipe])[0]
    known = {pace.key(method, params): Pace(layer_seconds=0.01, weight_seconds=1e-6)}
    pace.keep(tmp_path, Paces(known=known))
    kept = pace.read(tmp_path)
    assert kept.known == known
    weights = sum(item.layer.shape.count for item in plan.quantized)
    nothing = Paces(known={next(iter(known)): Pace(layer_seconds=0.0, weight_seconds=0.0)})
    own = costs.encode_seconds(plan, None, kept) - costs.encode_seconds(plan, None, nothing)
    assert own == pytest.approx(0.01 * len(plan.quantized) + 1e-6 * weights)
    text = (tmp_path / pace.FILE).read_text()
    (tmp_path / pace.FILE).write_text(text.replace(pace.computer(), "another"))
    assert pace.read(tmp_path) == Paces()


def test_saving_costs_a_start_and_each_byte(plan: Plan, tmp_path: Path) -> None:
    assert "save" not in costs.stages(plan, 0)
    slow = Paces(known={pace.SAVING: Pace(layer_seconds=2.0, weight_seconds=1e-6)})
    saved = costs.stages(plan, 0, None, slow, copied_bytes=10**6)["save"]
    assert saved == pytest.approx(0.1 + 2.0 + 1.0 + 1e-6 * plan.total_bytes)
    found = pace.measure_saving(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert 0 < found.seconds(0) < found.seconds(10**9)


def test_calls_and_products_have_this_computers_pace() -> None:
    recipe = load_recipe("trellis-3bit-calibrated", presets_folder())
    plan = compressor.plan("demo", recipe)
    weights = sum(layer.shape.count for layer in plan.component.layers)
    params = plan.recipe.calibration
    assert params is not None
    calls = params.prompts * params.steps * 2
    known = {
        pace.CALL: Pace(layer_seconds=0.0, weight_seconds=1e-9),
        pace.PRODUCT: Pace(layer_seconds=0.0, weight_seconds=0.0),
    }
    taken = costs.calibrate_seconds(plan, params, 256, Paces(known=known))  # 4 times the latents
    assert taken["calibrate"] == pytest.approx(4e-9 * weights * calls)  # one pass
    assert taken["record"] - taken["calibrate"] == pytest.approx(1.0)
    slower = known | {pace.PRODUCT: Pace(layer_seconds=0.0, weight_seconds=1e-12)}
    more = costs.calibrate_seconds(plan, params, 256, Paces(known=slower))["calibrate"]
    cubes = sum(item.layer.shape.in_features**3 for item in plan.quantized)
    assert more - taken["calibrate"] == pytest.approx(2e-12 * params.tokens_per_channel * cubes)
    few = replace(params, prompts=1, steps=1, guidance=1.0)
    short = costs.calibrate_seconds(plan, few, 32, Paces(known=slower))["calibrate"]
    # 4 by 4 latents instead of 16 by 16, and no more tokens than these, fewer in deeper layers
    seen = [(item.layer.positions / 16, item.layer.shape.in_features) for item in plan.quantized]
    assert {16, 4, 1} <= {tokens for tokens, _ in seen}
    once = 1e-9 * weights / 16
    assert short == pytest.approx(once + 2e-12 * sum(n * width**2 for n, width in seen))
    found = pace.measure_running()
    assert found.keys() == {pace.CALL, pace.PRODUCT}
    assert all(each.layer_seconds == 0 < each.weight_seconds for each in found.values())


def test_the_faster_measurement_counts() -> None:
    slow, quick = (Pace(layer_seconds=t, weight_seconds=t) for t in (2.0, 1.0))
    assert pace.faster(None, slow) == slow
    assert pace.faster(slow, quick) == pace.faster(quick, slow) == quick


def test_memory_is_the_program_and_the_largest_layer(plan: Plan) -> None:
    largest = max(item.layer.shape.count for item in plan.quantized)
    taken = costs.memory_bytes(plan, 10**9, 10**6)
    assert taken == 10**9 + 50 * 10**6 + 22 * largest
    tuned = compressor.plan("demo", "trellis-3bit-tuned")
    assert costs.memory_bytes(tuned, 10**9, 10**6) > taken + 4 * 10**6
