"""What must not be lost: reloads, closed tabs, cancels, two people, and kill -9 of the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.ui.conftest import visit
from tests.ui.test_page import draw, open_tab, shown, wait_until
from vqdq.jobs.requests import CompressRequest
from vqdq.ui.desk import Desk

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


@pytest.fixture
def slow(studio):
    """While it is there, a layer takes a third of a second."""
    mark = studio.workspace.path / "slow"
    mark.touch()
    yield mark
    mark.unlink(missing_ok=True)


def test_a_reload_and_a_closed_tab_find_their_job_again(tab, browser, studio, slow) -> None:
    visit(tab, studio)
    tab.locator("#vq-compress").click()
    bar = tab.locator("#vq-status [role=progressbar]")
    bar.wait_for()
    wait_until(tab, lambda: "%" in tab.title())
    run = studio.workspace.active()
    tab.reload()
    bar.wait_for()
    tab.goto("about:blank")  # as good as closed: the server is left alone with the job
    assert studio.workspace.run(run.id).state == "running"
    other = browser.new_page()
    visit(other, studio)
    other.locator("#vq-status [role=progressbar]").wait_for()
    slow.unlink()
    other.locator(".vq-result").wait_for()
    done = studio.workspace.run(run.id)
    assert done.state == "done"
    assert "instead of" in other.locator(".vq-result").inner_text()
    assert other.locator("#vq-layers tbody tr").count() == len(done.result["layers"])
    wait_until(other, lambda: other.title() == "VQDQ")
    other.close()


def test_cancel_stops_within_two_seconds_and_leaves_nothing_half_written(tab, studio, slow) -> None:
    visit(tab, studio)
    tab.locator("#vq-compress").click()
    cancel = tab.locator("#vq-status [data-act=cancel]")
    cancel.wait_for()
    wait_until(tab, lambda: studio.workspace.active().state == "running")
    run = studio.workspace.active()
    before = studio.workspace.run(run.id).done
    cancel.click()
    wait_until(tab, lambda: studio.workspace.run(run.id).state == "cancelled")
    # Two seconds and the click's way, counted in layers of 0.3 s, which a busy machine prolongs.
    assert studio.workspace.run(run.id).done - before <= 13
    slow.unlink()
    tab.locator("#vq-status [data-act=resume]").wait_for()
    assert not (studio.workspace.models_folder / run.request.name).exists()
    tab.locator("#vq-status [data-act=resume]").click()
    wait_until(tab, lambda: studio.workspace.run(run.id).state == "done")
    tab.locator(".vq-result").wait_for()


def test_nothing_can_be_started_before_the_page_has_arrived(tab, studio) -> None:
    held, open_now = [], []

    def hold(route) -> None:
        if open_now:
            route.continue_()
        else:
            held.append(route)

    tab.route("**/queue/join*", hold)
    tab.goto(studio.url)
    button = tab.locator("#vq-compress")
    button.wait_for()
    wait_until(tab, lambda: held != [])
    assert button.is_disabled()
    open_now.append(True)
    for route in held:
        route.continue_()
    tab.wait_for_selector("#vq-compress:not([disabled])")
    assert tab.locator(".vq-pill").count() == 1
    tab.unroute_all(behavior="ignoreErrors")


def test_two_people_on_one_server_see_their_own_results(tab, browser, studio) -> None:
    other = browser.new_page()
    for page, prompt in (
        (tab, "a large red ring on a plain sand background"),
        (other, "a small teal heart on a plain navy background"),
    ):
        visit(page, studio)
        draw(page, prompt)
    mine, theirs = shown(tab), shown(other)
    assert mine != theirs
    assert studio.workspace.run(mine).request.prompt.startswith("a large red ring")
    tab.wait_for_timeout(1500)
    assert (shown(tab), shown(other)) == (mine, theirs)
    other.close()


def serve(folder: Path, port: int) -> subprocess.Popen[str]:
    """A server in a process of its own, ready."""
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.ui.serve", str(folder), str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert made.stdout is not None
    for line in made.stdout:
        if line.strip() == "ready":
            return made
    raise AssertionError("the server did not start")


def test_kill_9_of_the_server_loses_nothing(browser, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, url = tmp_path / "space", f"http://127.0.0.1:{port}/"
    server = serve(folder, port)
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).netloc))
    try:
        page.goto(url)
        page.wait_for_selector("#vq-compress:not([disabled])")
        (folder / "slow").touch()
        page.locator("#vq-compress").click()
        wait_until(page, lambda: "%" in page.title(), seconds=180)  # a cold worker loads torch
        server.send_signal(signal.SIGKILL)
        server.wait()
        page.get_by_text("The studio was closed").wait_for()
        (folder / "slow").unlink()
        server = serve(folder, port)
        again = page.locator("#vq-status [data-act=resume]")
        again.wait_for()  # the page came back by itself
        open_tab(page, "Runs")
        page.locator(".vq-state-interrupted").wait_for()
        open_tab(page, "Compress")
        errors: list[str] = []
        page.on("console", lambda told: told.type == "error" and errors.append(told.text))
        again.click()
        page.locator(".vq-result").wait_for()
        assert errors == []
        assert set(asked) <= {f"127.0.0.1:{port}", ""}
    finally:
        page.goto("about:blank")
        page.close()
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def test_a_link_to_a_run_works_after_a_restart(tab, studio) -> None:
    desk = Desk(studio.workspace, "demo")
    run = studio.workspace.submit(
        CompressRequest(model="demo", recipe=desk.preset("trellis-2bit"), name="linked")
    )
    end = time.monotonic() + 60
    while studio.workspace.run(run).state != "done":
        assert time.monotonic() < end
        time.sleep(0.1)
    studio.workspace.reindex()  # all that a restart knows is in the files
    visit(tab, studio, f"?tab=compress&run={run}")
    tab.locator(".vq-result").wait_for()
    wait_until(tab, lambda: "linked" in tab.locator("#vq-status").inner_text())
