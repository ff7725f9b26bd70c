"""What people write for values, and what a grid will take by closed forms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.jobs.test_grid import asked
from vqdq.errors import UserError
from vqdq.jobs.grid import preset
from vqdq.jobs.grid_axes import EXAMPLES, in_words, parse_axis, parse_values
from vqdq.jobs.grid_cells import expand
from vqdq.jobs.grid_cost import Pace, cost, paces_of
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.requests.grid import AXES
from vqdq.models import pipelines
from vqdq.recipe import resolve


@pytest.mark.parametrize(
    ("axis", "text", "values"),
    [
        ("bits", "2, 3,4", (2, 3, 4)),
        ("seed", "1-8", tuple(range(1, 9))),
        ("steps", "2..10:2", (2, 4, 6, 8, 10)),
        ("steps", "5, 10-30:10 ,40", (5, 10, 20, 30, 40)),
        ("guidance", "1..2:0.25", (1, 1.25, 1.5, 1.75, 2)),
        ("guidance", "0.1-0.7:0.3", (0.1, 0.4, 0.7)),
        ("seed", "7", (7,)),
        ("method", "trellis, uniform", ("trellis", "uniform")),
        ("prompt", "a cat, a dog | two  cats\na bird", ("a cat, a dog", "two cats", "a bird")),
    ],
)
def test_lists_and_ranges(axis, text, values):
    assert parse_values(axis, text) == values


@pytest.mark.parametrize(
    ("axis", "text", "words"),
    [
        ("seed", "a", '"a" is no number'),
        ("seed", "8-1", "empty range"),
        ("seed", "1-3:0", "empty range"),
        ("seed", "1.5", "not whole"),
        ("seed", "1-100000", "has 100,000 values"),
        ("seed", "1-300,400-700", "more than 400 values"),
        ("seed", " , ", "has no values"),
        ("seeds", "1", 'Did you mean "seed"'),
    ],
)
def test_what_cannot_be_read_says_what_is_allowed(axis, text, words):
    with pytest.raises(UserError) as fault:
        parse_values(axis, text)
    assert words in str(fault.value)


def test_every_axis_has_an_example_that_can_be_read():
    assert set(EXAMPLES) == set(AXES)
    for name, text in EXAMPLES.items():
        assert parse_axis(f"{name}={text}").name == name
    with pytest.raises(UserError, match="has no values"):
        parse_axis("bits")
    assert [in_words(v) for v in ((1, 2, 3, 4), (2, 4), (1, 2.5))] == ["1-4", "2, 4", "1, 2.5"]


def finished(seconds, steps, model="demo"):
    request = GenerateRequest(model=model, prompt="x", steps=steps)
    return SimpleNamespace(request=request, result={"seconds": seconds})


def test_the_cost_is_steps_times_the_measured_pace_and_the_planned_bytes():
    paces = paces_of([finished(2.0, 10), finished(4.0, 10), finished(9.0, 10)])
    assert paces == {"demo": Pace(step_seconds=0.4, pictures=3)}
    component = pipelines.component("demo")
    grid = expand(asked(("bits", [16, 3]), ("seed", [1, 2]), ("steps", [5, 20])), preset)
    plans = {d.key: resolve(d.recipe, component) for d in grid.drawers if d.recipe}
    given = {"plan": lambda d: plans[d.key], "reference": "demo", "pixels": 128}
    found = cost(grid, paces=paces, call_seconds=0.0, other_bytes=10, **given)
    (plan,) = plans.values()
    assert (found.cells, found.pictures, found.compressions) == (8, 8, 1)
    assert found.made_bytes == plan.predicted_bytes + 10
    assert found.draw_seconds == pytest.approx(0.4 * 4 * (5 + 20) + 2 * 1.0)  # two are opened
    assert found.source == "Estimated from 3 earlier pictures here."
    assert 0 < found.disk_bytes - found.made_bytes < 8 * 3 * 128**2
    less = cost(grid, paces={}, call_seconds=0.1, done=[p.key for p in grid.pictures[:4]], **given)
    assert less.pictures == 4
    assert less.draw_seconds == pytest.approx(2 * 2 * 0.1 * (5 + 20) + 4 * 0.15 + 1.0)
    assert "the model's size and the steps" in less.source
    assert less.seconds == less.draw_seconds + less.make_seconds


def test_a_recipe_that_does_not_fit_is_named_before_it_starts():
    grid = expand(asked(("bits", [16, 3])), preset)

    def plan(_):
        raise UserError("320 inputs cannot be split.", where="conv")

    found = cost(grid, plan=plan, paces={}, reference="demo", call_seconds=0.1)
    assert found.problems == {"trellis-3bit": "conv: 320 inputs cannot be split."}
    assert (found.compressions, found.made_bytes) == (0, 0)
