"""Calibration, fine-tuning and targets on the Compress tab: from controls to requests and back."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from tests.ui.conftest import photograph, visit
from tests.ui.test_page import grave_faults, wait_until
from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.requests import CompressRequest, PlanRequest
from vqdq.jobs.store import Workspace
from vqdq.jobs.variants import plain, variant
from vqdq.ui import compress, links, recipes, rules, settings
from vqdq.ui.desk import Desk
from vqdq.ui.settings import Aim, Wish


@pytest.fixture
def desk(tmp_path: Path):
    workspace = Workspace.open(tmp_path / "w")
    yield Desk(workspace, "demo")
    workspace.close()


def tuned(desk: Desk) -> Wish:
    recipe = variant(
        desk.preset("vq-2bit"), CalibrationParams(prompts=7, damping=0.5), FinetuneParams(steps=11)
    )
    return Wish(recipe=recipe, aim=Aim(bytes=8_500_000))


# Without a browser


@pytest.mark.parametrize("aim", [None, Aim(bits=2.7), Aim(bytes=8_500_000)])
@pytest.mark.parametrize(
    "name", ["trellis-3bit", "trellis-3bit-tuned", "gptq-4bit", "w8a8", "dgq-w4a6"]
)
def test_an_address_holds_every_setting(desk, name: str, aim) -> None:
    wish = Wish(recipe=desk.preset(name), aim=aim)
    linked = links.wish_in(desk, dict(parse_qsl(links.link_of(desk, wish))))
    assert (linked or Wish(recipe=desk.preset("trellis-3bit"))) == wish
    own = tuned(desk)
    again = links.wish_in(desk, dict(parse_qsl(links.link_of(desk, own))))
    assert again is not None
    assert (again.recipe.digest, again.aim) == (own.recipe.digest, own.aim)


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ({"target": "many"}, "target"),
        ({"rules": "* = trellis", "calibrate": "{"}, "calibrate"),
        ({"rules": "* = trellis", "finetune": '{"step": 3}'}, "finetune"),
    ],
)
def test_a_damaged_address_says_where(desk, query, where: str) -> None:
    with pytest.raises(UserError) as caught:
        links.wish_in(desk, query)
    assert caught.value.where == where


def test_controls_show_a_wish_and_give_it_back(desk) -> None:
    start = desk.preset("trellis-3bit")
    special, general = rules.split(start)
    with gr.Blocks():
        made = settings.choices(general)
        settings.folds(made, general, special, name="", matches="")
    values = {name: control.value for name, control in made.controls.items()}
    assert made.wish(values).recipe.digest == start.digest
    for wish in (tuned(desk), Wish(recipe=desk.preset("gptq-4bit"), aim=Aim(bits=3.4))):
        back = made.wish(made.filled(wish, values))
        assert (back.recipe.digest, back.aim) == (wish.recipe.digest, wish.aim)
    values |= {"aim": settings.BITS, "aim_bits": None}
    with pytest.raises(UserError, match="Enter a number"):
        made.wish(values)


def test_other_components_are_asked_for_and_kept_in_the_address(desk) -> None:
    plain = desk.preset("trellis-3bit")
    both = settings.with_others(plain, ["vae", "text_encoder*"])
    plan = desk.plan(both)
    assert [each.component.name for each in plan.others] == ["text_encoder", "vae"]
    assert plan.predicted_bytes == desk.plan(plain).predicted_bytes
    expected = desk.forecast(plan)["bytes"]
    assert expected == plan.predicted_bytes + sum(each.predicted_bytes for each in plan.others)
    query = dict(parse_qsl(links.link_of(desk, Wish(recipe=both))))
    assert links.wish_in(desk, query).recipe.digest == both.digest
    with pytest.raises(UserError, match="cannot be chosen here"):
        settings.with_others(plain, ["tokenizer"])


def test_variants_have_the_names_of_presets(desk) -> None:
    for name in ("trellis-3bit-calibrated", "trellis-3bit-tuned", "vq-3bit-calibrated"):
        recipe = desk.preset(name)
        again = variant(plain(recipe), recipe.calibration, recipe.finetune)
        assert (again.name, again.title, again.digest) == (name, recipe.title, recipe.digest)
    assert plain(desk.preset("trellis-3bit-tuned")).digest == desk.preset("trellis-3bit").digest


def test_every_recipe_is_in_a_group_once(desk) -> None:
    markup = recipes.groups(desk.presets, desk.preset_sizes, "gptq-4bit")
    for name in desk.presets:
        assert markup.count(f'data-recipe="{name}"') == 1
    assert markup.count('aria-pressed="true"') == 1
    assert "<span>3 bits, calibrated</span>" in markup


def test_what_a_method_needs_is_said_before_anything_runs(desk) -> None:
    wish = Wish(recipe=plain(desk.preset("gptq-4bit")))
    seen = compress.foresee(desk, lambda: wish)
    assert not seen.ready
    assert "Switch calibration on" in seen.panel


def test_learning_costs_time_and_says_how_much(desk) -> None:
    stages = desk.estimate(desk.plan(desk.preset("trellis-3bit-tuned"))).stages
    assert list(stages) == ["plan", "load", "record", "calibrate", "encode", "finetune", "save"]
    assert all(seconds > 0 for seconds in stages.values())
    alone = desk.estimate(desk.plan(desk.preset("trellis-3bit"))).stages
    assert list(alone) == ["plan", "encode", "save"]
    assert stages["encode"] > alone["encode"]


def test_stages_are_timed_by_the_journal(tmp_path: Path) -> None:
    lines = [(1.0, "record"), (3.0, "calibrate"), (4.0, "calibrate"), (9.5, "encode"), (9.75, "x")]
    text = "".join(json.dumps({"time": time, "stage": stage}) + "\n" for time, stage in lines)
    (tmp_path / "events.jsonl").write_text(text)
    assert costs.stage_seconds(tmp_path) == {"record": 2.0, "calibrate": 6.5, "encode": 0.25}
    assert costs.stage_seconds(tmp_path / "nowhere") == {}


# In the browser


@pytest.mark.browser
def test_a_calibrated_and_tuned_copy_is_two_presses_away(tab, studio) -> None:
    visit(tab, studio)
    tab.get_by_label("Calibrate on prompts").check()
    tab.get_by_label("Fine-tune afterwards").check()
    wait_until(tab, lambda: "recipe=trellis-3bit-tuned" in tab.url)
    assert tab.locator(".vq-goal[aria-pressed=true]").get_attribute("data-goal") == "trellis-3bit"
    tab.get_by_role("button", name="Calibration and fine-tuning").click()
    tab.get_by_label("Prompt file").wait_for()
    tab.locator("#vq-compress").click()
    tab.locator("#vq-status .vq-way [aria-current=step]").wait_for()
    tab.locator(".vq-result").wait_for()
    said = tab.locator(".vq-result").inner_text()
    assert "calibrated" in said
    assert "fine-tuned (33.1 → 36.2 dB)" in said
    assert "Output error" in tab.locator("#vq-layers thead").first.inner_text()
    request = studio.workspace.runs("compress")[0].request
    assert isinstance(request, CompressRequest)
    assert request.recipe.name == "trellis-3bit-tuned"
    tab.get_by_role("button", name="All recipes").click()
    tab.locator("[data-recipe=rtn-4bit]").click()
    wait_until(tab, lambda: "recipe=rtn-4bit" in tab.url)
    assert not tab.get_by_label("Calibrate on prompts").is_checked()


@pytest.mark.browser
def test_a_target_is_measured_planned_and_compressed(tab, studio) -> None:
    visit(tab, studio)
    button = tab.locator("#vq-compress")
    tab.get_by_label("By average").check()
    wait_until(tab, lambda: button.inner_text().startswith("Measure layers and plan"))
    tab.get_by_label("number input for Bits per weight, on average").fill("2.4")
    wait_until(tab, lambda: "target=2.4bits" in tab.url)
    button.click()
    tab.locator(".vq-plan").first.wait_for()
    wait_until(tab, lambda: button.inner_text().startswith("Compress to"))
    run = studio.workspace.runs("plan")[0]
    assert isinstance(run.request, PlanRequest)
    assert (run.request.bits, run.state) == (2.4, "done")
    assert tab.locator(".vq-strip i").count() == run.result["quantized_layers"]
    assert tab.get_by_label("Bits per weight", exact=True).count() == 0  # of all layers alike
    tab.set_viewport_size({"width": 390, "height": 844})
    photograph(tab, "target-390")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert grave_faults(tab) == []
    button.click()
    tab.locator(".vq-result", has_text="instead of").wait_for()
    made = studio.workspace.runs("compress")[0]
    assert made.request.recipe.to_json() == run.result["recipe"]
    assert made.result["measured_bytes"] == run.result["predicted_bytes"]
