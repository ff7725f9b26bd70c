"""What the tabs share: plans, costs, names, and a model that cannot be opened."""

from __future__ import annotations

import copy
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest

from vqdq.cli import draw
from vqdq.errors import UserError
from vqdq.jobs.store import Workspace
from vqdq.ui import compare_numbers, comparison, live, page
from vqdq.ui.desk import GOALS, Desk
from vqdq.ui.live import Page, Session, grown


@pytest.fixture
def workspace(tmp_path: Path):
    opened = Workspace.open(tmp_path / "w")
    yield opened
    opened.close()


def test_goals_are_presets_and_get_smaller(workspace) -> None:
    desk = Desk(workspace, "demo")
    sizes = {goal.name: desk.plan(desk.preset(goal.name)).predicted_bytes for goal in GOALS}
    assert sizes["w8a8"] > sizes["trellis-4bit"] > sizes["trellis-3bit"]
    assert sizes["trellis-3bit"] > sizes["trellis-2bit"]


def test_a_plan_is_made_once(workspace) -> None:
    desk = Desk(workspace, "demo")
    assert desk.plan(desk.preset("vq-3bit")) is desk.plan(desk.preset("vq-3bit"))


def test_an_estimate_is_honest_about_its_source(workspace) -> None:
    desk = Desk(workspace, "demo")
    cost = desk.estimate(desk.plan(desk.preset("trellis-3bit")))
    assert cost.seconds > 0
    assert "a computer with two cores" in cost.seconds_source
    assert cost.memory_bytes > desk.plan(desk.preset("trellis-3bit")).reference_bytes


def test_names_are_free_and_clean(workspace, tmp_path: Path) -> None:
    desk = Desk(workspace, "demo")
    recipe = desk.preset("trellis-3bit")
    assert desk.suggest_name(recipe) == "demo-trellis-3bit"
    (workspace.models_folder / "demo-trellis-3bit").mkdir()
    assert desk.suggest_name(recipe) == "demo-trellis-3bit-2"
    assert Desk(workspace, str(tmp_path / "my model!")).suggest_name(recipe) == (
        "my-model--trellis-3bit"
    )


@pytest.mark.parametrize("model", ["/no/such/folder", "no-such-model"])
def test_a_model_that_cannot_be_opened_is_said_on_the_page(workspace, model: str) -> None:
    desk = Desk(workspace, model)
    assert isinstance(desk.fault, UserError)
    content = str(page.build(workspace, model).get_config_file()["components"])
    assert "This model cannot be opened" in content
    assert desk.fault.remedy.split("`")[0].strip()[:20] in content


def test_a_press_that_was_on_its_way_when_the_page_arrived_does_not_undo_the_arrival() -> None:
    session = Session()
    pressed = session.showing(compress="run")  # read before, written after
    session.page.sent["status"] = "old"
    session.arrive()
    assert pressed.page.arrived
    assert pressed.page.sent == {}


def test_events_that_overlap_do_not_undo_each_other() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(session: Session, tab: str) -> list[object]:
        begun.set()
        go_on.wait(60)
        return ["", session.entering(tab)]

    def press(session: Session) -> Session:
        return session.showing(blind="run")

    read = Session()  # by both, as they begin
    with ThreadPoolExecutor() as pool:
        first = pool.submit(live.changing(slowly), read, "blind")
        begun.wait(60)
        second = pool.submit(live.changing(press), read)
        go_on.set()
        assert first.result(60)[1].opened == {"blind"}
        assert second.result(60).opened == {"blind"}
    assert read.latest == Session().entering("blind").showing(blind="run")
    assert live.changing(lambda _: gr.skip())(read) == gr.skip()
    assert read.latest.run("blind") == "run"
    assert copy.deepcopy(read).latest == Session()  # another page begins anew
    assert list(inspect.signature(live.changing(slowly)).parameters) == ["session", "tab"]


def test_choices_stay_while_the_models_grow() -> None:
    one, two = ("three bits", "a"), ("two bits", "b")
    first = Session(page=Page(sent={}))
    assert grown(first, "variants", [one]) == {"choices": [one], "value": ["a"]}
    assert grown(first, "variants", []) == {"choices": [], "value": []}
    seen = Session(page=Page(sent={"variants": repr([one])}))
    assert grown(seen, "variants", [two, one]) == {"choices": [two, one]}  # what is chosen stays
    both = Session(page=Page(sent={"variants": repr([two, one])}))
    assert grown(both, "variants", [one]) == {"choices": [one], "value": ["a"]}


def test_what_only_a_first_picture_pays_is_a_row_of_its_own() -> None:
    def shown(once: float) -> str:
        entries = [
            comparison.Entry(label=name, image="", seconds=2.6, once_seconds=seconds)
            for name, seconds in (("FP16", 0.0), ("small", once))
        ]
        found = comparison.Comparison(
            run="", prompt="a", seed=0, steps=4, guidance=1.0,
            reference=entries[0], variants=(entries[1],),
        )  # fmt: skip
        return compare_numbers.numbers(found)

    assert ">2.6 s</td><td" in shown(1.9)
    assert ">0.7 s</td>" in shown(1.9)
    assert ">+ 1.9 s</td>" in shown(1.9)
    assert "Seconds more" in shown(0.0)  # the meaning of every row is at hand
    assert ">+ " not in shown(0.0)
    picture = {"seconds": 2.6, "once_seconds": 1.9}
    assert (draw._time(picture), draw._time({"seconds": 2.6})) == ("0.7 s + 1.9 s once", "2.6 s")
