"""One studio for all tests of the page: the real store and worker, a toy engine, one browser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import gradio
import pytest

from vqdq.jobs.store import Workspace
from vqdq.jobs.worker import Worker
from vqdq.models import pipelines
from vqdq.ui import page as studio_page

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROKEN_OFF = ("AbortError", "Connection errored out")  # requests that a reload interrupts
PATIENCE = 60_000  # milliseconds; a loaded machine is slow, not wrong


@dataclass
class Studio:
    url: str
    workspace: Workspace


@dataclass
class Watch:
    """What a page did that it must not do."""

    visits: int = 0
    faults: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


HERE = Path(__file__).parent
THIRD_PARTY = (
    # gradio sums up its queue with options that pandas 3 has deprecated
    "ignore:'future.no_silent_downcasting' is deprecated",
    "ignore:The copy keyword is deprecated",
    # two answers for one list of models that overlap: Gradio checks one against the other's choices
    "ignore:The value passed into gr.Dropdown",
    # what a browser or a client leaves open when the server is closed under it
    "ignore:unclosed:ResourceWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for name in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(name))


@pytest.fixture(scope="session", autouse=True)
def _no_loops_left_behind() -> Iterator[None]:
    """Gradio makes event loops for its locks and leaves them open; Python needs none."""
    patch = pytest.MonkeyPatch()
    patch.setattr(gradio.queueing, "safe_get_lock", asyncio.Lock)
    patch.setattr(gradio.utils, "safe_get_lock", asyncio.Lock)
    patch.setattr(gradio.utils, "safe_get_stop_event", asyncio.Event)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _the_demo_is_read_once() -> Iterator[None]:
    """Every desk asks for the shapes of the embedded model, which never change."""
    patch, read, kept = pytest.MonkeyPatch(), pipelines.component, []

    def component(model):
        if model != pipelines.DEMO:
            return read(model)
        if not kept:
            kept.append(read(model))
        return kept[0]

    patch.setattr(pipelines, "component", component)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    workspace = Workspace.open(tmp_path_factory.mktemp("workspace"))
    worker = Worker(workspace, engine="tests.ui.toy_engine")
    worker.start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = studio_page.build(workspace, "demo")
    options = studio_page.launch_options(workspace, host="127.0.0.1", port=port, auth=None)
    _, url, _ = blocks.launch(prevent_thread_lock=True, **options)
    yield Studio(url=url, workspace=workspace)
    blocks.close(verbose=False)
    worker.stop()
    workspace.close()


@pytest.fixture(scope="session")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=chromium,
            headless=True,
            args=list(FLAGS),
            viewport={"width": 1440, "height": 900},
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


@pytest.fixture
def tab(browser, studio: Studio):
    """A fresh tab that fails the test when it logs an error or asks another host."""
    page = browser.new_page()
    watch = Watch()
    home = urlsplit(studio.url).netloc

    def on_request(request) -> None:
        where = urlsplit(request.url)
        if where.scheme in ("http", "https", "ws", "wss") and where.netloc != home:
            watch.outside.append(request.url)

    def on_console(message) -> None:
        if message.type == "error":
            watch.faults.append(message.text)

    def on_navigation(frame) -> None:
        if frame == page.main_frame:
            watch.visits += 1

    page.on("framenavigated", on_navigation)
    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: watch.faults.append(str(error)))
    yield page
    page.goto("about:blank")
    page.close()
    assert watch.outside == []
    broken_off = [text for text in watch.faults if any(word in text for word in BROKEN_OFF)]
    assert [text for text in watch.faults if text not in broken_off] == []
    assert len(broken_off) <= 3 * (watch.visits - 1), broken_off


def visit(tab, studio: Studio, query: str = "", *, width: int = 1440, height: int = 900) -> None:
    """Opens the page and waits until it is attached to the store."""
    tab.set_viewport_size({"width": width, "height": height})
    tab.goto(f"{studio.url}{query}")
    tab.wait_for_selector("#vq-compress:not([disabled])", state="attached")
    tab.wait_for_selector(".vq-pill", state="attached")  # the first answer of the store arrived


def photograph(tab, name: str) -> None:
    """Keeps a picture of the page for people."""
    ARTIFACTS.mkdir(exist_ok=True)
    tab.screenshot(path=str(ARTIFACTS / f"{name}.png"), full_page=True)
