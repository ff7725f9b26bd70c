"""Numbers as people read them."""

from __future__ import annotations

from datetime import datetime

import pytest

from vqdq.ui import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0156, "3.02"),
        (29.41, "29.4"),
        (512.3, "512"),
        (0.951, "0.951"),
        (0, "0"),
        (-17.2, "−17.2"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert wording.digits(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (11_200_000, "11.2 MB"), (2.5e10, "25.0 GB")],
)
def test_sizes_have_units(count: float, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "50 ms"), (0.82, "0.82 s"), (14.4, "14 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


def test_moments_say_the_day_only_when_it_matters() -> None:
    now = datetime(2026, 11, 20, 15, 0)
    assert wording.moment(datetime(2026, 11, 20, 14, 3).timestamp(), now) == "14:03"
    assert wording.moment(datetime(2026, 11, 19, 14, 3).timestamp(), now) == "yesterday 14:03"
    assert wording.moment(datetime(2025, 3, 1, 14, 3).timestamp(), now) == "01 Mar 2025"


def test_unknown_and_infinite_are_said() -> None:
    assert wording.size(None) == wording.duration(None) == "–"
    assert wording.decibels(float("inf")) == "exact"
    assert wording.decibels(29.41) == "29.4 dB"


def test_markup_is_escaped_and_addresses_are_quoted() -> None:
    assert wording.escape("<b>\"&'") == "&lt;b&gt;&quot;&amp;&#x27;"
    assert wording.file_url("/a b/ü?#.png") == "gradio_api/file=/a%20b/%C3%BC%3F%23.png"
    assert wording.shorten("a\n" * 100, 10) == "a a a a a…"
