"""What every test shares: the browser, and the promise that integration runs skip nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.spread import Spread, rank

# Telemetry and network look-ups are off before any library can read its settings.
os.environ.update(
    GRADIO_ANALYTICS_ENABLED="False",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    NO_PROXY="localhost,127.0.0.1",
    OMP_NUM_THREADS="1",  # small tensors: two threads that wait for each other are slower than one
)

if not Path("/dev/nvidiactl").exists():  # Triton reads it once, when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# The same examples each time, at any pace; `--long` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        help="fail instead of skipping when no Chromium is installed",
    )
    parser.addoption("--long", action="store_true", help="run the tests marked long, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        late = [item for item in items if "long" in item.keywords]
        items[:] = [item for item in items if "long" not in item.keywords]
        config.hook.pytest_deselected(items=late)
    items.sort(key=lambda item: rank(item.path))
    if browser_path() is not None:
        return
    reason = f"no browser: none of {', '.join(BROWSERS)} is installed"
    if config.getoption("--require-browser"):
        raise pytest.UsageError(f"{reason}, and --require-browser was given")
    for item in items:
        if "browser" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Spread:
    return Spread(config, log)


def browser_path() -> str | None:
    """Returns the path of an installed Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; tests that use it carry the `browser` mark."""
    path = browser_path()
    assert path is not None
    return path
