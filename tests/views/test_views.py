"""Figures say what the records hold: numbers in the words, pixels in the maps."""

from __future__ import annotations

import dataclasses
import io
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.capture import toy
from vqdq.capture import (
    ActivationRecord,
    AttentionRecord,
    record,
    record_attention,
    streams,
    tokenize,
)
from vqdq.views import activations, attention, overview, style

CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TIME = "down_blocks.1.resnets.0.time_emb_proj"
PROMPT = "red circle on blue"


@pytest.fixture(scope="module")
def activity() -> ActivationRecord:
    model = toy.unet()
    with record(model, detail=(CONV, TEXT, TIME), guided=True) as recorder:
        toy.draw(model)
    return recorder.result()


@pytest.fixture(scope="module")
def scores() -> AttentionRecord:
    model, tokenizer = toy.unet(), toy.Tokenizer()
    tokens, negative = tokenize(tokenizer, PROMPT), tokenize(tokenizer, "")
    with record_attention(model, tokens, negative=negative) as recorder:
        toy.draw(model)
    return recorder.result()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _check(view: style.View) -> str:
    """Draws the view both ways and returns its text."""
    assert isinstance(view.figure, Figure)
    png = Image.open(io.BytesIO(view.png()))
    width, height = view.figure.get_size_inches() * 72
    assert png.size == (round(2 * width), round(2 * height))
    text = view.svg()
    ElementTree.fromstring(text)  # well-formed, so it can stand in a page
    assert view.alt
    assert 'role="img"' in text
    assert "font-family" not in text
    return text


def test_channel_strip_shows_both_records_on_one_scale(activity):
    layer = activity.layer(CONV, 1)
    double = dataclasses.replace(layer, minimum=2 * layer.minimum, maximum=2 * layer.maximum)
    view = activations.channel_strip([("FP16", layer), ("small", double)], style.PAGE)
    first, second = view.figure.axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_xlim() == (-0.5, layer.absmax.shape[1] - 0.5)
    assert first.get_ylim()[1] > double.maximum[1].max()
    assert second.get_xlabel() == "channel"
    text = _check(view)
    assert "var(--vq-text)" in text
    assert style.PAGE.text not in text
    assert "FP16" in text
    assert "small" in text


def test_channels_sorted_by_size_start_with_the_largest(activity):
    layer = activity.layer(CONV, 1)
    view = activations.channel_strip([("FP16", layer)], style.DARK, by_size=True)
    label = view.figure.axes[0].texts[-1]
    assert label.get_text().startswith(f"channel {layer.absmax[1].argmax()}:")
    assert label.xy[0] == 0


def test_a_wide_range_gets_a_scale_that_keeps_the_rest_visible(activity):
    layer = activity.layer(CONV, 1)
    huge = layer.maximum.copy()
    huge[1, 5] = 300.0
    view = activations.channel_strip(
        [("FP16", dataclasses.replace(layer, maximum=huge))], style.DARK
    )
    assert view.figure.axes[0].get_yscale() == "symlog"
    _check(view)


def test_outliers_in_words(activity):
    layer = activity.layer(CONV, 1)
    edges = streams.bin_edges()
    calm = np.zeros_like(layer.histogram)
    calm[:, np.searchsorted(edges, 0.5)] = 998
    maximum, counts = np.full_like(layer.maximum, 0.9), calm.copy()
    maximum[1, 5], counts[1, np.searchsorted(edges, 60.0) - 1] = 60.0, 2
    planted = dataclasses.replace(
        layer,
        minimum=-0.5 * np.ones_like(maximum),
        maximum=maximum,
        histogram=counts,
        median_abs=np.array([1.0, 0.5], np.float32),
    )
    assert activations.outliers(planted) == (
        "Channel 5 reaches 60.0, 120 times the median magnitude (0.500). 0.200 % of the values, "
        f"in 1 of {maximum.shape[1]} channels, have a magnitude of 6.00 or more. None reaches "
        "1,000 times the median."
    )
    quiet = dataclasses.replace(planted, histogram=calm)
    assert "No value has a magnitude of 6.00 or more." in activations.outliers(quiet)


def test_a_step_without_details_shows_what_its_series_knows(activity):
    # CONV was kept at all steps; a layer that was not has extremes and a histogram.
    bare = dataclasses.replace(activity, details={})
    for step in range(3):
        known, found = activity.layer(CONV, step), overview.layer_at(bare, CONV, step)
        assert found is not None
        assert not overview.detailed(found)
        np.testing.assert_allclose(found.maximum, known.maximum, rtol=1e-6)
        np.testing.assert_allclose(found.position_absmax, known.position_absmax, rtol=1e-6)
        np.testing.assert_array_equal(found.histogram, known.histogram)
        assert activations.outliers(found) == activations.outliers(known)
        _check(activations.channel_strip([("FP16", found)], style.PAGE))
    assert overview.layer_at(activity, CONV, 1) is activity.details[CONV, 1]
    assert overview.layer_at(activity, "nowhere", 1) is None
    assert overview.layer_at(bare, CONV, 3) is None


def test_position_map_shows_the_values_and_their_difference(activity):
    layer = activity.layer(CONV, 1)
    moved = layer.position_absmax.copy()
    moved[1, 2, 3] += 5
    variant = dataclasses.replace(layer, position_absmax=moved)
    view = activations.position_map([("FP16", layer), ("small", variant)], style.PAGE)
    assert view is not None
    shown = [axes.images[0].get_array() for axes in view.figure.axes if axes.images]
    np.testing.assert_allclose(shown[0], layer.position_absmax[1], rtol=1e-6)
    np.testing.assert_allclose(shown[1], moved[1], rtol=1e-6)
    assert np.unravel_index(np.asarray(shown[2]).argmax(), (4, 4)) == (2, 3)
    assert float(np.abs(shown[2]).sum()) == pytest.approx(5, rel=1e-5)
    _check(view)


def test_text_layers_get_bars_and_vectors_nothing(activity):
    view = activations.position_map([("FP16", activity.layer(TEXT, 0))], style.LIGHT)
    assert view is not None
    assert len(view.figure.axes[0].patches) == toy.TOKENS
    _check(view)
    labels = tokenize(toy.Tokenizer(), PROMPT).labels
    named = activations.position_map(
        [("FP16", activity.layer(TEXT, 0))], style.LIGHT, labels=labels
    )
    assert named is not None
    ticks = [label.get_text() for label in named.figure.axes[0].get_xticklabels()]
    assert ticks == ["<start>", "red", "circl", "e", "on", "blue", "<end>", ""]
    assert activations.position_map([("FP16", activity.layer(TIME, 0))], style.LIGHT) is None


@pytest.mark.parametrize("quantity", ["peak_ratio", "absmax", "kurtosis", "sqnr_db"])
def test_layer_map_names_the_extreme(activity, quantity):
    sketch = 1.01 * activity.scalars.output_sketch  # 40 dB
    sketch[:, -1] *= 1.5
    other = dataclasses.replace(
        activity, scalars=dataclasses.replace(activity.scalars, output_sketch=sketch)
    )
    view = activations.layer_map(
        other, style.PAGE, quantity=quantity, reference=activity, chosen=(CONV, 1)
    )
    image = view.figure.axes[0].images[0].get_array()
    assert image.shape == (len(activity.layers), 3)
    if quantity == "sqnr_db":
        assert activity.layers[-1] in view.caption
        assert view.caption.startswith("Lowest")
    else:
        row, column = np.unravel_index(np.argmax(image), image.shape)
        assert f"{activity.layers[row]}, step {column + 1}" in view.caption
    _check(view)


def test_histogram_bars_are_the_record_and_sum_to_a_hundred(scores):
    view = attention.score_histogram([("FP16", scores), ("small", scores)], style.PAGE)
    axes = view.figure.axes[0]
    steps = [patch.get_data() for patch in axes.patches]
    heights = sum((data.values - data.baseline).sum() for data in steps)
    assert heights == pytest.approx(100, abs=1e-3)
    words = (steps[1].values - steps[1].baseline)[1:]
    counts = scores.histogram[1].sum(axis=(0, 1))
    np.testing.assert_allclose(words, 100 * counts[1, 1:] / counts.sum(), atol=1e-9)
    roles = [label.get_text() for label in axes.get_legend().get_texts()]
    assert roles == ["start", "words", "end", "padding"]
    _check(view)


def test_shares_of_the_roles_sum_to_one(scores):
    for layer in (None, scores.layers[0]):
        for half in ("uncond", "cond"):
            found = attention.shares(scores, layer=layer, step=1, half=half)
            assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert attention.shares(scores, half="uncond")["words"] == 0


def test_word_map_shows_reference_variant_and_drift(scores, picture):
    other = dataclasses.replace(scores, step_maps=scores.step_maps[:, :, ::-1].copy())
    view = attention.word_map(
        [("FP16", scores), ("small", other)], [picture, picture], 1, style.PAGE
    )
    tokens = scores.prompt.words[1].tokens
    drift = next(axes for axes in view.figure.axes if axes.get_title(loc="left") == "Drift")
    expected = other.token_map(tokens) - scores.token_map(tokens)
    np.testing.assert_allclose(drift.images[0].get_array(), expected, atol=1e-7)
    assert "“circle”" in view.alt
    assert "lies elsewhere after compression" in view.caption
    _check(view)
    alone = attention.word_map([("FP16", scores)], [picture], 0, style.LIGHT, step=2)
    assert "elsewhere" not in alone.caption
    _check(alone)


def test_moved_is_the_share_that_lies_elsewhere():
    a, b = np.zeros((2, 2)), np.zeros((2, 2))
    a[0, 0], b[1, 1] = 3.0, 5.0
    assert attention.moved(a, b) == 1
    assert attention.moved(a, 2 * a) == 0
    half = a.copy()
    half[1, 1] = 3.0
    assert attention.moved(a, half) == pytest.approx(0.5)


def test_drift_of_each_word(scores):
    assert attention.word_drift(scores, scores) == (0, 0, 0, 0)
    flat = dataclasses.replace(scores, step_maps=np.full_like(scores.step_maps, 0.1))
    assert all(0 < value < 1 for value in attention.word_drift(scores, flat))


def test_words_that_the_font_lacks_do_not_break_a_figure(picture):
    model, tokenizer = toy.unet(), toy.Tokenizer()
    with record_attention(model, tokenize(tokenizer, "🐈 $x$ 猫 <b>")) as recorder:
        toy.draw(model)
    found = recorder.result()
    for word in range(4):
        text = _check(attention.word_map([("<i>&", found)], [picture], word, style.PAGE))
        assert "<i>" not in text
        assert "<b>" not in text
    _check(attention.score_histogram([("$a$", found)], style.PAGE))


def test_diverging_map_is_clear_at_zero():
    assert style.DIVERGING(0.5)[3] < 0.01
    assert style.DIVERGING(0.0)[3] == style.DIVERGING(1.0)[3] == 1


def test_numbers_have_three_digits():
    assert [style.digits(x) for x in (31.24, 0.7561, -4.05, 1240.4, 0, float("inf"))] == [
        "31.2",
        "0.756",
        "−4.05",
        "1,240",
        "0",
        "∞",
    ]
    assert style.share(0.123) == "12.3 %"
    assert style.share(1e-7) == "< 0.001 %"
    assert style.round_levels(1.4, 63) == [2, 5, 10, 20, 50]


def test_no_view_uses_the_global_figure_list():
    for module in (activations, attention, style):
        assert "pyplot" not in (Path(module.__file__).read_text())
