"""What the sections of a capture show: the numbers of the records, and files of them."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.ui.captures import CONV, INNER, TEXT, done
from vqdq.errors import UserError
from vqdq.jobs.store import Workspace
from vqdq.ui import inspect_map, inspect_words, inspection
from vqdq.ui.inspect_figures import FORMATS, drawn, file_name
from vqdq.ui.inspect_sections import PLOTS, draw, file_of, navigation, summary
from vqdq.ui.inspection import Capture, settled
from vqdq.ui.look import SECTIONS, Look, Screen

NAMES = tuple(name for name, _ in SECTIONS)
ALL = Screen(wanted=frozenset(NAMES))


def _capture(tmp_path_factory, **options) -> Capture:
    workspace = Workspace.open(tmp_path_factory.mktemp("inspect"))
    found = inspection.of_run(workspace.run(done(workspace, **options)))
    workspace.close()
    return found


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Capture:
    return _capture(tmp_path_factory, variants=("small", "smaller"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Capture:
    return _capture(tmp_path_factory, variants=())


def _cells(text: str) -> dict:
    found = re.search(r'data-cells="([^"]*)"', text)
    assert found
    return json.loads(html.unescape(found[1]))


def test_every_cell_of_the_map_is_the_record_s_value(capture):
    look = Look(quantity="absmax", which="reference")
    shown = draw("map", capture, look, ALL)
    cells = _cells(shown)
    record = capture.reference.activity
    assert tuple(cells["layers"]) == record.layers
    np.testing.assert_allclose(cells["values"], record.scalars.absmax[1], rtol=1e-3)
    assert cells["label"] == "largest |input|"
    row = record.layers.index(CONV)
    assert f'data-layer="{CONV}" data-step="1" data-row="{row}"' in shown
    value = float(record.scalars.absmax[1, row, 1])
    read = re.search(r'id="vq-map-read"[^>]*>([^<]*)<', shown)
    assert read
    assert read[1] == f"{CONV} · step 2 · {value:.2f} · largest |input|"
    grid = re.search(r"left:([\d.]+)%;top:([\d.]+)%;width:([\d.]+)%;height:([\d.]+)%", shown)
    left, top, width, height = (float(part) for part in grid.groups())
    assert 5 < left < 30
    assert left + width < 95
    assert top + height < 98


def test_the_map_shows_reference_variant_or_difference(capture):
    ours = capture.sides[1].activity.scalars.absmax[1]
    theirs = capture.reference.activity.scalars.absmax[1]
    variant = _cells(draw("map", capture, Look(quantity="absmax"), ALL))
    np.testing.assert_allclose(variant["values"], ours, rtol=1e-3)
    look = Look(quantity="absmax", which="difference", scale="linear")
    difference = _cells(draw("map", capture, look, ALL))
    np.testing.assert_allclose(difference["values"], ours - theirs, atol=2e-3)
    second = _cells(draw("map", capture, Look(quantity="absmax", variant=2), ALL))
    np.testing.assert_allclose(
        second["values"], capture.sides[2].activity.scalars.absmax[1], rtol=1e-3
    )
    drift = draw("map", capture, Look(quantity="clipped", which="reference"), ALL)
    clipped = capture.sides[1].activity.scalars.clipped[1]
    found = np.array(_cells(drift)["values"], float)
    np.testing.assert_allclose(found, 100 * clipped, rtol=1e-3, equal_nan=True)
    assert "compares with FP16 already" in drift


def test_the_map_is_sorted_and_filtered(capture):
    cells = _cells(draw("map", capture, Look(quantity="absmax", order="value"), ALL))
    peaks = np.max(cells["values"], axis=1)
    assert (np.diff(peaks) <= 0).all()
    some = _cells(draw("map", capture, Look(match="attn2"), ALL))["layers"]
    assert some
    assert all("attn2" in name for name in some)
    assert "No layer of that name" in draw("map", capture, Look(match="nothing"), ALL)


def test_choices_that_a_capture_lacks_are_not_offered(alone, capture):
    shown = draw("map", alone, Look(quantity="sqnr_db", which="difference"), ALL)
    assert re.findall(r'data-act="quantity" data-value="(\w+)"', shown) == [
        "peak_ratio", "absmax", "tail_ratio", "kurtosis", "channel_spread", "position_spread"
    ]  # fmt: skip
    assert 'data-act="which"' not in shown
    assert "clipped" in draw("map", capture, Look(), ALL)
    assert "moved" not in draw("words", alone, Look(), ALL)
    assert "Only FP16 was recorded" in draw("weights", alone, Look(), ALL)
    assert "Only FP16 was recorded" in draw("trajectory", alone, Look(), ALL)
    assert 'data-act="variant"' not in navigation(alone, Look())
    assert navigation(capture, Look(variant=2)).count('aria-pressed="true"') == 1


def test_a_layer_shows_channels_values_levels_places_and_surface(capture):
    shown = draw("layer", capture, Look(layer=INNER, step=1), ALL)
    assert shown.count("<svg") == 4
    codes = capture.sides[1].activity.codes[INNER, 1]
    assert f"{1 << codes.bits} levels" in shown
    assert "lie beyond the quantizer&#x27;s levels" in shown
    assert shown.count("times the median magnitude") >= 2
    strip = drawn(capture, PLOTS["channel-strip"], Look(layer=INNER, step=1), narrow=False)
    assert strip is not None
    assert "1st to 99th percentile" in strip.caption
    plain = draw("layer", capture, Look(layer=CONV, step=1), ALL)
    assert "the input of this layer stays in 16 bits" in plain
    other = draw("layer", capture, Look(layer=CONV, step=1, raised=True), ALL)
    assert other != plain


def test_any_layer_and_step_shows_its_extremes_and_offers_the_rest(capture):
    shown = draw("layer", capture, Look(layer=TEXT, step=2), ALL)
    assert "Extremes and histogram only" in shown
    assert 'data-act="record"' in shown
    assert shown.count("<svg") == 3
    assert "1st to 99th percentile" not in shown
    assert "by channel" in shown.lower()


def test_weights_of_the_chosen_layer_and_of_one_that_stayed(capture):
    shown = draw("weights", capture, Look(layer=INNER), ALL)
    assert "stored by the codec uniform" in shown
    assert shown.count("<svg") == 3
    assert "keeps its weight in 16 bits" in draw("weights", capture, Look(layer=TEXT), ALL)


def test_words_are_clicked_and_their_drift_is_sorted(capture):
    shown = draw("words", capture, Look(), ALL)
    assert re.findall(r'data-at="\d">?[^>]*>(\w+)<', shown) == ["red", "circle", "on", "blue"]
    assert shown.count("· moved") == 4
    assert shown.count("<svg") == 6
    assert "to “blue”" in draw("words", capture, Look(word=3), ALL)
    layer = capture.reference.attention.layers[-1]
    assert inspect_words.short(layer) == "up 0 · 2"
    scores = PLOTS["score-histogram"]
    pictures = {
        drawn(capture, scores, settled(capture, Look(where=where)), narrow=False).caption
        for where in ("", "step", layer)
    }
    assert len(pictures) == 3


def test_many_attention_layers_offer_the_one_beside_the_chosen_layer(capture, monkeypatch):
    monkeypatch.setattr(inspect_words, "MANY", 2)
    look = Look(layer="mid_block.resnets.1.conv2")
    shown = draw("words", capture, look, ALL)
    found = re.findall(r'data-act="where" data-value="([^"]*)"', shown)
    assert found == ["", "step", "mid_block.attentions.0.transformer_blocks.0.attn2"]


def test_all_variants_share_the_trajectory_and_each_has_its_previews(capture):
    shown = draw("trajectory", capture, Look(), ALL)
    assert "small: lowest" in shown
    assert "smaller: lowest" in shown
    assert shown.count('class="vq-steps"') == 3
    assert shown.count('class="vq-step"') == 9
    sprites = re.findall(r"url\(&quot;[^&]*file=([^&]*previews-\d.png)", shown)
    assert re.findall(r'download="(previews-\d.png)"', shown)[2] == "previews-2.png"
    assert [Image.open(name).size for name in sprites] == [(12, 4)] * 3
    path = file_of(capture, Look(), "trajectory", "csv", dark=False)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["model"] for row in rows] == ["small"] * 3 + ["smaller"] * 3
    np.testing.assert_allclose(float(rows[0]["forced_sqnr_db"]), 20, atol=1e-4)


def test_every_figure_has_files_that_say_what_they_are(capture):
    look = Look(layer=INNER, step=1, word=2)
    offered = "".join(draw(name, capture, look, ALL) for name in NAMES)
    names = re.findall(r'data-act="save" data-figure="([\w-]+)"', offered)
    assert sorted(names) == sorted(3 * [name for name in PLOTS if name != "before-after"])
    for kind, start in zip(FORMATS, (b"\x89PNG", b"<?xml", b"layer,step,"), strict=True):
        path = file_of(capture, look, "layer-map", kind, dark=kind == "png")
        assert path.parent == capture.folder / "figures"
        assert path.read_bytes().startswith(start)
    strip = file_name(capture, PLOTS["channel-strip"], settled(capture, look))
    assert strip == f"channel-strip_small_{INNER}_step-2"
    word = file_name(capture, PLOTS["word-map"], settled(capture, look))
    assert word == "word-map_small_step-2_word-3"
    for bad in ({"name": "folder", "kind": "png"}, {"name": "layer-map", "kind": "exe"}):
        with pytest.raises(UserError):
            file_of(capture, look, bad["name"], bad["kind"], dark=False)
    with pytest.raises(UserError, match="nothing to draw"):
        file_of(capture, look, "before-after", "png", dark=False)


def test_a_click_draws_only_what_it_concerns(capture):
    looks = [settled(capture, Look(layer=CONV, step=1, word=word)) for word in (0, 1)]
    strips = [drawn(capture, PLOTS["channel-strip"], look, narrow=False) for look in looks]
    words = [drawn(capture, PLOTS["word-map"], look, narrow=False) for look in looks]
    assert strips[0] is strips[1]
    assert words[0] is not words[1]
    wide, phone = (drawn(capture, PLOTS["word-map"], looks[0], narrow=way) for way in (False, True))
    assert 'viewBox="0 0 880 ' in wide.svg
    assert 'viewBox="0 0 390 ' in phone.svg


def test_choices_out_of_range_are_settled(capture):
    found = settled(capture, Look(variant=9, layer="gone", step=99, half="?", word=4))
    assert (found.variant, found.layer, found.step, found.half) == (2, CONV, 2, "cond")
    assert inspect_map.shown(capture, Look(quantity="folder"))[0] == "peak_ratio"
    assert f"{len(capture.reference.activity.layers)} layers at 3 steps" in summary(capture)
    assert "1.20 times as long" in summary(capture)


def test_without_attention_the_reason_is_told(tmp_path_factory):
    blind = _capture(tmp_path_factory, variants=(), attention=False)
    assert "in another way" in draw("words", blind, Look(), ALL)
