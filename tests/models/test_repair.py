"""Repairs: exact prices, a recipe that makes them, and what they come to when measured together."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.test_blame import INPUT, PLANTED, RECIPE, calls, found, pipe, variant
from vqdq.errors import UserError
from vqdq.metrics.trajectory import decibel, energy
from vqdq.models.blame import blame
from vqdq.models.blame_report import REGION, BlameReport
from vqdq.models.compressor import compress
from vqdq.models.pipelines import component
from vqdq.models.repair import left_over, measured, repair
from vqdq.models.repair_ways import Repair, choose, repairs
from vqdq.models.trajectory import Trajectories, replay
from vqdq.recipe import Plan, Recipe, resolve

__all__ = ["calls", "found", "pipe", "variant"]


@pytest.fixture(scope="module")
def plan(pipe: Any) -> Plan:
    return resolve(RECIPE, component(pipe))


def test_prices_are_those_of_the_plan(pipe: Any, found: BlameReport, plan: Plan) -> None:
    ways = repairs(found, plan, pipe.unet, bits=(8, 7))
    planned = {item.layer.name: item for item in plan.quantized}
    assert set(ways) == set(found.names)
    for name, of_layer in ways.items():
        own = planned[name]
        for way in of_layer:
            one = repair_of(plan, way)
            stored = one.storage.total_bytes + sum(spec.num_bytes for spec in one.inputs)
            before = own.storage.total_bytes + sum(spec.num_bytes for spec in own.inputs)
            assert way.added_bytes == stored - before
            assert way.estimated == (way.kind == "weight")
        whole = next(way for way in of_layer if way.kind == "whole")
        assert whole.removed == pytest.approx(found.share()[found.names.index(name)])
    assert {way.kind for way in ways[INPUT]} == {"whole", "input", "weight"}
    assert {way.kind for way in ways[PLANTED]} == {"whole", "weight"}
    alone = next(way for way in ways[INPUT] if way.kind == "input")
    place = found.names.index(INPUT)
    part = found.input_removed()[place] / found.removed()[place]
    assert alone.removed == pytest.approx(found.share()[place] * min(1.0, part))
    assert alone.added_bytes == 0  # a dynamic input stores nothing
    # Eight bits leave (2² / 2⁸)² = 2^-12 of the error of two, about: nearly all is removed.
    finer = [way for way in ways[PLANTED] if way.bits == 8]
    assert finer[0].removed == pytest.approx(
        found.share()[found.names.index(PLANTED)] * (1 - 2.0**-12), rel=2e-3
    )
    wrong = resolve(Recipe(name="x", rules=RECIPE.rules[2:]), plan.component)
    with pytest.raises(UserError, match="in another way than the variant"):
        repairs(found, wrong, pipe.unet)


def repair_of(plan: Plan, way: Any) -> Any:
    own = next(item for item in plan.quantized if item.layer.name == way.name)
    recipe = Recipe(name="one", rules=(way.rule(own), *plan.recipe.rules))
    return next(
        item for item in resolve(recipe, plan.component).layers if item.layer.name == way.name
    )


def test_shares_of_all_layers_are_the_error_of_the_variant(found: BlameReport) -> None:
    """The quadratic identity Σ ⟨δ, Σδ⟩ = ‖Σδ‖², up to what the network makes of errors' products;
    every part by its definition."""
    share = found.share()
    assert float(share.sum()) == pytest.approx(1.0, abs=0.15)
    error = found.error[0].sum()
    left, alone = found.repaired[0].sum(axis=0), found.alone[0].sum(axis=0)
    inside = np.abs(left - error + alone) < 2 * np.sqrt(alone * left)  # of Cauchy and Schwarz
    assert inside[[found.names.index(n) for n in (PLANTED, INPUT)]].all()
    assert np.allclose(share[inside], ((error - left + alone) / (2 * error))[inside])
    most = (alone + np.sqrt(alone * left)) / error
    assert (share <= most + 1e-12).all()
    assert set(found.ranked("share")[:2]) == {found.names.index(n) for n in (PLANTED, INPUT)}


def test_the_recipe_makes_what_was_measured(
    pipe: Any, variant: Any, calls: Trajectories, found: BlameReport, plan: Plan
) -> None:
    before = {key: value.clone() for key, value in variant.unet.state_dict().items()}
    for layers, bits, near in ((2, 16, 5.0), (2, 8, 5.0), (1, 16, 1.0), (1, 0, 1.0)):
        made = repair(found, pipe, RECIPE, layers=layers, bits=bits)
        assert made.plan == resolve(made.recipe, plan.component)
        assert made.added_bytes == made.plan.predicted_bytes - plan.predicted_bytes
        stored = sum(way.added_bytes for way in made.repairs)
        header = 1000 * len(made.repairs)
        assert abs(made.added_bytes - stored) < header
        assert made.recipe == Recipe.from_json(json.loads(json.dumps(made.recipe.to_json())))
        assert made.sentence.endswith("dB (predicted).")
        done = measured(made, pipe, variant, calls, calls=3)
        small = compress(pipe, made.recipe)
        places = set(zip(found.steps, found.prompts, strict=True))
        with torch.no_grad():
            parts = [
                energy(replay(small.unet, call), call, calls.guidance)
                for call in calls.calls
                if (call.step, call.prompts[0]) in places
            ]
        after = decibel(sum(p.guided_signal for p in parts), sum(p.guided_error for p in parts))
        assert done.measured_db == pytest.approx(after, abs=1e-3)
        assert done.measured_db == pytest.approx(done.predicted_db, abs=near)
        assert done.gain_db > 0.05
        assert "(measured)" in done.sentence
    assert all(torch.equal(before[key], now) for key, now in variant.unet.state_dict().items())
    assert variant.unet.get_submodule(INPUT).input.enabled
    two = repair(found, pipe, RECIPE, layers=2, bits=16)
    assert {way.name for way in two.repairs} == {PLANTED, INPUT}
    inner = repair(found, pipe, RECIPE, layers=1, bits=0)
    assert [(way.name, way.kind) for way in inner.repairs] == [(INPUT, "input")]
    rule = inner.recipe.rules[0]
    assert (rule.method, rule.activation) == ("uniform", None)
    assert "by the input alone" in inner.sentence


def test_a_budget_is_kept_and_more_is_never_worse(
    pipe: Any, found: BlameReport, plan: Plan
) -> None:
    ways = repairs(found, plan, pipe.unet)
    removed = 0.0
    for budget in (0, 2_000, 20_000, 200_000, 10**7):
        picked = choose(ways, budget_bytes=budget)
        assert sum(way.added_bytes for way in picked) <= budget
        assert len({way.name for way in picked}) == len(picked)
        now = sum(way.removed for way in picked)
        assert now >= removed - 1e-9
        removed = now
        value = [way.removed / max(way.added_bytes, 1) for way in picked]
        assert value == sorted(value, reverse=True)
    few = choose(ways, budget_bytes=10**7, layers=1)
    assert len(few) == 1
    assert few[0].name in (PLANTED, INPUT)
    assert choose({}, layers=3) == ()
    with pytest.raises(UserError, match="nothing limits"):
        choose(ways)
    with pytest.raises(UserError, match="below 0"):
        choose(ways, layers=-1)
    with pytest.raises(UserError, match="no repair fits"):
        repair(found, pipe, RECIPE, layers=0)


def test_what_is_left_of_errors_that_add_up() -> None:
    """Three errors in a plane: every number by hand."""
    vectors = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    whole = vectors.sum(axis=0)
    error = float(whole @ whole)  # 20
    alone = (vectors**2).sum(axis=1)
    repaired = ((whole - vectors) ** 2).sum(axis=1)
    names = ("a", "b", "c")
    found = BlameReport(
        names=names,
        methods=("uniform",) * 3,
        activations=("",) * 3,
        weights=(8,) * 3,
        bytes=(4,) * 3,
        relative_error=np.ones(3),
        estimate=np.full(3, np.nan),
        steps=(0,),
        timesteps=(0.0,),
        prompts=(0,),
        signal=np.array([[100.0]]),
        error=np.array([[error]]),
        repaired=repaired[None, None],
        unrounded=np.full((1, 1, 3), np.nan),
        alone=alone[None, None],
        context={},
    )
    assert found.share() == pytest.approx((vectors @ whole) / error)
    assert found.repair_bytes == (12, 12, 12)

    def way(name: str, removed: float = 1.0) -> Repair:
        share = removed * float(found.share()[names.index(name)])
        return Repair(
            name=name, kind="whole", bits=16, params=None, added_bytes=1, removed=share,
            estimated=False,
        )  # fmt: skip

    assert left_over(found, []) == pytest.approx(1)
    assert left_over(found, [way("a"), way("b"), way("c")]) == 0
    # b is independent of the others: what it leaves is its own square, and with 1 of 6 parts of
    # the lengths nothing is added.
    assert left_over(found, [way("a"), way("c")]) == pytest.approx(4 / 20)
    # a and c are in phase: 3 of a's ⟨δ, Σδ⟩ are products with c, taken off by the part of lengths.
    products = (3 + 3) * (3 + 1) / 6
    assert left_over(found, [way("b")]) == pytest.approx((9 + 1 + products) / 20)
    half = left_over(found, [way("a"), way("b", 0.5), way("c")])
    assert half == pytest.approx(0.5 * 4 / 20)
    few = replace(found, alone=np.where(np.arange(3) == 1, np.nan, found.alone))
    # b was not measured: its part is what the others do not explain, and it stays.
    assert left_over(few, [way("a"), way("c")]) == pytest.approx(4 / 20)


def test_a_region_is_repaired_by_what_the_layers_do_in_it(
    pipe: Any, variant: Any, calls: Trajectories
) -> None:
    mask = torch.zeros(16, 16)
    mask[:, :8] = 1
    seen = blame(pipe, variant, calls, calls=1, worst=4, mask=mask)
    made = repair(seen, pipe, RECIPE, layers=1, bits=16, area=REGION)
    best = max(np.flatnonzero(seen.measured), key=lambda place: seen.share(REGION)[place])
    assert made.repairs[0].name == seen.names[best]
    assert made.before_db == pytest.approx(seen.sqnr_db(REGION))
    done = measured(made, pipe, variant, calls, calls=1, mask=mask)
    # One layer alone was measured already, in the region and in the whole picture.
    assert done.gain_db == pytest.approx(seen.gain_db(REGION)[best], abs=1e-3)
    assert done.everywhere_db == pytest.approx(seen.sqnr_db() + seen.gain_db()[best], abs=1e-3)
