"""Every pair of text and ground keeps the contrast that people need, in both modes."""

from __future__ import annotations

import re

import pytest

from vqdq.ui import theme
from vqdq.ui.theme import DARK, LIGHT, Palette, contrast

GROUNDS = ("page", "panel", "raised")
WORDS = ("text", "muted", "good", "warn", "bad")


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)
    assert contrast("#123456", "#123456") == 1.0


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("words", WORDS)
def test_text_stands_out_4_5_to_1(palette: Palette, ground: str, words: str) -> None:
    assert contrast(getattr(palette, ground), getattr(palette, words)) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_the_accent_and_what_can_be_operated_stand_out(palette: Palette) -> None:
    assert contrast(palette.accent, palette.on_accent) >= 4.5
    assert contrast(palette.accent_hover, palette.on_accent) >= 4.5
    assert contrast(palette.bad_ground, palette.bad) >= 4.5
    assert contrast(palette.bad_ground, palette.text) >= 4.5
    for ground in GROUNDS[:2]:
        assert contrast(getattr(palette, ground), palette.edge) >= 3
        assert contrast(getattr(palette, ground), palette.accent) >= 3


def test_a_variant_keeps_its_colour_and_fp16_is_grey() -> None:
    first = [theme.variant_colour(i) for i in range(6)]
    assert first[:5] == list(theme.VARIANT_COLOURS)
    assert first[5] == theme.VARIANT_COLOURS[1]


def test_the_page_brings_everything_and_names_no_host() -> None:
    built = theme.build()
    everything = built._get_theme_css() + theme.head()
    hosts = set(re.findall(r"https?://([\w.-]+)", everything)) - {"www.w3.org"}  # XML names
    assert hosts == set()
    assert built._stylesheets == []
    assert "--vq-accent:#35b5c4" in everything


def test_dark_is_set_wherever_light_is() -> None:
    dark = theme.build()._get_theme_css().split(":root.dark, :root .dark {")[1].split("}")[0]
    for name, colour in (("body-text-color", DARK.text), ("input-border-color", DARK.edge)):
        assert f"--{name}: {colour};" in dark
