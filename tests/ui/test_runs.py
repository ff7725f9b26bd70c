"""The Runs tab in the browser: search, name, delete, sizes, pages, and links that open a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.conftest import visit
from tests.ui.test_page import grave_faults, wait_until
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.run import write_json
from vqdq.ui import runs

pytestmark = pytest.mark.browser
PIXEL = (Path(__file__).parents[2] / "assets" / "favicon.png").read_bytes()


def made(workspace, prompt: str, seed: int = 0) -> str:
    """The id of a picture that was drawn long ago, put into the history without a worker."""
    run = workspace.submit(GenerateRequest(model="demo", prompt=prompt, seed=seed))
    content = {"id": run, "request": workspace.run(run).request.to_json(), "state": "done"}
    content |= {"created": 1.0, "queued": 1.0, "started": 1.0, "finished": 2.0, "error": None}
    folder = workspace.runs_folder / run
    write_json(folder / "run.json", content)
    (folder / "picture.png").write_bytes(PIXEL)
    write_json(folder / "result.json", {"image": "picture.png", "seconds": 0.5})
    workspace._index.rows("DELETE FROM runs WHERE id = ?", run)  # taken in as a restart does
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
    many = tab.locator("[data-chosen]")
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
