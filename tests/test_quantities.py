"""Numbers as people read them."""

from __future__ import annotations

import pytest

from vqdq import quantities


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0156, "3.02"),
        (29.41, "29.4"),
        (512.3, "512"),
        (1240.4, "1,240"),
        (0.951, "0.951"),
        (0, "0"),
        (-17.2, "−17.2"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert quantities.digits(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (11_200_000, "11.2 MB"), (2.5e10, "25.0 GB")],
)
def test_sizes_have_units(count: float, text: str) -> None:
    assert quantities.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.05, "50 ms"),
        (0.82, "0.82 s"),
        (9.6, "9.6 s"),
        (14.4, "14 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert quantities.duration(seconds) == text


def test_unknown_and_endless_are_said() -> None:
    unknown = (quantities.size(None), quantities.duration(None), quantities.digits(float("nan")))
    assert unknown == ("–", "–", "–")
    assert [quantities.digits(sign * float("inf")) for sign in (1, -1)] == ["∞", "−∞"]
