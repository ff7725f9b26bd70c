"""The light table in the browser: every mode, zoom, the certificate, a batch; all of it stays."""

from __future__ import annotations

import pytest

from tests.ui.conftest import visit
from tests.ui.test_page import grave_faults, open_tab, photograph, shown, wait_until
from vqdq.jobs.run import FINISHED
from vqdq.ui import compare
from vqdq.ui.desk import Desk

pytestmark = pytest.mark.browser
PROMPT = "a large red ring on a dotted grey background"


@pytest.fixture(scope="module")
def variants(studio) -> tuple[str, ...]:
    """Four compressed models that can be chosen."""
    names = tuple(f"variant-{number}" for number in range(4))
    for name in names:
        folder = studio.workspace.models_folder / name
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    return names


def finished(studio, run: str, tab) -> None:
    wait_until(tab, lambda: studio.workspace.run(run).state in FINISHED)
    assert studio.workspace.run(run).state == "done", studio.workspace.run(run).error


def style(root, name: str) -> float:
    return float(root.evaluate(f"node => node.style.getPropertyValue('{name}')"))


def test_every_mode_keeps_its_state_when_another_comparison_arrives(tab, studio, variants) -> None:
    desk = Desk(studio.workspace, "demo")
    run = compare.submit(desk, PROMPT, 7, variants, 4, floor=True)
    visit(tab, studio, f"?tab=compare&run={run}")
    finished(studio, run, tab)
    wait_until(tab, lambda: shown(tab) == run)
    root = tab.locator("#vq-compare-stage .vq-table")
    pane = root.locator(".vq-pane-main")
    numbers = tab.locator("#vq-compare-numbers")
    modes = root.locator(".vq-mode[data-mode]")
    for mode in ("side", "difference", "flip", "blink", "loupe"):
        root.locator(f".vq-mode[data-mode={mode}]").click()
        assert root.get_attribute("data-mode") == mode
        assert [button.get_attribute("aria-pressed") for button in modes.all()].count("true") == 1
        if mode in ("blink", "loupe"):  # those with controls of their own
            assert grave_faults(tab) == [], mode
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1440
    # loupe: arrows move the lens by 2 %, + enlarges it
    before = style(root, "--vq-lx")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    assert style(root, "--vq-lx") == pytest.approx(before + 0.02)
    tab.keyboard.press("+")
    assert style(root, "--vq-m") == pytest.approx(5.6)
    assert pane.locator(".vq-lens").is_visible()
    # side by side: five squares, one view; zoom at the pointer, 16 at most
    root.locator(".vq-mode[data-mode=side]").click()
    assert root.locator(".vq-pane:visible").count() == 5
    box = pane.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    tab.wait_for_timeout(350)  # a page that is being scrolled is not zoomed
    tab.mouse.wheel(0, -120)
    wait_until(tab, lambda: style(root, "--vq-zoom") > 1)
    zoom = style(root, "--vq-zoom")
    assert style(root, "--vq-x") == pytest.approx(0.25 * (1 - zoom), rel=0.02)
    transforms = {
        image.evaluate("node => getComputedStyle(node).transform.replace(/-?[0-9.]+/g, Math.round)")
        for image in root.locator(".vq-pane-side .vq-image").all()
    }
    assert len(transforms) == 1
    for _ in range(12):
        tab.keyboard.press("+")
    assert style(root, "--vq-zoom") == 16
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    tab.mouse.up()
    moved = style(root, "--vq-x")
    assert -15 <= moved <= 0
    # ] chooses the next variant, everywhere
    tab.keyboard.press("]")
    assert root.get_attribute("data-chosen") == "1"
    assert numbers.locator("thead .vq-of:visible").all_inner_texts() == ["variant-1"]
    assert "61.7 dB" in numbers.inner_text()
    assert "8.20 times as much to the eye" in numbers.inner_text()
    term = numbers.get_by_role("button", name="FLIP")
    term.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#vq-means-flip").is_visible()
    tab.keyboard.press("Escape")
    # a new comparison changes the pictures and nothing else
    height = tab.evaluate("document.querySelector('#vq-compare-stage').offsetHeight")
    newer = compare.submit(desk, f"{PROMPT} forged", 8, variants, 4)
    finished(studio, newer, tab)
    tab.locator(f"#vq-gallery [data-run='{newer}']").click()
    wait_until(tab, lambda: shown(tab) == newer)
    wait_until(tab, lambda: root.get_attribute("data-chosen") == "1")
    assert root.get_attribute("data-mode") == "side"
    assert (style(root, "--vq-zoom"), style(root, "--vq-x")) == (16, moved)
    assert tab.evaluate("document.querySelector('#vq-compare-stage').offsetHeight") == height
    # its variants started from other noise: said in red
    alert = numbers.get_by_role("alert")
    alert.wait_for()
    assert alert.locator("li").all_inner_texts() == [
        f"{name}: the picture started from other noise." for name in variants
    ]
    tab.keyboard.press("0")
    assert style(root, "--vq-zoom") == 1


def test_blink_stands_still_for_people_who_want_calm(tab, studio, variants) -> None:
    tab.emulate_media(reduced_motion="reduce")
    visit(tab, studio, "?tab=compare")
    run = compare.submit(Desk(studio.workspace, "demo"), PROMPT, 9, variants[:1], 4)
    finished(studio, run, tab)
    wait_until(tab, lambda: shown(tab) == run)
    root = tab.locator("#vq-compare-stage .vq-table")
    root.locator(".vq-mode[data-mode=blink]").click()
    assert root.locator("[data-blink]").inner_text() == "Play"
    root.locator(".vq-pane-main").click()
    assert root.get_attribute("data-flipped") == "true"
    tab.emulate_media(reduced_motion="no-preference")
    root.locator("[data-blink]").click()
    wait_until(tab, lambda: root.get_attribute("data-flipped") == "false")
    root.locator("[data-blink]").click()
    assert root.locator("[data-blink]").inner_text() == "Play"


@pytest.mark.usefixtures("variants")
def test_a_batch_is_sorted_and_opens_on_the_light_table(tab, studio) -> None:
    visit(tab, studio, width=390, height=844)
    open_tab(tab, "Compare")
    tab.get_by_role("button", name="Many prompts").click()
    asked = f"{PROMPT}\n\na small blue star, plain\n{PROMPT}\n"
    prompts = tab.locator("#vq-prompts textarea")
    wait_until(tab, lambda: prompts.input_value() != "")  # the examples are there
    prompts.fill(asked)
    tab.wait_for_timeout(300)
    assert prompts.input_value() == asked
    tab.locator("#vq-seeds input, #vq-seeds textarea").fill("1, x")
    tab.locator("#vq-draw-all").click()
    fault = tab.locator("#vq-compare-fault .vq-fault")
    wait_until(tab, lambda: "seeds" in "".join(fault.all_inner_texts()))
    tab.locator(".toast-close").first.click()
    tab.locator("#vq-seeds input, #vq-seeds textarea").fill("1, 2")
    tab.locator("#vq-draw-all").click()
    board = tab.locator("#vq-batch")

    def first() -> str | None:
        return board.locator("button[data-set]").first.get_attribute("data-set")

    wait_until(tab, lambda: board.locator(".vq-sets li").count() == 4)
    run = studio.workspace.runs("compare")[0]
    finished(studio, run.id, tab)
    assert run.request.sets[1][1] == 2
    assert len(run.request.sets) == 4  # the empty line and the repeated one are left out
    wait_until(tab, lambda: first() == "3")
    assert "0.103" in board.locator("tbody tr").first.inner_text()  # median of 0.041 × 1, 2, 3, 4
    board.locator("[data-act=sort][data-by=asked]").click()
    wait_until(tab, lambda: first() == "0")
    board.locator("button[data-set='2']").click()
    main = tab.locator("#vq-compare-stage .vq-image-a")
    wait_until(tab, lambda: "003-reference.png" in main.get_attribute("src"))
    assert "small blue star" in main.get_attribute("alt")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    photograph(tab, "compare-batch-390")
    assert grave_faults(tab) == []
