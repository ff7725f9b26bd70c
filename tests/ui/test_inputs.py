"""Activations on the Compress tab: the panel, what it asks for, and how a recipe fills it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from tests.ui.conftest import photograph, visit
from tests.ui.test_page import draw, grave_faults, open_tab, wait_until
from vqdq import activations
from vqdq.activations.attention import AttentionParams
from vqdq.calibration import CalibrationParams, RangeParams
from vqdq.errors import UserError
from vqdq.jobs.inputs import with_activations, with_attention
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.store import Workspace
from vqdq.jobs.variants import variant
from vqdq.recipe import Recipe
from vqdq.ui import inputs, links, rules, settings
from vqdq.ui.desk import Desk
from vqdq.ui.settings import Settings, Wish

PRESETS = ("w8a8", "dgq-w4a8", "dgq-w4a6", "w3a8-trellis", "w3a8-fp8")


@pytest.fixture
def desk(tmp_path: Path):
    workspace = Workspace.open(tmp_path / "w")
    yield Desk(workspace, "demo")
    workspace.close()


@pytest.fixture(scope="module")
def panel() -> Settings:
    (general,) = rules.parse("* = trellis")
    with gr.Blocks():
        made = settings.choices(general)
        settings.folds(made, general, (), name="", matches="")
    return made


def held(panel: Settings) -> dict[str, object]:
    return {name: control.value for name, control in panel.controls.items()}


def own(desk: Desk) -> Recipe:
    """A recipe that no preset is: its own ranges, attention, calibration, and a special rule."""
    recipe = replace(desk.preset("dgq-w4a6"), name="own")
    special = rules.parse("*.attn2.* = trellis bits=3 | rotated bits=5\n*.proj_in = half")
    recipe = replace(recipe, rules=(*special, *recipe.rules), ranges=RangeParams(prompts=5))
    recipe = with_attention(recipe, AttentionParams(scores="log2", bits=4, qkv_bits=16))
    return variant(recipe, CalibrationParams(prompts=7), None)


@pytest.mark.parametrize("name", PRESETS)
def test_the_panel_shows_a_preset_and_gives_it_back(desk, panel, name: str) -> None:
    recipe = desk.preset(name)
    after = panel.filled(Wish(recipe=recipe), held(panel))
    assert after["activations"] == rules.split(recipe)[1].activation_params.bits
    assert panel.wish(after).recipe.digest == recipe.digest
    off = panel.filled(Wish(recipe=desk.preset("trellis-3bit")), after)
    assert (off["activations"], off["attention"]) == (inputs.OFF, False)
    assert panel.wish(off).recipe.digest == desk.preset("trellis-3bit").digest


def test_every_setting_goes_through_the_panel_and_the_address(desk, panel) -> None:
    recipe = own(desk)
    back = panel.wish(panel.filled(Wish(recipe=recipe), held(panel))).recipe
    assert back.digest == recipe.digest
    assert back.name == "trellis-4bit-a5-s4-calibrated"
    linked = links.wish_in(desk, dict(parse_qsl(links.link_of(desk, Wish(recipe=recipe)))))
    assert linked is not None
    assert linked.recipe.digest == recipe.digest


@pytest.mark.parametrize("name", activations.names())
def test_every_method_can_be_chosen_at_every_width(panel, name: str) -> None:
    """There are no floats of fewer bits than 8, and they are refused by name."""
    for _, bits in inputs.BITS[1:]:
        values = held(panel) | {"activations": bits, "activation": name}
        if name == "fp8" and bits < 8:
            with pytest.raises(UserError, match=f"{bits} is not offered") as caught:
                panel.wish(values)
            assert caught.value.remedy == "Use one of: 8."
            continue
        general = panel.wish(values).recipe.rules[-1]
        assert (general.activation, general.quantizer().bits) == (name, bits)
        assert general.activation_params == activations.get(name).settings(bits=bits)


def test_ranges_are_asked_for_where_something_needs_them(panel) -> None:
    values = held(panel)
    for change, needed in (
        ({}, False),
        ({"activations": 8, "activation": "dynamic"}, False),
        ({"activations": 8, "activation": "dgq"}, True),
        ({"activations": inputs.OFF, "activation": "dgq"}, False),
        ({"attention": True}, False),
        ({"attention": True, "attention.qkv_method": "dgq"}, True),
        ({"attention": True, "attention.qkv_method": "dgq", "attention.qkv_bits": 16}, False),
        ({"rules": "*.ff.* = trellis | minmax"}, True),
    ):
        entered = values | change
        assert (panel.wish(entered).recipe.ranges is not None) == needed, change
        areas = dict(zip(panel.areas, panel.visibility(entered), strict=True))
        assert areas["ranges"]["visible"] == areas["learning"]["visible"] == needed, change


def test_only_the_chosen_method_is_drawn(panel) -> None:
    entered = held(panel) | {"activations": 6, "activation": "dgq"}
    areas = dict(zip(panel.areas, panel.visibility(entered), strict=True))
    shown = [name for name in areas if name.startswith("input.") and areas[name]["visible"]]
    assert shown == ["input.method", "input.dgq.basic", "input.dgq.deep"]
    assert "input.dynamic.basic" not in areas  # it has no such setting, and leaves no gap
    assert areas["input.method"]["visible"]
    assert not areas["attention"]["visible"]
    assert "input.dgq.bits" not in panel.controls  # the row of buttons is this setting


def test_a_fault_names_the_setting(panel) -> None:
    values = held(panel) | {"activations": 8, "activation": "dgq", "input.dgq.levels": 0}
    with pytest.raises(UserError) as caught:
        panel.wish(values)
    assert "levels" in caught.value.where
    assert "Use 1 to 64" in caught.value.remedy


def test_activations_come_off_again(desk) -> None:
    for name in PRESETS:
        bare = with_attention(with_activations(desk.preset(name), None), None)
        assert bare.ranges is None
        assert not desk.plan(bare).activated


# In the browser


@pytest.mark.browser
def test_activations_are_chosen_compressed_and_said_to_be_integer_or_not(tab, studio) -> None:
    visit(tab, studio)
    panel, outlook = tab.locator("#vq-activations"), tab.locator("#vq-outlook")
    assert outlook.locator(".vq-arithmetic").count() == 0
    panel.get_by_label("8", exact=True).check()
    tab.locator("#vq-activation").wait_for()
    wait_until(tab, lambda: "129 of 137 layers" in outlook.inner_text())
    assert outlook.locator(".vq-arithmetic .vq-chip-estimated").count() == 1
    assert tab.locator("#vq-learning:visible").count() == 0  # nothing to calibrate
    tab.get_by_label("Method for activations").click()
    tab.get_by_role("option", name="Distribution-aware groups").click()
    tab.get_by_text("Groups of channels or pixels that").wait_for()
    tab.get_by_role("button", name="Calibration and fine-tuning").click()
    tab.locator("#vq-ranges-title").wait_for()
    tab.get_by_label("Quantize attention too").check()
    tab.locator("#vq-attention-fold button").first.click()
    tab.get_by_label("Start token apart").wait_for()
    wait_until(tab, lambda: "attention" in outlook.inner_text())
    assert outlook.locator(".vq-chip-simulated").count() == 1
    wait_until(tab, lambda: "attention=" in tab.url and "%7C+dgq" in tab.url)
    for width in (1440, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        photograph(tab, f"activations-{width}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert grave_faults(tab) == []
    address = tab.url
    tab.goto(address)
    wait_until(tab, lambda: tab.get_by_label("Quantize attention too").is_checked())
    assert tab.locator("#vq-activations").get_by_label("8", exact=True).is_checked()
    tab.locator("#vq-compress").click()
    result = tab.locator(".vq-result .vq-arithmetic")
    result.wait_for()
    said = result.inner_text()
    assert "Activations 8 bits (dgq), attention scores 8 bits (log)" in said
    assert result.locator(".vq-chip-measured").count() == 1
    assert "trellis · a8" in (tab.locator("#vq-layers tbody tr").first.text_content() or "")
    request = studio.workspace.runs("compress")[0].request
    assert isinstance(request, CompressRequest)
    assert request.recipe.rules[-1].activation == "dgq"
    assert request.recipe.name == "trellis-3bit-a8-s8"
    open_tab(tab, "Runs")
    row = tab.locator(".vq-run").first
    assert "activations 8 bits (dgq)" in row.inner_text()
    row.get_by_text("Details").click()
    assert "129 of 137 layers run in integer" in row.locator("pre").inner_text()


@pytest.mark.browser
def test_a_preset_fills_the_panel_and_the_comparison_names_its_arithmetic(tab, studio) -> None:
    visit(tab, studio)
    tab.get_by_role("button", name="All recipes").click()
    tab.locator("[data-recipe=dgq-w4a6]").click()
    wait_until(tab, lambda: "recipe=dgq-w4a6" in tab.url)
    assert tab.locator("#vq-activations").get_by_label("6", exact=True).is_checked()
    tab.locator("[data-recipe=w8a8]").click()
    wait_until(tab, lambda: "recipe=w8a8" in tab.url)
    assert not tab.get_by_label("Quantize attention too").is_checked()
    tab.locator("#vq-compress").click()
    tab.locator(".vq-result", has_text="8 bits (dynamic)").wait_for()
    draw(tab, "a large pink heart on a plain navy background")
    numbers = tab.locator("#vq-compare-numbers")
    wait_until(tab, lambda: "integer" in numbers.inner_text())
    assert numbers.locator(".vq-chip-simulated").count() == 2  # layers and attention
    table = numbers.locator("table").first
    assert table.evaluate("e => e.scrollWidth <= e.parentElement.clientWidth")
    assert "137 layers" in numbers.locator(".vq-chip-integer").get_attribute("title")
    assert grave_faults(tab) == []
