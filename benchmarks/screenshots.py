"""Photographs the studio for the README: python -m benchmarks.screenshots.

Starts the real page on a fresh workspace, compresses the embedded model, draws a comparison and
keeps what a person would see in `assets/screenshots/`. Needs playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "assets" / "screenshots"
PORT = 7931
PROMPT = "a small yellow star right of a large purple triangle on a dotted mint background"
PATIENCE = 600_000  # milliseconds


def photograph(page: Page) -> None:
    """Compresses, compares and keeps the pictures."""
    page.goto(f"http://127.0.0.1:{PORT}/?__theme=dark")
    page.locator("#vq-compress").click()
    page.locator(".vq-result").wait_for()
    page.locator("#vq-first .vq-image-b").wait_for()
    page.evaluate("scrollTo(0, 0)")  # the button that was pressed is below the fold
    page.screenshot(path=TARGET / "compress.png")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#vq-prompt textarea").fill(PROMPT)
    page.locator("#vq-draw").click()
    page.locator("#vq-compare-stage [data-shown-run]").wait_for()
    page.wait_for_timeout(1500)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=TARGET / "compare.png")


def main() -> None:
    """Rewrites `assets/screenshots/`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no chromium")
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        command = [sys.executable, "app.py", "--port", str(PORT), "--workspace", f"{name}/w"]
        server = subprocess.Popen(
            command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            print(server.stdout.readline().strip())
            context = playwright.chromium.launch_persistent_context(
                f"{name}/profile",
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu"],
                viewport={"width": 1440, "height": 900},
            )
            context.set_default_timeout(PATIENCE)
            photograph(context.pages[0])
            context.close()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
