"""Numbers as people read them."""

from __future__ import annotations

from datetime import datetime

from vqdq.ui import wording


def test_moments_say_the_day_only_when_it_matters() -> None:
    now = datetime(2026, 11, 20, 15, 0)
    assert wording.moment(datetime(2026, 11, 20, 14, 3).timestamp(), now) == "14:03"
    assert wording.moment(datetime(2026, 11, 19, 14, 3).timestamp(), now) == "yesterday 14:03"
    assert wording.moment(datetime(2025, 3, 1, 14, 3).timestamp(), now) == "01 Mar 2025"


def test_a_level_without_error_is_exact() -> None:
    assert wording.decibels(float("inf")) == "exact"
    assert wording.decibels(29.41) == "29.4 dB"


def test_markup_is_escaped_and_addresses_are_quoted() -> None:
    assert wording.escape("<b>\"&'") == "&lt;b&gt;&quot;&amp;&#x27;"
    assert wording.file_url("/a b/ü?#.png") == "gradio_api/file=/a%20b/%C3%BC%3F%23.png"
    assert wording.shorten("a\n" * 100, 10) == "a a a a a…"
