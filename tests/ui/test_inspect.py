"""The Inspect tab: its states, what a click changes, captures after a restart, and the browser."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from tests.capture import toy
from tests.ui.conftest import Studio, photograph, visit
from vqdq.capture import record, record_attention, tokenize
from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.store import Workspace
from vqdq.progress import Event
from vqdq.ui import inspect, inspection, page
from vqdq.ui.desk import Desk
from vqdq.ui.live import Session, follow
from vqdq.ui.look import Look

PROMPT = "red circle on blue"
CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
INSIDE = Session().entering("inspect")


def _request(**changes) -> InspectRequest:
    given = {
        "model": "demo",
        "variants": ("small",),
        "prompt": PROMPT,
        "steps": 3,
        "layer": CONV,
        "step": 1,
    }
    return InspectRequest(**{**given, **changes})


def _capture(folder: Path, role: str, seed: int, *, attention: bool = True) -> dict:
    model, tokenizer = toy.unet(), toy.Tokenizer()
    tokens, negative = tokenize(tokenizer, PROMPT), tokenize(tokenizer, "")
    with (
        record(model, detail=(CONV,), detail_steps=(1,), guided=True) as activity,
        record_attention(model, tokens, negative=negative) as scores,
    ):
        toy.draw(model, seed=seed)
    activity.result().save(folder / f"{role}-activations.npz")
    scores.result().save(folder / f"{role}-attention.npz")
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{role}.png")
    return {
        "variant": role,
        "label": role,
        "image": f"{role}.png",
        "activations": f"{role}-activations.npz",
        "attention": f"{role}-attention.npz" if attention else None,
        "attention_reason": None if attention else "This model reads its prompt in another way.",
    }


def _done(workspace: Workspace, *, variant: bool = True, attention: bool = True) -> str:
    """Returns the id of a finished capture with real records of a toy model."""
    workspace.submit(_request(variants=("small",) if variant else ()))
    run = workspace.take()
    assert run is not None
    result = {
        "prompt": PROMPT,
        "layer": CONV,
        "step": 1,
        "steps": 3,
        "seconds": 1.5,
        "reference": _capture(run.folder, "reference", 0, attention=attention),
        "variants": [_capture(run.folder, "small", 1, attention=attention)] if variant else [],
    }
    workspace.finish(run.id, "done", result=result)
    return run.id


@pytest.fixture
def workspace(tmp_path):
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


@pytest.fixture
def desk(workspace) -> Desk:
    return Desk(workspace, "demo")


def _parts(desk: Desk, session: Session = INSIDE) -> dict[str, str]:
    """What the regions of the tab show, by their names."""
    with gr.Blocks(analytics_enabled=False), gr.Tab("Inspect") as tab:
        regions = inspect.build(desk, gr.State(session), tab).regions
    found = {region.name: region.render(session)[1] for region in regions}
    assert len(follow(regions, session)) == len(regions) + 1
    return found


def test_the_empty_tab_says_what_will_be_here(desk):
    found = _parts(desk)
    assert "Look inside while a picture is drawn" in found["inspect status"]
    assert [found[f"inspect {name}"] for name in ("words", "scores", "layer", "layers")] == [""] * 4


def test_running_failed_and_cancelled_captures_say_so(desk, workspace):
    workspace.submit(_request())
    assert "Waiting for its turn" in inspect.status_html(desk, INSIDE)
    run = workspace.take()
    workspace.progress(run.id, Event(stage="draw", done=1, total=3), None)
    assert "step 2 of 3" in inspect.status_html(desk, INSIDE)
    error = {"what": "the disk is full.", "where": "runs", "remedy": "Free some space."}
    workspace.finish(run.id, "failed", error=error)
    shown = inspect.status_html(desk, INSIDE.showing(inspect=run.id))
    assert "The disk is full." in shown
    assert "Free some space." in shown
    assert 'data-act="resume"' in shown
    workspace.resume(run.id)
    workspace.cancel(run.id)
    shown = inspect.status_html(desk, INSIDE.showing(inspect=run.id))
    assert "Stopped before it was done" in shown


def test_a_finished_capture_shows_words_scores_layer_and_layers(desk, workspace):
    _done(workspace)
    found = _parts(desk)
    assert "FP16 and small" in found["inspect status"]
    words = found["inspect words"]
    assert re.findall(r'data-at="\d">?[^>]*>(\w+)<', words) == ["red", "circle", "on", "blue"]
    assert words.count("moved") == 4
    assert words.count("<svg") == 1
    assert "Attention scores" in found["inspect scores"]
    assert CONV in found["inspect layer"]
    assert found["inspect layer"].count("<svg") == 2
    assert "times the median magnitude" in found["inspect layer"]
    assert 'data-value="sqnr_db"' in found["inspect layers"]
    assert found["inspect layer"].count("FP16: channel") == 1
    assert "var(--vq-text)" in words


def test_figures_are_not_drawn_before_the_tab_is_opened(desk, workspace):
    _done(workspace)
    assert _parts(desk, Session())["inspect words"] == ""


def test_controls_take_up_what_the_shown_capture_was_asked_with(desk, workspace):
    _done(workspace)
    found = _parts(desk)
    assert found["inspect layer control"]["value"] == CONV
    assert found["inspect step control"]["value"] == 2
    assert found["inspect prompt control"]["value"] == PROMPT


def test_clicks_change_what_is_looked_at(workspace):
    capture = inspection.of_run(workspace.run(_done(workspace)))
    look = inspect.looked(Look(), {"act": "word", "at": "3"})
    assert "to “blue”" in inspection.words(capture, look)
    look = inspect.looked(look, {"act": "half", "value": "uncond"})
    assert look.half == "uncond"
    look = inspect.looked(look, {"act": "order", "value": "size"})
    assert "largest first" in inspection.layer(capture, look)
    look = inspect.looked(look, {"act": "quantity", "value": "sqnr_db"})
    assert "output against FP16 (dB)" in inspection.layers(capture, look)
    layer = capture.attention[0][1].layers[-1]
    inner = inspect.looked(look, {"act": "where", "value": layer})
    assert inspection.scores(capture, inner) != inspection.scores(capture, look)
    assert inspection.words(capture, inner) != inspection.words(capture, look)
    assert inspection.short(layer) == "up 0 · 2"
    for bad in ({}, {"act": "half", "value": "?"}, {"act": "word", "at": "x"}, {"act": "quantity"}):
        assert inspect.looked(look, bad) == look


def test_another_layer_shows_at_once_or_offers_to_record_it(desk, workspace):
    run = _done(workspace)
    capture = inspection.of_run(workspace.run(run))
    assert "This layer reads the text" in inspection.layer(capture, Look(layer=TEXT, step=1))
    missing = inspection.layer(capture, Look(layer=TEXT, step=0))
    assert "Not recorded here" in missing
    assert 'data-act="record"' in missing
    session = INSIDE.showing(inspect=run).looking(Look(layer=TEXT, step=0))
    after, fault = inspect.again(desk, session)
    assert fault == ""
    made = workspace.run(after.run("inspect")).request
    assert isinstance(made, InspectRequest)
    assert (made.layer, made.step, made.prompt, made.variants) == (TEXT, 0, PROMPT, ("small",))


def test_without_variant_or_attention_it_shows_what_there_is(workspace):
    alone = inspection.of_run(workspace.run(_done(workspace, variant=False)))
    assert "moved" not in inspection.words(alone, Look())
    assert "sqnr_db" not in inspection.layers(alone, Look())
    blind = inspection.of_run(workspace.run(_done(workspace, variant=False, attention=False)))
    assert "in another way" in inspection.words(blind, Look())
    assert inspection.scores(blind, Look()) == ""


def test_captures_open_again_after_a_restart(desk, workspace):
    first = _done(workspace, variant=False)
    second = _done(workspace)
    path = workspace.path
    workspace.close()
    again = Workspace.open(path)
    desk = Desk(again, "demo")
    cards = _parts(desk)["inspect earlier"]
    assert cards.index(second) < cards.index(first)
    shown = _parts(desk, INSIDE.showing(inspect=first))
    assert "FP16:" in shown["inspect status"]
    assert "moved" not in shown["inspect words"]
    again.close()


def test_damaged_files_are_a_clear_fault(desk, workspace):
    run = workspace.run(_done(workspace))
    (run.folder / "small-attention.npz").write_bytes(b"PK")
    found = _parts(desk)
    assert "The record is missing or damaged." in found["inspect status"]
    assert "Capture it again." in found["inspect status"]
    assert found["inspect words"] == ""


def test_what_is_asked_is_checked(desk):
    with pytest.raises(UserError, match="no compressed model"):
        inspect.submit(desk, PROMPT, 1, "nowhere", 3.0, CONV, 5)
    with pytest.raises(UserError, match="layer"):
        inspect.submit(desk, PROMPT, 1, "", 3.0, "", 5)
    with pytest.raises(UserError, match="step"):
        inspect.submit(desk, PROMPT, 1, "", 3.0, CONV, 99)
    with pytest.raises(UserError, match="seed"):
        inspect.submit(desk, PROMPT, -1, "", 3.0, CONV, 5)
    with pytest.raises(UserError):
        inspect.submit(desk, "", 1, "", 3.0, CONV, 5)
    run = desk.workspace.run(inspect.submit(desk, PROMPT, 1, "", 3.0, CONV, 5))
    assert isinstance(run.request, InspectRequest)
    assert run.request.step == 4


def test_layers_are_offered_in_the_order_they_run(desk):
    names = inspect.layer_names(desk)
    assert names.index("conv_in") < names.index("mid_block.resnets.0.conv1")
    assert inspect.first_layer(names) in names
    assert inspect.first_layer(()) is None


def test_words_of_strangers_stay_text(workspace, desk):
    _done(workspace)
    run = workspace.runs("inspect")[0]
    result = dict(run.result or {})
    result["variants"] = [{**result["variants"][0], "label": "<img src=x>"}]
    workspace.submit(_request(prompt="<script>x</script>"))
    taken = workspace.take()
    for name in run.folder.iterdir():
        if name.suffix in (".npz", ".png"):
            (taken.folder / name.name).write_bytes(name.read_bytes())
    workspace.finish(taken.id, "done", result=result)
    shown = "".join(str(value) for value in _parts(desk).values() if isinstance(value, str))
    assert "<img src=x>" not in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.fixture
def inside(tmp_path_factory):
    workspace = Workspace.open(tmp_path_factory.mktemp("inspect"))
    run = _done(workspace)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = page.build(workspace, "demo")
    options = page.launch_options(workspace, host="127.0.0.1", port=port, auth=None)
    _, url, _ = blocks.launch(prevent_thread_lock=True, **options)
    yield Studio(url=url, workspace=workspace), run
    blocks.close(verbose=False)
    workspace.close()


def _grave_faults(tab) -> list[object]:
    from axe_playwright_python.sync_playwright import Axe

    return [
        (item["id"], [node["target"] for node in item["nodes"]][:4])
        for item in Axe().run(tab).response["violations"]
        if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.browser
def test_words_and_layers_answer_to_clicks(inside, browser):
    studio, run = inside
    tab = browser.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    visit(tab, studio, f"?tab=inspect&run={run}")
    tab.wait_for_selector("#vq-inspect-layers svg")
    assert tab.locator("[data-act=word][data-at='0']").get_attribute("aria-pressed") == "false"
    tab.locator("[data-act=word][data-at='0']").click()
    tab.wait_for_selector("[data-act=word][data-at='0'][aria-pressed=true]")
    assert "“red”" in (tab.locator("#vq-inspect-words svg").get_attribute("aria-label") or "")
    tab.get_by_role("button", name="mid · 1").click()
    tab.wait_for_selector("[data-act=where][data-value^=mid][aria-pressed=true]")
    tab.get_by_role("button", name="Largest first").click()
    tab.wait_for_selector("[data-act=order][data-value=size][aria-pressed=true]")
    tab.get_by_role("button", name="Drift").click()
    tab.wait_for_selector("[data-act=quantity][data-value=sqnr_db][aria-pressed=true]")
    assert tab.locator("#vq-inspect-prompt textarea").input_value() == PROMPT
    photograph(tab, "inspect-1440")
    assert _grave_faults(tab) == []
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert _grave_faults(tab) == []
    tab.goto("about:blank")
    tab.close()
    assert faults == []


def test_many_attention_layers_offer_the_one_beside_the_chosen_layer(workspace, monkeypatch):
    capture = inspection.of_run(workspace.run(_done(workspace)))
    monkeypatch.setattr(inspection, "MANY", 2)
    look = Look(layer="mid_block.resnets.1.conv2")
    found = re.findall(r'data-act="where" data-value="([^"]*)"', inspection.words(capture, look))
    assert found == ["", "mid_block.attentions.0.transformer_blocks.0.attn2"]
