"""The views of a capture, by the numbers they plot: maps, combs, weights, attention, errors."""

from __future__ import annotations

import csv
import dataclasses
import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture import toy
from vqdq import codecs
from vqdq.capture import (
    ActivationRecord,
    Along,
    AttentionRecord,
    record,
    record_attention,
    tokenize,
    weight_record,
)
from vqdq.capture.codes import CodesRecord
from vqdq.errors import UserError
from vqdq.layers.quantized import pack
from vqdq.views import activations, attention, attention_mass, layer_map, style, values, weights
from vqdq.views.data import stacked, table
from vqdq.views.trajectory import trajectory

CONV = "down_blocks.1.resnets.0.conv1"


@pytest.fixture(scope="module")
def activity() -> ActivationRecord:
    model = toy.unet()
    with record(model, detail=(CONV,), guided=True, keep=(CONV, 1)) as recorder:
        toy.draw(model)
    return recorder.result()


@pytest.fixture(scope="module")
def scores() -> AttentionRecord:
    model, tokenizer = toy.unet(), toy.Tokenizer()
    tokens, negative = tokenize(tokenizer, "red circle on blue"), tokenize(tokenizer, "")
    with record_attention(model, tokens, negative=negative) as recorder:
        toy.draw(model)
    return recorder.result()


def _doubled(activity: ActivationRecord) -> ActivationRecord:
    scalars = dataclasses.replace(activity.scalars, absmax=4 * activity.scalars.absmax)
    return dataclasses.replace(activity, scalars=scalars)


def _check(view: style.View) -> None:
    assert len(view.png(1.0)) > 1000
    assert b"#01fe0" not in view.svg_file()
    ElementTree.fromstring(view.svg_file())
    lines = list(csv.reader(io.StringIO(view.data.to_csv())))
    assert len(lines) == view.data.rows + 1 > 1
    assert all(len(line) == len(lines[0]) for line in lines)


def test_tables_read_back():
    part = table(a=np.array([1.5, np.nan]), b="x")
    assert part.to_csv() == "a,b\n1.5,x\n,x\n"
    both = stacked({"one": part, "two": part})
    assert both.to_csv().splitlines()[3] == "two,1.5,x"


@pytest.mark.parametrize("quantity", [name for name in layer_map.QUANTITIES if name != "sqnr_db"])
def test_the_map_shows_what_was_recorded(activity, quantity):
    shape = activity.scalars.absmax.shape
    rng = np.random.default_rng(0)
    made = {
        name: rng.uniform(0.1, 0.9, shape).astype(np.float32)
        for name in ("clipped", "used", "paired_signal", "paired_error")
    }
    full = dataclasses.replace(activity, scalars=dataclasses.replace(activity.scalars, **made))
    found = layer_map.map_values(full, quantity)
    expected = layer_map.QUANTITIES[quantity].read(full.scalars)[1]
    shown = np.where(np.isinf(expected), np.nan, expected)
    np.testing.assert_allclose(found.values, shown, rtol=1e-6)
    view = layer_map.layer_map(full, style.DARK, quantity=quantity)
    cells = view.data.columns[found.label].reshape(shown.shape)
    np.testing.assert_allclose(cells, shown, rtol=1e-6)
    _check(view)


def test_reference_and_variant_share_their_colours(activity):
    other = _doubled(activity)
    one = layer_map.map_values(activity, "absmax", reference=other)
    two = layer_map.map_values(other, "absmax", reference=activity)
    assert (one.low, one.high) == (two.low, two.high)


def test_differences_are_octaves_or_plain(activity):
    other = _doubled(activity)
    octaves = layer_map.map_values(other, "absmax", reference=activity, difference=True)
    np.testing.assert_allclose(octaves.values, 2)
    assert (octaves.low, octaves.high, octaves.diverging) == (-2, 2, True)
    plain = layer_map.map_values(
        other, "absmax", reference=activity, difference=True, scale="linear"
    )
    np.testing.assert_allclose(plain.values, 3 * activity.scalars.absmax[1], rtol=1e-5)
    with pytest.raises(UserError, match="no reference"):
        layer_map.map_values(other, "absmax", difference=True)


def test_maps_are_sorted_and_filtered(activity):
    found = layer_map.map_values(activity, "absmax", order="value")
    peaks = found.values.max(axis=1)
    assert (np.diff(peaks) <= 0).all()
    names = layer_map.map_values(activity, "absmax", order="name", match="mid_block*").layers
    assert list(names) == sorted(name for name in activity.layers if name.startswith("mid_block"))
    with pytest.raises(UserError, match="no recorded layer"):
        layer_map.map_values(activity, "absmax", match="nothing")
    with pytest.raises(UserError, match='no quantity "absmx"'):
        layer_map.map_values(activity, "absmx")


def test_the_strip_and_the_pixels_carry_their_numbers(activity):
    layer = activity.layer(CONV, 1)
    groups = np.arange(16) % 4
    view = activations.channel_strip([("FP16", layer)], style.LIGHT, groups=groups)
    np.testing.assert_array_equal(view.data.columns["maximum"], layer.maximum[1])
    assert len(view.figure.axes[0].patches) == 16
    _check(view)
    places = activations.position_map([("FP16", layer)], style.DARK)
    assert places is not None
    cells = places.data.columns["largest |input|"]
    np.testing.assert_array_equal(cells, layer.position_absmax[1].ravel())


def test_a_thousand_medians_are_told(activity):
    layer = activity.layer(CONV, 1)
    histogram = np.zeros_like(layer.histogram)
    histogram[:, len(histogram[0]) // 2 + 60] = 990
    histogram[:, -1] = 10
    made = dataclasses.replace(
        layer,
        histogram=histogram,
        median_abs=np.full(2, 0.05, np.float32),
        maximum=np.full_like(layer.maximum, 4096),
    )
    assert activations.beyond_median(made) == (0.01, True)
    assert "1.00 % reach 1,000 times the median." in activations.outliers(made)


def _codes(scales: int) -> CodesRecord:
    counts = np.zeros((2, 16), np.int64)
    counts[:, 3:7] = 10
    return CodesRecord(
        method="made",
        bits=4,
        axis="tensor" if scales == 1 else "group",
        scale=np.linspace(0.1, 0.2, scales).astype(np.float32),
        zero=np.full(scales, 8, np.float32),
        index=np.zeros(0, np.int64),
        counts=counts,
        below=np.array([0, 1]),
        above=np.array([0, 3]),
    )


def test_the_histogram_is_a_density_over_a_comb(activity):
    layer = activity.layer(CONV, 1)
    for scales in (1, 40):
        codes = _codes(scales)
        view = values.value_histogram([("FP16", layer)], style.DARK, codes=codes)
        columns = view.data.columns
        width = columns["value_to"] - columns["value_from"]
        assert float((columns["share_per_unit"] * width).sum()) == pytest.approx(1)
        assert columns["value_from"][0] == layer.minimum[1].min()
        assert columns["value_to"][-1] == layer.maximum[1].max()
        combs = view.figure.axes[1].lines
        assert len(combs) == min(scales, values.COMBS)
        np.testing.assert_allclose(combs[0].get_xdata()[::3], codes.levels(0))
        told = "12 never occur (75.0 %), 10.0 % of the 40 values counted lie beyond them"
        assert told in view.caption
        _check(view)


def test_surfaces_and_turned_inputs(activity):
    layer = activity.layer(CONV, 1)
    assert layer.surface.shape == (2, 16, 16)
    np.testing.assert_allclose(layer.surface.max(axis=2), layer.position_absmax.reshape(2, 16))
    for flat in (True, False):
        view = values.surface([("FP16", layer)], style.DARK, flat=flat, kept=activity.kept)
        cells = view.data.columns["largest |input|"].reshape(16, 16)
        np.testing.assert_allclose(cells, layer.surface[1], rtol=1e-6)
        _check(view)
    spike = np.zeros((2, 300, 300), np.float32)
    spike[1, 151, 77] = 9.0
    tall = dataclasses.replace(layer, surface=spike)
    raised = values.surface([("FP16", tall)], style.DARK, flat=False).figure.axes[0]
    assert raised.zaxis.get_data_interval()[1] == 9.0  # between the facets' corners, and kept
    turned = dataclasses.replace(layer, maximum=layer.maximum / 2, minimum=layer.minimum / 2)
    _check(values.before_after(layer, turned, style.LIGHT))


def test_weights_and_their_codes():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    packed = pack(layer, codecs.encode(layer.weight, "uniform", bits=3))
    found = weight_record("layer", layer, packed)
    view = weights.code_use(found, style.DARK)
    assert view is not None
    assert view.data.columns["count"].sum() == 64 * 32
    _check(view)
    _check(weights.weight_histogram(found, style.LIGHT))
    errors = weights.row_error(found, style.DARK)
    np.testing.assert_array_equal(errors.data.columns["error (dB)"], found.row_error_db)
    assert weights.code_use(weight_record("layer", layer, layer), style.DARK) is None


def test_attention_by_step_head_and_role(scores):
    for by, rows in (("step", 3), ("head", 4)):
        view = attention_mass.token_mass([("FP16", scores)], style.DARK, by=by)
        shares = view.data.columns["share"].reshape(rows, -1)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
        _check(view)
    pair = [("FP16", scores), ("small", scores)]
    changes = attention_mass.token_mass(pair, style.LIGHT).figure.axes[2].images[0].get_array()
    assert float(np.abs(changes).max()) == 0
    view = attention_mass.role_steps(pair, style.DARK)
    roles = sum(view.data.columns[role] for role in ("start", "words", "end", "padding"))
    np.testing.assert_allclose(roles, 1, atol=1e-5)
    _check(view)


def test_drift_is_sorted_and_self_attention_is_shown(scores):
    view = attention_mass.drift_bars((0.1, 0.4, 0.2), ("red", "circle", "on"), style.DARK)
    assert view.data.columns["word"].tolist() == ["circle", "on", "red"]
    assert view.caption == "“circle” moved most: 40.0 %."
    _check(view)
    name = scores.self_layers[1]
    view = attention_mass.self_attention([("FP16", scores)], style.LIGHT, layer=name)
    assert float(view.data.columns["scores_percent"].sum()) == pytest.approx(100)
    _check(view)


def test_the_levels_of_a_score_quantizer(scores):
    marks = attention_mass.quantizer_marks(scores, "log2", 4)
    peak = np.log2(np.nanmax(scores.spread[0, 1]))
    np.testing.assert_allclose(marks, peak - np.arange(15, -1, -1), atol=1e-5)
    view = attention.score_histogram([("FP16", scores)], style.DARK, levels=marks)
    assert "16 levels of the quantizer" in view.caption
    _check(view)


def test_errors_of_several_variants_by_step():
    records = []
    for label, size in (("three", 0.1), ("two", 0.3)):
        along = Along(label=label)
        for step in range(4):
            truth = torch.ones(2, 8)
            found = truth * (1 + size)
            along.add(step, 900.0 - step, truth, found, latents=(truth, found))
        records.append(along.result())
    view = trajectory(records, style.DARK)
    np.testing.assert_allclose(view.data.columns["forced_sqnr_db"][:4], 20, atol=1e-4)
    assert view.data.columns["model"].tolist() == ["three"] * 4 + ["two"] * 4
    assert len({line.get_color() for line in view.figure.axes[0].lines}) == 2
    _check(view)


def test_a_phone_gets_panels_below_each_other(activity):
    layer = activity.layer(CONV, 1)
    pair = [("FP16", layer), ("small", layer)]
    for draw in (activations.position_map, activations.channel_strip, values.surface):
        view = draw(pair, style.DARK.phone())
        assert view is not None
        assert view.figure.get_size_inches()[0] * 72 == pytest.approx(390)
        _check(view)
    wide, narrow = (
        activations.position_map(pair, each) for each in (style.DARK, style.DARK.phone())
    )
    assert wide is not None
    assert narrow is not None
    assert narrow.figure.get_size_inches()[1] == 3 * wide.figure.get_size_inches()[1]
