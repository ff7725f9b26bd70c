"""The frontier as a figure: what is plotted, and that a click lands where a point is."""

from __future__ import annotations

import csv
import io
import math

import pytest

from vqdq.jobs.frontier import COSTS, QUALITIES, Frontier, Point
from vqdq.metrics.proportions import Interval
from vqdq.views import frontier as plots
from vqdq.views.style import DARK, PAGE


def point(name, method, cost, value, low, high, *, front=True):
    interval = None if value is None else Interval(value=value, low=low, high=high)
    return Point(
        name=name, label=f"{name} <b>", method=method, cost=cost, quality=interval, count=7,
        on_front=front,
    )  # fmt: skip


POINTS = (
    point("small", "trellis", 7.0, 22.0, 20.0, 25.0),
    point("other", "vector", 9.8, 21.0, 19.0, 30.0, front=False),
    point("equal", "uniform", 24.0, math.inf, 45.0, math.inf),
    point("unseen", "uniform", 12.0, None, 0, 0),
)
FOUND = Frontier(
    cost=COSTS[0],
    quality=QUALITIES[0],
    points=POINTS,
    reference=Point(name="", label="FP16", method="", cost=46.4, quality=None),
)


@pytest.mark.parametrize("style", [PAGE, DARK.phone()])
def test_the_buttons_lie_on_the_points(style):
    view = plots.frontier(FOUND, style)
    view.png(scale=1)
    axes, size = view.figure.axes[0], view.figure.bbox
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    drawn = [axes.transData.transform(mark.get_xydata()[0]) for mark in marks]
    spots = plots.spots(view, FOUND)
    assert [p.name for p, *_ in spots] == ["small", "other", "equal"]
    for (_, left, top), (x, y) in zip(spots, drawn, strict=True):
        assert left * size.width == pytest.approx(x)
        assert (1 - top) * size.height == pytest.approx(y)
    colours = [mark.get_color() for mark in marks]
    assert len(set(colours)) == 3
    assert spots[2][2] == pytest.approx(
        1 - axes.get_position().y1
    )  # without end: at the upper edge


def test_the_table_and_the_words_say_everything():
    view = plots.frontier(FOUND, PAGE)
    rows = list(csv.DictReader(io.StringIO(view.data.to_csv())))
    assert [row["model"] for row in rows] == ["small", "other", "equal"]
    assert float(rows[0]["size_mb"]) == 7.0
    assert (float(rows[0]["low"]), float(rows[0]["psnr"])) == (20.0, 22.0)
    assert math.isinf(float(rows[2]["psnr"]))
    assert "n = 7" in view.caption
    assert "22.0 dB" in view.alt
    assert "FP16" in view.svg()
    empty = Frontier(cost=COSTS[1], quality=QUALITIES[4], points=(POINTS[3],), reference=None)
    assert "No model" in plots.frontier(empty, PAGE).caption
