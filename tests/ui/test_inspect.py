"""The Inspect tab: its states, what a click changes, captures after a restart."""

from __future__ import annotations

from functools import cache

import gradio as gr
import pytest

from tests.ui.captures import CONV, PROMPT, TEXT, done, request
from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.store import Workspace
from vqdq.progress import Event
from vqdq.ui import inspect
from vqdq.ui.desk import Desk
from vqdq.ui.inspect_clicks import again, looked, turned
from vqdq.ui.inspect_shown import status_html
from vqdq.ui.live import Region, Session, follow
from vqdq.ui.look import SECTIONS, Look, Screen

NAMES = tuple(name for name, _ in SECTIONS)
INSIDE = Session().entering("inspect").looking(Screen(wanted=frozenset()))
WORDS = INSIDE.looking(Screen(wanted=frozenset({"words"})))


@pytest.fixture
def workspace(tmp_path):
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


@pytest.fixture
def desk(workspace) -> Desk:
    return Desk(workspace, "demo")


@cache
def _regions(desk: Desk) -> tuple[Region, ...]:
    """The regions of the tab, built once for a desk."""
    with gr.Blocks(analytics_enabled=False), gr.Tab("Inspect") as tab:
        return tuple(inspect.build(desk, gr.State(Session()), tab).regions)


def _parts(desk: Desk, session: Session = INSIDE) -> dict[str, str]:
    """What the regions of the tab show, by their names."""
    regions = _regions(desk)
    found = {region.name: region.render(session)[1] for region in regions}
    assert len(follow(regions, session)) == len(regions)
    return found


def test_the_empty_tab_says_what_will_be_here(desk):
    found = _parts(desk)
    assert "Look inside while a picture is drawn" in found["inspect status"]
    assert [found[f"inspect {name}"] for name in ("bar", *NAMES)] == [""] * 6


def test_running_failed_and_cancelled_captures_say_so(desk, workspace):
    workspace.submit(request())
    assert "Waiting for its turn" in status_html(desk, INSIDE)
    assert "before it" not in status_html(desk, INSIDE)
    run = workspace.take()
    second = workspace.submit(request())
    assert "1 run before it" in status_html(desk, INSIDE.showing(inspect=second))
    workspace.delete(second)
    workspace.progress(run.id, Event(stage="draw", done=1, total=3), None)
    assert "step 2 of 3" in status_html(desk, INSIDE)
    error = {"what": "the disk is full.", "where": "runs", "remedy": "Free some space."}
    workspace.finish(run.id, "failed", error=error)
    shown = status_html(desk, INSIDE.showing(inspect=run.id))
    assert "The disk is full." in shown
    assert "Free some space." in shown
    assert 'data-act="resume"' in shown
    workspace.resume(run.id)
    workspace.cancel(run.id)
    shown = status_html(desk, INSIDE.showing(inspect=run.id))
    assert "Stopped before it was done" in shown


def test_only_what_is_wanted_is_drawn(desk, workspace):
    done(workspace)
    assert _parts(desk, Session())["inspect map"] == ""
    found = _parts(desk, Session().entering("inspect"))
    assert found["inspect map"].count("<svg") == 1
    for name in NAMES[1:]:
        shown = found[f"inspect {name}"]
        assert "<svg" not in shown
        assert f'data-act="want" data-value="{name}"' in shown
    wanted = turned(INSIDE.looking(Screen()), {"act": "want", "value": "words"}).look(Screen)
    assert wanted.wanted == {"map", "words"}
    assert turned(INSIDE, {"act": "want", "value": "?"}).look(Screen) == INSIDE.look(Screen)


def test_controls_take_up_what_the_shown_capture_was_asked_with(desk, workspace):
    done(workspace)
    found = _parts(desk)
    assert found["inspect layer control"]["value"] == CONV
    assert found["inspect step control"] == {"__type__": "update", "value": 2, "maximum": 3}
    assert found["inspect prompt control"]["value"] == PROMPT
    moved = _parts(desk, turned(INSIDE, {"act": "cell", "layer": TEXT, "step": "2"}))
    assert moved["inspect layer control"]["value"] == TEXT
    assert moved["inspect step control"]["value"] == 3


def test_clicks_change_what_is_looked_at():
    look = looked(Look(), {"act": "cell", "layer": TEXT, "step": "2"})
    assert (look.layer, look.step) == (TEXT, 2)
    for act, value in (("half", "uncond"), ("quantity", "clipped"), ("scale", "linear"),
                       ("order", "value"), ("which", "difference"), ("where", "step"),
                       ("by", "head"), ("inside", TEXT)):  # fmt: skip
        assert getattr(looked(look, {"act": act, "value": value}), act) == value
    assert looked(look, {"act": "order-channels", "value": "size"}).by_size
    assert looked(look, {"act": "raised", "value": "raised"}).raised
    assert looked(look, {"act": "word", "at": "3"}).word == 3
    assert looked(look, {"act": "variant", "at": "2"}).variant == 2
    for bad in ({}, {"act": "cell", "step": "x"}, {"act": "word", "at": "x"}, {"act": "folder"}):
        assert looked(look, bad) == look
    session = turned(INSIDE, {"act": "narrow", "value": "true"})
    assert session.look(Screen).narrow
    opened = turned(INSIDE.looking(Screen()), {"act": "cell", "layer": TEXT, "step": "0"})
    assert "layer" in opened.look(Screen).wanted


def test_another_layer_can_be_recorded(desk, workspace):
    session = INSIDE.showing(inspect=done(workspace)).looking(Look(layer=TEXT, step=0))
    after, fault = again(desk, session)
    assert fault == ""
    made = workspace.run(after.run("inspect")).request
    assert isinstance(made, InspectRequest)
    assert (made.layer, made.step, made.prompt, made.variants) == (TEXT, 0, PROMPT, ("small",))


def test_captures_open_again_after_a_restart(desk, workspace):
    first = done(workspace, variants=())
    second = done(workspace)
    path = workspace.path
    workspace.close()
    opened = Workspace.open(path)
    desk = Desk(opened, "demo")
    cards = _parts(desk)["inspect earlier"]
    assert cards.index(second) < cards.index(first)
    shown = _parts(desk, WORDS.showing(inspect=first))
    assert f'data-shown-run="{first}"' in shown["inspect status"]
    assert "moved" not in shown["inspect words"]
    opened.close()


def test_damaged_files_are_a_clear_fault_in_their_section(desk, workspace):
    run = workspace.run(done(workspace))
    (run.folder / "small-attention.npz").write_bytes(b"PK")
    found = _parts(desk, WORDS)
    assert "The record is missing or damaged." in found["inspect words"]
    assert "Capture it again." in found["inspect words"]
    assert "layers at 3 steps" in found["inspect status"]
    (run.folder / "result.json").unlink()
    second = workspace.run(done(workspace))
    (second.folder / "reference-activations.npz").unlink()
    assert "The record is missing or damaged." in _parts(desk)["inspect status"]


def test_what_is_asked_is_checked(desk):
    with pytest.raises(UserError, match="no compressed model"):
        inspect.submit(desk, PROMPT, 1, ["nowhere"], 3.0, CONV, 5)
    with pytest.raises(UserError, match="step"):
        inspect.submit(desk, PROMPT, 1, [], 3.0, CONV, 99)
    with pytest.raises(UserError, match="seed"):
        inspect.submit(desk, PROMPT, -1, [], 3.0, CONV, 5)
    with pytest.raises(UserError, match="guidance"):
        inspect.submit(desk, PROMPT, 1, [], None, CONV, 5)
    with pytest.raises(UserError):
        inspect.submit(desk, "", 1, [], 3.0, CONV, 5)
    run = desk.workspace.run(inspect.submit(desk, PROMPT, 1, [], 3.0, CONV, 5))
    assert isinstance(run.request, InspectRequest)
    assert run.request.step == 4


def test_layers_are_offered_in_the_order_they_run(desk):
    names = inspect.layer_names(desk)
    assert names.index("conv_in") < names.index("mid_block.resnets.0.conv1")


def test_words_of_strangers_stay_text(workspace, desk):
    run = workspace.run(done(workspace))
    result = dict(run.result or {})
    result["variants"] = [{**result["variants"][0], "label": "<img src=x>"}]
    workspace.submit(request(prompt="<script>x</script>"))
    taken = workspace.take()
    for name in run.folder.iterdir():
        if name.suffix in (".npz", ".png"):
            (taken.folder / name.name).write_bytes(name.read_bytes())
    workspace.finish(taken.id, "done", result=result)
    screen = Screen(wanted=frozenset({"map", "trajectory"}))
    found = _parts(desk, INSIDE.looking(screen)).values()
    shown = "".join(str(value) for value in found if isinstance(value, str))
    assert "<img src=x>" not in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
