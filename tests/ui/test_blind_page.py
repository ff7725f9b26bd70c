"""Voting in a browser: nothing leaks, a kill loses nothing, two at once, results at the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.ui.blind_world import NAMES, add_models, drawn
from tests.ui.conftest import photograph
from vqdq.jobs.store import Workspace
from vqdq.ui import blind_tests
from vqdq.ui import page as studio_page
from vqdq.ui.desk import Desk

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
READY = ".vq-blind-pair[data-ready=true]"
HIDDEN = (*NAMES, "identical", "obvious", "repeat")
ELSEWHERE = """() => {
  const copy = document.documentElement.cloneNode(true);
  const other = [...copy.querySelectorAll('[role=tabpanel]')].filter(
    (one) => !one.querySelector('.vq-blind'));
  other.forEach((one) => one.remove());
  copy.querySelectorAll('script, style').forEach((one) => one.remove());
  return copy.outerHTML + location.href + document.title;
}"""


@pytest.fixture
def desk(tmp_path):
    workspace = Workspace.open(tmp_path / "workspace")
    add_models(workspace)
    made = Desk(workspace, "demo")
    yield made
    made.votes.close()
    workspace.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(desk, port):
    """The page in a process of its own, to be killed."""
    command = [sys.executable, "-m", "tests.ui.blind_world", str(desk.workspace.path), str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def enter(tab, name: str) -> None:
    tab.locator("[data-blind-name]").fill(name)
    tab.keyboard.press("Enter")
    tab.wait_for_selector(READY)


def asked(tab) -> str:
    button = tab.locator(".vq-blind-answers button").first
    return f"{button.get_attribute('data-ballot')} {button.get_attribute('data-question')}"


def answer(tab, key: str) -> None:
    """Presses a key and waits for what comes next."""
    tab.wait_for_selector(READY)
    before = asked(tab)
    tab.keyboard.press(key)
    tab.wait_for_function(
        "(before) => { const one = document.querySelector('.vq-blind-answers button');"
        " return !one || `${one.dataset.ballot} ${one.dataset.question}` !== before; }",
        arg=before,
    )


def test_a_vote_from_the_name_to_the_results(browser, desk, port, server) -> None:
    run = drawn(desk, questions=("match", "overall"), pairs=2, identical=0.5, obvious=0.5)
    test = blind_tests.find(desk, run).test.test
    assert server.stdout.readline() == "ready\n"
    url = f"http://127.0.0.1:{port}/?tab=blind&run={run}"
    tab = browser.new_page()
    heard: list[str] = []
    answers: list[Any] = []
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(url)
    tab.wait_for_selector("[data-blind-name]")
    assert test in tab.locator(".vq-blind-test").inner_text()  # before the first vote
    begun: list[Any] = []  # from now on: what opened the page may still be on its way
    tab.on("request", lambda request: begun.append(request))
    tab.on("requestfinished", lambda request: request in begun and answers.append(request))
    tab.on("request", lambda request: heard.append(request.url + (request.post_data or "")))
    enter(tab, "Ana")
    assert tab.evaluate("document.querySelectorAll('.vq-blind-pair img').length") == 2

    # five keys, none of which opens another tab; undo; a closer look
    first = asked(tab)
    answer(tab, "1")
    answer(tab, "u")
    assert asked(tab) == first
    tab.keyboard.press(" ")
    tab.wait_for_selector(".vq-blind-pair[data-zoom=true]")
    for key in ("ArrowLeft", "=", "b"):
        answer(tab, key)
        shown = tab.evaluate(ELSEWHERE)
        for name in HIDDEN:
            assert name not in shown
    assert tab.locator("#vq-tabs [role=tab][aria-selected=true]").inner_text() == "Blind"
    pictures = [request.response().headers for request in answers if "/sealed/" in request.url]
    told = {(one["content-length"], one["last-modified"], one["etag"]) for one in pictures}
    assert len(pictures) >= 4
    assert len(told) == 1
    for request in answers[:]:
        body = "" if "/sealed/" in request.url else request.response().text()
        heard.append(f"{request.url} {request.response().headers} {body}")
    assert any("Which picture" in text for text in heard)  # the bodies were read
    for name in HIDDEN:
        assert not any(name in text for text in heard), name
    assert [vote.choice for vote in desk.votes.votes(test)] == ["a", "equal", "b"]

    # a reload and a kill lose nothing; the page comes back by itself and goes on
    where = asked(tab)
    tab.reload()
    tab.wait_for_selector(READY)
    assert asked(tab) == where
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    options = studio_page.launch_options(desk.workspace, host="127.0.0.1", port=port, auth=None)
    blocks = studio_page.build(desk.workspace, "demo", desk=desk)
    blocks.launch(prevent_thread_lock=True, **options)
    try:
        tab.goto(url)
        tab.wait_for_selector(READY)
        assert asked(tab) == where
        assert len(desk.votes.votes(test)) == 3
        finish(browser, tab, desk, test, url)
    finally:
        tab.close()
        blocks.close(verbose=False)
    assert faults == []


def finish(browser, tab, desk, test, url) -> None:
    """Ben votes at the same time; Ana goes on to the end and shows the results."""
    ben = browser.new_page()
    ben.set_viewport_size({"width": 390, "height": 844})
    ben.goto(url)
    enter(ben, "Ben")
    assert re.match(r"1 of 5", ben.locator(".vq-blind-bar").inner_text())
    assert "Ana" not in ben.locator("#vq-blind-main").inner_text()
    narrow(ben)
    bar = ben.locator(".vq-blind-answers").bounding_box()
    assert bar["y"] + bar["height"] <= 844 + 1  # within reach of the thumb
    faults_of(ben)
    answer(ben, "s")
    ben.close()
    assert [vote.choice for vote in desk.votes.votes(test, "Ben")] == ["skip"]
    while tab.locator(".vq-blind-answers").count():
        answer(tab, "ArrowRight")
    assert "Thank you, Ana" in tab.locator("#vq-blind-main").inner_text()
    assert len(desk.votes.votes(test, "Ana")) == 10
    tab.locator("[data-act=stop]").click()
    shown = tab.locator("[data-confirm=unblind]")
    shown.click()
    shown.click()
    tab.wait_for_selector(".vq-blind-results")
    words = tab.locator(".vq-blind-results").inner_text()
    assert "basalt" in words  # now they have names
    assert "stopped before everybody had finished" in words
    assert "Ana favoured" in words or "No difference detected" in words
    assert tab.locator(".vq-blind-one").count() == 5
    votes = tab.locator("a[download='votes.csv']").get_attribute("href")
    assert tab.request.get(f"{url.split('?')[0]}{votes}").ok
    faults_of(tab)
    tab.set_viewport_size({"width": 390, "height": 844})
    narrow(tab)
    photograph(tab, "blind-results-phone")
    tab.set_viewport_size({"width": 1440, "height": 900})
    tab.locator(".vq-blind-results [data-act=home]").click()
    tab.wait_for_selector(".vq-blind-card")
    tab.locator("[data-act=make]").click()
    tab.locator("#vq-blind-make").wait_for()
    faults_of(tab)


def narrow(tab) -> None:
    root = "document.documentElement"
    assert tab.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0


def faults_of(tab) -> None:
    """Raises when axe finds something serious in the open tab."""
    found = Axe().run(tab, options={"resultTypes": ["violations"]}).response["violations"]
    bad = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert bad == []
