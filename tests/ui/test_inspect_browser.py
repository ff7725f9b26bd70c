"""A capture in the browser: a cell, a word and a file are clicked; a phone and axe look at it."""

from __future__ import annotations

import socket

import pytest

from tests.ui.captures import done
from tests.ui.conftest import Studio, photograph, visit
from vqdq.jobs.store import Workspace
from vqdq.ui import page


@pytest.fixture
def inside(tmp_path_factory):
    workspace = Workspace.open(tmp_path_factory.mktemp("inspect"))
    run = done(workspace, variants=("small", "smaller"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = page.build(workspace, "demo")
    options = page.launch_options(workspace, host="127.0.0.1", port=port, auth=None)
    _, url, _ = blocks.launch(prevent_thread_lock=True, **options)
    yield Studio(url=url, workspace=workspace), run
    blocks.close(verbose=False)
    workspace.close()


def _grave_faults(tab) -> list[object]:
    from axe_playwright_python.sync_playwright import Axe

    return [
        (item["id"], [node["target"] for node in item["nodes"]][:4])
        for item in Axe().run(tab).response["violations"]
        if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.browser
def test_cells_words_variants_and_files_answer_to_clicks(inside, browser):
    studio, run = inside
    tab = browser.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    visit(tab, studio, f"?tab=inspect&run={run}")

    # The map: the pointer reads a cell, the arrow keys move on, Enter opens layer and step.
    grid = tab.locator(".vq-map-grid")
    box = grid.bounding_box()
    assert box
    grid.hover(position={"x": box["width"] - 2, "y": 2})
    first = grid.get_attribute("data-layer")
    assert f"{first} · step 3" in tab.locator("#vq-map-read").inner_text()
    grid.focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowLeft")
    layer = grid.get_attribute("data-layer")
    assert layer != first
    assert f"{layer} · step 2" in tab.locator("#vq-map-read").inner_text()
    tab.keyboard.press("Enter")
    tab.wait_for_function(
        "name => document.querySelector('#vq-at-layer .vq-layer-name')?.textContent === name",
        arg=layer,
    )
    assert tab.locator("#vq-inspect-layer input").input_value() == layer
    tab.wait_for_function("document.querySelector('.vq-map-grid') === document.activeElement")

    # A part is drawn when its anchor leads there; a word is clicked and keeps the focus.
    tab.locator(".vq-anchors a[data-section=words]").click()
    word = tab.locator("[data-act=word][data-at='0']")
    word.click()
    tab.wait_for_selector("[data-act=word][data-at='0'][aria-pressed=true]")
    labels = tab.locator("#vq-inspect-words svg").all()
    assert any("“red”" in (label.get_attribute("aria-label") or "") for label in labels)
    tab.wait_for_function("document.activeElement.dataset.at === '0'")
    tab.locator("[data-act=variant][data-at='2']").click()
    tab.wait_for_selector("[data-act=variant][data-at='2'][aria-pressed=true]")

    # A file: the numbers of the map.
    with tab.expect_download() as download:
        tab.locator("[data-figure=layer-map][data-as=csv]").click()
    assert download.value.suggested_filename == "layer-map_smaller.csv"
    assert download.value.path().read_text().startswith("layer,step,")

    photograph(tab, "inspect-1440")
    assert _grave_faults(tab) == []
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_selector("#vq-inspect-map .vq-figure[data-narrow=true]")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert _grave_faults(tab) == []
    tab.goto("about:blank")
    tab.close()
    assert faults == []
