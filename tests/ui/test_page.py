"""The page in headless Chromium: compress, cancel, compare, reload, keys, phone, dark, contrast."""

from __future__ import annotations

import hashlib
import re
import time

import pytest

from tests.ui.conftest import photograph, visit
from vqdq.jobs.requests import CompressRequest

pytestmark = pytest.mark.browser


def wait_until(tab, condition, seconds: float = 60) -> None:
    """Waits while the browser lives on; `condition` is a function without arguments."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            status = tab.locator("#vq-status").all_inner_texts()
            raise AssertionError(f"it did not happen in time: {tab.title()!r}, {status}")
        tab.wait_for_timeout(100)


def open_tab(tab, name: str) -> None:
    tab.get_by_role("tab", name=name).click()


@pytest.fixture(scope="module")
def model(studio) -> str:
    """A compressed model in the workspace."""
    from vqdq.ui.desk import Desk

    desk = Desk(studio.workspace, "demo")
    name = "ready-made"
    run = studio.workspace.submit(
        CompressRequest(model="demo", recipe=desk.preset("trellis-3bit"), name=name)
    )
    end = time.monotonic() + 90
    while studio.workspace.run(run).state != "done":
        assert time.monotonic() < end, studio.workspace.run(run)
        time.sleep(0.1)
    return name


def ask(tab, prompt: str) -> None:
    """Presses Draw."""
    open_tab(tab, "Compare")
    tab.locator("#vq-prompt textarea").fill(prompt)
    tab.locator("#vq-draw").click()


def draw(tab, prompt: str) -> None:
    """Presses Draw and waits for the new pictures."""
    open_tab(tab, "Compare")
    before = shown(tab)
    ask(tab, prompt)
    wait_until(tab, lambda: shown(tab) not in (before, None))


def shown(tab) -> str | None:
    """The comparison on the light table."""
    found = tab.locator("#vq-compare-stage [data-shown-run]")
    return found.first.get_attribute("data-shown-run") if found.count() else None


def test_first_screen_offers_one_action_and_exact_sizes(tab, studio) -> None:
    visit(tab, studio)
    button = tab.locator("#vq-compress")
    size = re.fullmatch(r"Compress to (\S+ MB)", button.inner_text().strip())
    assert size, button.inner_text()
    assert tab.locator(".vq-goal[aria-pressed=true]").inner_text().splitlines()[1] == size[1]
    assert tab.locator("#vq-outlook .vq-chip-estimated").count() == 2
    assert tab.locator("button.primary:visible").count() == 1
    assert tab.evaluate("document.fonts.size") == 0  # the system's own type only


def test_settings_change_the_prediction_and_bad_ones_say_why(tab, studio) -> None:
    visit(tab, studio)
    button = tab.locator("#vq-compress")
    before = button.inner_text()
    tab.locator(".vq-goal[data-goal=trellis-2bit]").click()
    wait_until(tab, lambda: button.inner_text() != before)
    assert tab.locator(".vq-goal[aria-pressed=true]").get_attribute("data-goal") == "trellis-2bit"
    tab.get_by_role("button", name="Layer rules").click()
    lines = tab.locator("#vq-rule-lines textarea")
    lines.fill("conv_in = trelis bits=3")
    fault = tab.locator("#vq-outlook .vq-fault")
    fault.wait_for()
    assert "line 1" in fault.inner_text()
    assert 'Did you mean "trellis"?' in fault.inner_text()
    assert button.is_disabled()
    lines.fill("conv_in = keep")
    wait_until(tab, lambda: "conv_out" in "".join(fault.all_inner_texts()))  # it fits no trellis
    lines.fill("conv_*t = keep\nconv_in = keep")
    wait_until(tab, lambda: button.is_enabled())
    assert lines.input_value() == "conv_*t = keep\nconv_in = keep"  # what was typed stays


def test_a_failed_job_says_what_where_and_what_to_do(tab, studio) -> None:
    visit(tab, studio)
    tab.get_by_role("button", name="Advanced settings").click()
    tab.locator("#vq-name textarea, #vq-name input").fill("broken-one")
    tab.locator("#vq-compress").click()
    fault = tab.locator("#vq-status .vq-fault")
    fault.wait_for()
    words = fault.inner_text()
    assert "NaN or infinite" in words
    assert "use another one" in words
    assert "Finished layers are kept" in words
    photograph(tab, "failed")
    fault.get_by_role("button", name="Dismiss").click()
    tab.locator("#vq-status .vq-welcome").wait_for()


@pytest.mark.usefixtures("model")
def test_a_name_that_exists_or_cannot_be_one_is_refused_in_place(tab, studio) -> None:
    visit(tab, studio)
    tab.get_by_role("button", name="Advanced settings").click()
    name = tab.locator("#vq-name textarea, #vq-name input")
    for wrong, words in (("ready-made", "exists"), ("../up <b>", "cannot be the name")):
        name.fill(wrong)
        tab.locator("#vq-compress").click()
        fault = tab.locator("#vq-compress-fault .vq-fault")
        wait_until(tab, lambda fault=fault, words=words: words in "".join(fault.all_inner_texts()))
        assert name.input_value() == wrong
    assert not (studio.workspace.path / "up").exists()


@pytest.mark.usefixtures("model")
def test_compare_draws_and_serves_the_very_bytes_on_the_disk(tab, studio) -> None:
    visit(tab, studio)
    draw(tab, "a large pink heart on a plain navy background")
    run = studio.workspace.runs("compare")[0]
    for image in tab.locator("#vq-compare-stage img").all():
        address = image.get_attribute("src")
        served = tab.request.get(f"{studio.url}{address}").body()
        name = address.rsplit("/", 1)[-1]
        assert served[:8] == b"\x89PNG\r\n\x1a\n"
        disk = (run.folder / name).read_bytes()
        assert hashlib.sha256(served).digest() == hashlib.sha256(disk).digest()
    beside = tab.locator("#vq-compare-numbers")
    wait_until(tab, lambda: "29.4 dB" in beside.inner_text())
    numbers = beside.inner_text()
    assert "0.951" in numbers
    assert "sizes" in numbers  # the one attribute that the picture misses
    tab.reload()
    wait_until(tab, lambda: shown(tab) == run.id)  # the address names tab and run
    assert tab.locator("#vq-gallery .vq-card").count() >= 1


@pytest.mark.usefixtures("model")
def test_keys_move_the_divider_flip_and_open_tabs_and_help(tab, studio) -> None:
    visit(tab, studio)
    draw(tab, "a large green ring on a dotted grey background")
    stage = tab.locator("#vq-compare-stage .vq-table")
    split = tab.locator("#vq-compare-stage .vq-split")
    split.focus()
    start = int(split.input_value())
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert int(split.input_value()) > start
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("Space")
    assert stage.get_attribute("data-mode") == "blink"
    assert stage.get_attribute("data-flipped") == "true"
    tab.keyboard.press("ArrowLeft")
    assert stage.get_attribute("data-mode") == "slider"
    tab.keyboard.press("6")
    assert tab.get_by_role("tab", name="Runs").get_attribute("aria-selected") == "true"
    tab.keyboard.press("?")
    assert tab.locator("dialog.vq-help").is_visible()
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog.vq-help").is_visible()
    tab.keyboard.press("1")
    assert tab.get_by_role("tab", name="Compress").get_attribute("aria-selected") == "true"


BAD_INPUT = (
    ("", "7", ("prompt", "is empty")),
    ("a red ring " * 1000, "7", ("prompt", "11,000 characters")),
    ("a large green ring on a dotted grey background", "-1", ("seed", "-1 is out of range")),
    ("a large green ring on a dotted grey background", str(2**64), ("seed", "184467")),
)


@pytest.mark.usefixtures("model")
def test_bad_input_is_refused_in_place_and_kept(tab, studio) -> None:
    visit(tab, studio)
    count = len(studio.workspace.runs("compare"))
    open_tab(tab, "Compare")
    fault = tab.locator("#vq-compare-fault .vq-fault")
    for prompt, seed, words in BAD_INPUT:
        tab.locator("#vq-seed input").fill(seed)
        ask(tab, prompt)
        wait_until(
            tab,
            lambda words=words: all(word in "".join(fault.all_inner_texts()) for word in words),
        )
        assert tab.locator("#vq-prompt textarea").input_value() == prompt
    assert len(studio.workspace.runs("compare")) == count


def test_an_address_brings_settings_back(tab, studio) -> None:
    visit(tab, studio, "?rules=conv_*+%3D+keep%0A*+%3D+uniform+bits%3D5&seed=3")
    tab.locator("#vq-method input").wait_for()
    wait_until(tab, lambda: tab.locator("#vq-method input").input_value() != "Trellis")
    tab.get_by_role("button", name="Layer rules").click()
    assert tab.locator("#vq-rule-lines textarea").input_value() == "conv_* = keep"
    tab.locator(".vq-goal[data-goal=trellis-2bit]").click()
    wait_until(tab, lambda: "recipe=trellis-2bit" in tab.url and "rules" not in tab.url)
    tab.reload()
    wait_until(
        tab, lambda: tab.locator(".vq-goal[data-goal=trellis-2bit][aria-pressed=true]").count() == 1
    )


@pytest.mark.usefixtures("model")
def test_words_that_look_like_markup_stay_words(tab, studio) -> None:
    visit(tab, studio)
    prompt = '<img src=x onerror="window.hacked=1"> 🐈 & "quotes"'
    draw(tab, prompt)
    wait_until(tab, lambda: "onerror" in tab.locator("#vq-gallery").inner_text())
    assert prompt in tab.locator("#vq-compare-stage .vq-image-a").get_attribute("alt")
    assert tab.evaluate("window.hacked") is None


def grave_faults(tab) -> list[object]:
    """What axe finds serious or critical, with the elements."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (item["id"], [node["target"] for node in item["nodes"]][:4])
        for item in Axe().run(tab).response["violations"]
        if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_fits_a_desk_and_a_phone_and_passes_axe(tab, studio, theme) -> None:
    visit(tab, studio, f"?__theme={theme}")
    assert tab.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    for width, height in ((1440, 900), (390, 844)):
        tab.set_viewport_size({"width": width, "height": height})
        for name in ("Compress", "Compare", "Runs"):
            open_tab(tab, name)
            tab.wait_for_timeout(300)
            photograph(tab, f"{name.lower()}-{theme}-{width}")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
            assert grave_faults(tab) == [], (name, width)


def test_the_mode_is_remembered(tab, studio) -> None:
    visit(tab, studio)
    dark = tab.evaluate("document.body.classList.contains('dark')")
    tab.locator("[data-theme-toggle]").click()
    assert tab.evaluate("document.body.classList.contains('dark')") != dark
    tab.reload()
    tab.wait_for_selector("#vq-compress")
    wait_until(tab, lambda: tab.evaluate("document.body.classList.contains('dark')") != dark)
    tab.evaluate("localStorage.removeItem('vqdq-theme')")
