"""The Runs tab in the browser: search, name, delete, sizes, pages, and links that open a run."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.ui.conftest import visit
from tests.ui.test_page import grave_faults, wait_until
from vqdq.jobs.draw import save_png
from vqdq.jobs.requests import CompareRequest, CompressRequest, GenerateRequest
from vqdq.jobs.run import write_json
from vqdq.ui import runs
from vqdq.ui.desk import Desk

pytestmark = pytest.mark.browser
PIXEL = (Path(__file__).parents[2] / "assets" / "favicon.png").read_bytes()


def made(workspace, prompt: str, seed: int = 0) -> str:
    """The id of a picture that was drawn long ago, put into the history without a worker."""
    run = f"19700101-000001-generate-{seed:08x}"
    request = GenerateRequest(model="demo", prompt=prompt, seed=seed)
    content = {"id": run, "request": request.to_json(), "state": "done"}
    content |= {"created": 1.0, "queued": 1.0, "started": 1.0, "finished": 2.0, "error": None}
    folder = workspace.runs_folder / run
    folder.mkdir()  # taken in as a restart does: a queued one would be the worker's
    write_json(folder / "run.json", content)
    (folder / "picture.png").write_bytes(PIXEL)
    write_json(folder / "result.json", {"image": "picture.png", "seconds": 0.5})
    return run


@pytest.fixture(scope="module")
def earlier(studio) -> list[str]:
    """Thirty-one old pictures; the first three are called "lost and found"."""
    words = [f"{'lost and found' if n < 3 else 'a red ring'} {n}" for n in range(30)]
    words.append("one <i>picture</i>")
    found = [made(studio.workspace, text, 700 + n) for n, text in enumerate(words)]
    studio.workspace.recover()
    return found


def test_history_finds_names_deletes_and_counts(tab, studio, earlier, monkeypatch) -> None:
    monkeypatch.setattr(runs, "PAGE_LENGTH", 10)
    workspace = studio.workspace
    visit(tab, studio, "?tab=runs")
    rows = tab.locator("#vq-history [data-run-row]")
    wait_until(tab, lambda: rows.count() == 10)
    total = workspace.find(runs.Search(), limit=1)[1]
    assert f"1–10 of {total}" in tab.locator(".vq-pages").inner_text()
    tab.get_by_role("button", name="Older").click()
    wait_until(tab, lambda: "11–20" in tab.locator(".vq-pages").inner_text())
    field = tab.locator("#vq-find").locator("input, textarea")
    field.fill("LOST seed 701")
    wait_until(tab, lambda: rows.count() == 1)
    assert rows.first.get_attribute("data-run-row") == earlier[1]
    tab.get_by_text("Details").click()
    tab.get_by_role("button", name="Rename").click()
    tab.get_by_label("Name of this run").fill("for <b>you</b>")
    tab.keyboard.press("Enter")
    wait_until(tab, lambda: "for <b>you</b>" in rows.first.inner_text())
    assert workspace.run(earlier[1]).name == "for <b>you</b>"
    field.fill("lost")
    wait_until(tab, lambda: rows.count() == 3)
    wait_until(tab, lambda: " kB" in tab.locator(".vq-disk").inner_text())
    tab.get_by_label("All on this page").check()
    rows.first.locator("[data-pick]").uncheck()
    many = tab.locator("[data-delete-chosen]")
    assert many.inner_text().startswith("Delete 2 runs, ")
    many.click()
    assert many.inner_text().endswith("for good?")
    assert workspace.run(earlier[0]).folder.is_dir()
    many.click()
    wait_until(tab, lambda: rows.count() == 1)
    left = [run for run in earlier[:3] if (workspace.runs_folder / run).exists()]
    assert left == [rows.first.get_attribute("data-run-row")]
    row = rows.first
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="for good?").click()
    tab.get_by_text("Nothing is called “lost”.").wait_for()
    field.fill("")
    wait_until(tab, lambda: rows.count() == 10)
    assert grave_faults(tab) == []


def test_a_link_opens_its_run(tab, studio, earlier) -> None:
    visit(tab, studio, f"?tab=runs&run={earlier[-1]}")
    shown = tab.locator("#vq-history [data-shown-run]")
    shown.wait_for()
    assert shown.get_attribute("data-shown-run") == earlier[-1]
    assert "one <i>picture</i>" in shown.inner_text()
    tab.wait_for_timeout(200)
    assert f"run={earlier[-1]}" in tab.url


@pytest.fixture(scope="module")
def compared(studio) -> Iterator[list[str]]:
    """Two models with their recipes, and three comparisons of both."""
    desk = Desk(studio.workspace, "demo")
    names = ["frontier-2bit", "frontier-3bit"]
    runs = [
        studio.workspace.submit(
            CompressRequest(model="demo", recipe=desk.preset(f"trellis-{name[9:]}"), name=name)
        )
        for name in names
    ]
    ended(studio.workspace, runs)
    for name in names:  # what the toy does not write
        recipe = desk.preset(f"trellis-{name[9:]}")
        folder = studio.workspace.models_folder / name
        write_json(folder / "recipe.json", recipe.to_json())
        facts = {"base_model": "demo", "recipe": recipe.name, "recipe_digest": recipe.digest}
        facts |= {"weight_bytes": int(name[9]) * 3_000_000, "reference_bytes": 57_000_000}
        write_json(folder / "vqdq.json", facts | {"bits_per_weight": float(name[9])})
    prompt = "a large red ring on a plain sand background"
    runs = [
        studio.workspace.submit(
            CompareRequest(model="demo", variants=tuple(names), prompt=prompt, seed=n, steps=1)
        )
        for n in range(3)
    ]
    ended(studio.workspace, runs)
    yield runs
    for name in names:  # a grid of another file would take these for models of its recipes
        shutil.rmtree(studio.workspace.models_folder / name)


def ended(workspace, runs: list[str]) -> None:
    end = time.monotonic() + 90
    while any(workspace.run(run).state in ("queued", "running") for run in runs):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {workspace.run(run).state for run in runs} == {"done"}


def test_a_point_of_the_frontier_opens_its_pictures_and_a_report_is_saved(
    tab, studio, compared
) -> None:
    visit(tab, studio, "?tab=runs")
    tab.get_by_role("button", name="Models").click()
    tab.locator("[data-model-row=frontier-3bit]").wait_for()
    tab.get_by_role("button", name="Frontier").click()
    points = tab.locator(".vq-plot-wide .vq-dot")
    wait_until(tab, lambda: points.count() >= 2)
    tab.get_by_role("button", name="SSIM").click()
    wait_until(tab, lambda: "SSIM" in tab.locator(".vq-plot-wide svg").text_content())
    point = tab.locator(".vq-plot-wide .vq-dot[data-name=frontier-3bit]")
    assert point.get_attribute("aria-label").endswith("0.951 at 9.00 MB, n = 3")
    point.press("Enter")
    panel = tab.locator(".vq-panel")
    panel.wait_for()
    assert "29.4 dB" in panel.inner_text()
    assert panel.locator(".vq-card").count() == 3
    panel.get_by_text("Recipe").click()
    assert "# trellis-3bit · seed 0" in panel.locator("pre").inner_text()
    assert grave_faults(tab) == []
    panel.locator(".vq-card").first.click()
    wait_until(tab, lambda: "tab=compare" in tab.url)
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_role("button", name="History").click()
    row = tab.locator(f"[data-run-row='{compared[0]}']")
    row.get_by_text("Details").click()
    with tab.expect_download() as coming:
        row.get_by_role("button", name="Report").click()
    assert coming.value.suggested_filename == f"{compared[0]}.html"
    page = Path(coming.value.path()).read_text()
    assert page.count("data:image/png;base64,") == 7


def test_a_dropped_picture_brings_its_settings_back_or_says_why_not(
    tab, studio, compared, tmp_path
) -> None:
    assert compared
    recipe = Desk(studio.workspace, "demo").preset("trellis-3bit")
    told = {"model": "elsewhere", "base": "demo", "prompt": "a small teal heart", "seed": 4242}
    told |= {"steps": 13, "guidance": 4.5, "recipe": recipe.name, "compression": recipe.to_json()}
    known, other, foreign = (tmp_path / f"{name}.png" for name in ("known", "other", "foreign"))
    save_png(known, Image.new("RGB", (8, 8)), told)
    more = Desk(studio.workspace, "demo").preset("trellis-4bit")
    save_png(other, Image.new("RGB", (8, 8)), told | {"compression": more.to_json()})
    save_png(foreign, Image.new("RGB", (8, 8)))
    visit(tab, studio, "?tab=runs")
    note = tab.locator("#vq-picture-note")
    drop(tab, known)
    wait_until(tab, lambda: "frontier-3bit has this recipe" in "".join(note.all_inner_texts()))
    assert tab.locator("#vq-prompt textarea").input_value() == "a small teal heart"
    assert tab.locator("#vq-seed input").input_value() == "4242"
    chosen = tab.locator("#vq-variants input:checked").locator("xpath=ancestor::label")
    assert [text.split(" ")[0] for text in chosen.all_inner_texts()] == ["frontier-3bit"]
    drop(tab, other)
    note.get_by_role("button", name="Compress it again").wait_for()
    drop(tab, foreign)
    wait_until(tab, lambda: "carries no recipe" in note.inner_text())
    note.get_by_role("button", name="Close").click()
    wait_until(tab, lambda: note.inner_text().strip() == "")


def drop(tab, path: Path) -> None:
    """Drops a file on the page as a person does."""
    data = base64.b64encode(path.read_bytes()).decode()
    tab.evaluate(
        """([data, name]) => {
          const moved = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
          moved.items.add(new File([bytes], name, { type: "image/png" }));
          for (const kind of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(
              new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
        }""",
        [data, path.name],
    )
