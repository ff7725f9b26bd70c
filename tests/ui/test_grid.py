"""The Grid tab in a browser: its cost before, cells as they come, faults, one large, a phone."""

from __future__ import annotations

import hashlib

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.ui.conftest import photograph, visit
from tests.ui.test_page import wait_until
from vqdq.jobs import grid_records
from vqdq.jobs.requests import Axis, GridRequest

PROMPTS = (
    "a large red circle on a plain navy background",
    "a small blue ring on a striped mint background",
)
pytestmark = pytest.mark.browser


def pick(tab, name, option):
    """Chooses an entry of a drop-down."""
    tab.locator(f"#{name} input").click()
    tab.get_by_role("option", name=option, exact=True).click()


def asked(*prompts, seeds=(1, 2, 3), **values):
    axes = (Axis(name="seed", values=seeds), Axis(name="prompt", values=prompts or PROMPTS))
    return GridRequest(model="demo", axes=axes, **{"steps": 2} | values)


def finished(workspace, run):
    return workspace.run(run).state == "done"


def serious(tab):
    found = Axe().run(tab, context="#vq-tabs").response["violations"]
    return [item["id"] for item in found if item["impact"] in ("serious", "critical")]


def test_a_grid_from_its_cost_to_one_cell(tab, studio) -> None:
    """What it takes is told, a bad value is refused in words, the cells come, one is looked at."""
    visit(tab, studio, "?tab=grid")
    button, cost = tab.locator("#vq-grid-start"), tab.locator("#vq-grid-cost")
    wait_until(tab, lambda: "Draw 8 pictures · about" in button.inner_text())
    assert "3 models to make first" in cost.inner_text()
    assert cost.locator(".vq-chip-estimated").count() == 1
    pick(tab, "vq-grid-columns", "Seed")
    values = tab.locator("#vq-grid-columns-values input, #vq-grid-columns-values textarea")
    wait_until(tab, lambda: values.input_value() == "1-4")
    values.fill("3-1")
    wait_until(tab, button.is_disabled)
    assert "empty range" in cost.inner_text()
    values.fill("1-300")
    wait_until(tab, lambda: "600 cells" in cost.inner_text())
    values.fill("1-3")
    tab.locator("#vq-grid-prompts-typed textarea").fill("\n".join(PROMPTS))
    wait_until(tab, lambda: "Draw 6 pictures" in button.inner_text())
    button.click()
    tab.locator("#vq-grid-table .vq-cell").first.wait_for()
    cells = tab.locator("#vq-grid-table button.vq-cell")
    wait_until(tab, lambda: cells.count() == 6)
    tab.locator(".vq-grid-done").wait_for()
    run = studio.workspace.runs("grid")[0]
    assert f"run={run.id}" in tab.url
    for at, row in enumerate(run.result["rows"][:2]):
        served = tab.evaluate(
            """async (url) => {
                const bytes = await (await fetch(url)).arrayBuffer();
                const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
                return [...sum].map((b) => b.toString(16).padStart(2, "0")).join("");
            }""",
            cells.nth(at).locator("img").get_attribute("src"),
        )
        assert served == hashlib.sha256((run.folder / row["image"]).read_bytes()).hexdigest()
    assert tab.locator(".vq-cell-lost").all_inner_texts() == ["not what was asked"] * 2
    cells.nth(0).focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("Enter")
    large = tab.locator("dialog.vq-cell-large[open]")
    large.wait_for()
    assert "seed 2" in large.inner_text()
    assert PROMPTS[1] in large.inner_text()
    tab.keyboard.press("ArrowRight")
    wait_until(tab, lambda: large.count() == 1 and "seed 3" in large.locator("h2").inner_text())
    assert "no: background" in large.inner_text()
    assert serious(tab) == []
    large.get_by_role("button", name="Restore these settings").click()
    wait_until(tab, lambda: tab.locator("dialog.vq-cell-large[open]").count() == 0)
    pick(tab, "vq-grid-columns", "Steps")
    seed = tab.locator("#vq-grid-seed input")
    seed.wait_for()
    assert seed.input_value() == "3"
    photograph(tab, "grid")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="Save this page as PNG").click()
    assert saved.value.suggested_filename == "grid-1.png"


def test_a_fault_stays_in_its_cell_and_is_tried_again(tab, studio) -> None:
    yellow = "a small yellow star on a plain sand background"
    run = studio.workspace.submit(asked(PROMPTS[0], yellow, guidance=2.0))
    visit(tab, studio, f"?tab=grid&run={run}", width=390, height=844)
    failed = tab.locator(".vq-cell-failed")
    failed.nth(2).wait_for()
    assert "Not drawn there was not enough memory." in failed.first.inner_text().replace("\n", " ")
    assert "3 of 6 pictures are here" in tab.locator("#vq-grid-status").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    frame = tab.locator(".vq-grid-frame")
    assert frame.evaluate("(f) => f.scrollWidth > f.clientWidth")  # it scrolls in its own frame
    assert serious(tab) == []
    before = {
        row["key"]: row for row in grid_records.read(studio.workspace.run(run).folder).values()
    }
    (studio.workspace.path / "mended").touch()
    failed.first.get_by_role("button", name="Try again").click()
    wait_until(tab, lambda: finished(studio.workspace, run))
    wait_until(tab, lambda: tab.locator("#vq-grid-table button.vq-cell").count() == 6)
    result = studio.workspace.run(run).result
    assert (result["drawn"], result["kept"]) == (3, 3)
    assert all(row in result["rows"] for row in before.values() if row["error"] is None)


def test_cancel_keeps_what_is_drawn_and_a_page_is_turned(tab, studio) -> None:
    slow = studio.workspace.path / "slow"
    request = GridRequest(
        model="demo",
        axes=(
            Axis(name="seed", values=(1, 2)),
            Axis(name="prompt", values=PROMPTS),
            Axis(name="guidance", values=(1, 4)),
        ),
        steps=8,
    )
    slow.touch()
    run = studio.workspace.submit(request)
    visit(tab, studio, f"?tab=grid&run={run}")
    cells = tab.locator("#vq-grid-table button.vq-cell")
    wait_until(tab, lambda: cells.count() >= 1)
    assert "of 8 pictures" in tab.locator("#vq-grid-status").inner_text()
    tab.evaluate("document.querySelector('#vq-grid-status [data-act=cancel]').click()")
    wait_until(tab, lambda: studio.workspace.run(run).state == "cancelled")
    slow.unlink()
    kept = len(list(studio.workspace.run(run).folder.glob("*.png")))
    assert 1 <= kept < 8
    tab.get_by_role("button", name="Go on").click()
    wait_until(tab, lambda: finished(studio.workspace, run))
    assert studio.workspace.run(run).result["kept"] == kept
    first = cells.first.locator("img").get_attribute("src")
    turn = tab.get_by_role("button", name="guidance 4", exact=True)
    turn.click()
    wait_until(tab, lambda: cells.first.locator("img").get_attribute("src") != first)
    assert turn.get_attribute("aria-pressed") == "true"
