"""Figures of blame: what they plot, in both widths, and their tables."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from vqdq.models.blame_report import BlameReport
from vqdq.views import blame
from vqdq.views.style import LIGHT, View

NAMES = tuple(f"up_blocks.{block}.resnets.0.conv{n}" for block in (0, 1) for n in (1, 2))


def report(areas: int = 2) -> BlameReport:
    """Four layers on two calls; the last was not measured, and in the region another is worst."""
    shape = (areas, 2, 4)
    left = np.full(shape, np.nan)
    left[0, :, :3] = [[5.0, 8.0, 10.0], [2.5, 8.0, 12.5]]
    alone = np.full(shape, np.nan)
    alone[0, :, :3] = [[4.0, 2.0, 1.0], [4.0, 2.0, 1.0]]
    if areas > 1:
        left[1, :, :3] = [[4.0, 1.0, 4.0], [4.0, 1.0, 4.0]]
        alone[1, :, :3] = [[0.5, 3.0, 0.5], [0.5, 3.0, 0.5]]
    return BlameReport(
        names=NAMES,
        methods=("trellis",) * 4,
        activations=("",) * 4,
        weights=(1000,) * 4,
        bytes=(400, 300, 200, 100),
        relative_error=np.full(4, 0.1),
        estimate=np.full(4, 0.01),
        steps=(2, 7),
        timesteps=(900.0, 400.0),
        prompts=(0, 0),
        signal=np.full((areas, 2), 100.0),
        error=np.array([[10.0, 10.0], [4.0, 4.0]])[:areas],
        repaired=left,
        unrounded=np.full(shape, np.nan),
        alone=alone,
        context={},
    )


def offers() -> list:
    def one(layers: int, bits: int, added: int, after: float) -> dict:
        return {
            "layers": list(NAMES[:layers]), "bits": bits, "added_bytes": added, "before_db": 10.0,
            "after_db": after, "gain_db": after - 10, "predicted_gain_db": after - 9,
        }  # fmt: skip

    return [one(1, 8, 1000, 12.0), one(3, 8, 3000, 14.5), one(1, 16, 2000, 12.5)]


def columns(view: View) -> dict[str, list[str]]:
    rows = list(csv.DictReader(io.StringIO(view.data.to_csv())))
    return {key: [row[key] for row in rows] for key in rows[0]}


def test_the_ranking_plots_both_ways_worst_first() -> None:
    view = blame.ranking(report(), LIGHT)
    table = columns(view)
    gain = 10 * np.log10(20 / 7.5)
    assert table["layer"][0] == NAMES[0]
    assert len(table["layer"]) == 3
    assert float(table["gain_db"][0]) == pytest.approx(gain, abs=1e-5)
    assert float(table["alone_sqnr_db"][0]) == pytest.approx(10 * np.log10(200 / 8), abs=1e-5)
    assert table["bytes_to_16_bits"][0] == "1600"
    bars = [patch.get_width() for patch in view.figure.axes[0].patches]
    assert bars == pytest.approx(report().gain_db()[[0, 1, 2]])
    assert "up 0 · resnet 0 · conv1 has" in view.caption
    region = blame.ranking(report(), LIGHT, area=1)
    assert columns(region)["layer"][0] == NAMES[1]
    assert "the marked region" in region.alt


def test_the_map_says_at_which_step_a_layer_costs_most() -> None:
    view = blame.layer_steps(report(), LIGHT)
    table = columns(view)
    cell = table["layer"].index(NAMES[0]) + 1  # its second step
    assert (table["step"][cell], float(table["gain_db"][cell])) == (
        "8", pytest.approx(10 * np.log10(4), abs=1e-5)
    )  # fmt: skip
    assert "step 8 by up 0 · resnet 0 · conv1: 6.02 dB" in view.caption
    image = view.figure.axes[0].images[0]
    low, high = image.get_clim()
    assert low == -high == pytest.approx(-np.sqrt(10 * np.log10(4)))
    ticks = [text.get_text() for text in view.figure.axes[0].get_xticklabels()]
    assert ticks == ["3", "8"]


def test_repairs_are_bytes_against_measured_quality() -> None:
    view = blame.repairs(offers(), LIGHT)
    lines = [line for line in view.figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in lines] == [[0.001, 0.003], [0.002]]
    assert [list(line.get_ydata()) for line in lines] == [[12.0, 14.5], [12.5]]
    assert columns(view)["bits"] == ["8 bits", "8 bits", "16 bits"]
    assert "Most is regained by 3 layers: 4.50 dB" in view.caption


def test_every_figure_is_drawn_in_both_widths_and_as_files() -> None:
    found = blame.figures(report(), offers(), LIGHT.phone())
    assert set(found) == {
        "ranking", "layers-and-steps", "ranking-region", "layers-and-steps-region", "repairs"
    }  # fmt: skip
    for view in found.values():
        assert view.figure.get_figwidth() * 72 == 390
        assert "<svg" in view.svg()
    assert set(blame.figures(report(1), [], LIGHT)) == {"ranking", "layers-and-steps"}
    assert found["repairs"].png()[:4] == b"\x89PNG"
