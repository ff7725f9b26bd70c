"""The frontier against an independent count: medians, intervals, duplicates, the front."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import pytest
from scipy import stats

from vqdq.jobs import frontier
from vqdq.jobs.frontier import COSTS, QUALITIES, Sample, scale
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.run import RunRecord
from vqdq.metrics.medians import median_interval
from vqdq.metrics.proportions import wilson

VERDICT = dict.fromkeys(("passed", "count", "shapes"), True)


def model(tmp_path, name, megabytes, created=0.0):
    return ModelEntry(
        name=name,
        path=tmp_path / name,
        created=created,
        title=name.upper(),
        measured_bytes=round(1e6 * megabytes),
        reference_bytes=57_000_000,
    )


def row(name, psnr, *, seconds=1.0, passed=True):
    return {
        "variant": name,
        "psnr": psnr,
        "ssim": 0.9,
        "seconds": seconds,
        "peak_memory_bytes": 300_000_000,
        "verdict": VERDICT | {"passed": passed},
    }


def compared(tmp_path, rows, *, seed=0, finished=10.0):
    names = tuple(each["variant"] for each in rows)
    request = CompareRequest(model="demo", variants=names, prompt="a red ring", seed=seed)
    base = {"variant": "demo", "seconds": 2.0, "peak_memory_bytes": 500_000_000}
    return RunRecord(
        id=f"run-{seed}-{finished}", kind="compare", state="done", request=request, created=1.0,
        started=1.0, finished=finished, stage="", done=0, total=0, message="", preview=None,
        eta_seconds=None, seconds=1.0, cancelling=False, error=None, folder=tmp_path,
        result={"reference": base | {"verdict": VERDICT}, "variants": rows},
    )  # fmt: skip


def of(models, runs, cost="size", quality="psnr", **more):
    found = list(frontier.samples(runs))
    axes = {"cost": scale(COSTS, cost), "quality": scale(QUALITIES, quality)}
    return frontier.frontier(models, found, **axes, **more)


def test_a_point_is_the_median_of_different_pictures_drawn_after_the_model(tmp_path):
    values = [31.0, 25.0, 40.0, 28.0, 33.0, 27.0, 36.0]
    runs = [compared(tmp_path, [row("a", psnr)], seed=n) for n, psnr in enumerate(values)]
    runs.append(compared(tmp_path, [row("a", 1.0)], seed=0, finished=9.0))  # the same, earlier
    runs.append(compared(tmp_path, [row("a", 2.0)], seed=99, finished=1.0))  # of another "a"
    made = of([model(tmp_path, "a", 10, created=5.0), model(tmp_path, "b", 8)], runs)
    point = made.points[0]
    assert (point.cost, point.count, len(point.runs)) == (10.0, 7, 7)
    assert (point.quality.value, point.quality.low, point.quality.high) == (31.0, 25.0, 40.0)
    assert made.points[1].quality is None
    assert [p.name for p in made.drawn] == ["a"]
    assert made.reference.cost == 57.0


def test_equal_pictures_lower_is_better_and_other_costs(tmp_path):
    runs = [compared(tmp_path, [row("a", None, seconds=0.5), row("b", 30.0, seconds=0.25)])]
    models = [model(tmp_path, "a", 10), model(tmp_path, "b", 8)]
    assert of(models, runs).points[0].quality.value == math.inf
    made = of(models, runs, cost="seconds")
    assert [p.cost for p in made.points] == [0.5, 0.25]
    assert made.reference.cost == 2.0
    assert of(models, runs, cost="memory").reference.cost == 500.0
    assert of(models, runs, quality="flip").drawn == ()


def test_shares_have_wilsons_interval(tmp_path):
    runs = [compared(tmp_path, [row("a", 30.0, passed=n > 2)], seed=n) for n in range(10)]
    made = of([model(tmp_path, "a", 10)], runs, quality="alignment")
    known = wilson(7, 10)
    assert made.points[0].quality.low == pytest.approx(100 * known.low)
    assert (made.points[0].quality.value, made.points[0].count) == (pytest.approx(70), 10)
    assert made.reference.quality.value == 100
    made = of([model(tmp_path, "a", 10)], runs, quality="blind", blind={"a": (known, 10)})
    assert made.points[0].quality.high == pytest.approx(100 * known.high)


@pytest.mark.parametrize("quality", ["psnr", "ssim"])
def test_the_front_is_what_no_other_beats(tmp_path, quality):
    draw = random.Random(5)
    places = {f"m{n}": (draw.randint(1, 9), draw.randint(1, 9)) for n in range(40)}
    models = [model(tmp_path, name, cost) for name, (cost, _) in places.items()]
    found = [
        Sample(model=name, run="r", finished=9.0, asked=(name,), cost={},
               values={"psnr": float(value), "ssim": float(value)})
        for name, (_, value) in places.items()
    ]  # fmt: skip
    up = dataclasses.replace(scale(QUALITIES, quality), more_is_better=quality == "psnr")
    made = frontier.frontier(models, found, cost=COSTS[0], quality=up)
    sign = 1 if quality == "psnr" else -1
    for point in made.points:
        cost, value = places[point.name]
        beaten = any(
            c <= cost and sign * v >= sign * value and (c, v) != (cost, value)
            for c, v in places.values()
        )
        assert point.on_front != beaten


@pytest.mark.parametrize(("count", "place"), [(6, 1), (9, 2), (15, 4), (50, 18), (100, 40)])
def test_the_interval_of_a_median_is_the_one_in_the_tables(count, place):
    found = median_interval([float(n) for n in range(1, count + 1)])
    assert (found.low, found.high) == (place, count + 1 - place)
    binomial = stats.binom(count, 0.5)
    assert found.level == pytest.approx(1 - 2 * binomial.cdf(place - 1))
    assert 1 - 2 * binomial.cdf(place) < 0.95  # one further in would not be sure enough


def test_few_values_say_how_little_they_are_worth():
    assert median_interval([]).level == 0
    assert median_interval([3.0]).level == 0
    for count in range(2, 6):
        found = median_interval([math.inf, *map(float, range(count - 1))])
        assert (found.low, found.high) == (0.0, math.inf)
        halves = itertools.product((False, True), repeat=count)
        inside = sum(any(half) and not all(half) for half in halves)
        assert found.level == pytest.approx(inside / 2**count)
