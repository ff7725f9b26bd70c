"""Blame on the page: its states, what a click changes, the region that a person draws."""

from __future__ import annotations

import json
import socket
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from tests.ui import toy_engine
from tests.ui.conftest import Studio, photograph, visit
from tests.views.test_blame_views import NAMES, report
from vqdq.errors import UserError
from vqdq.jobs.blame_result import brief
from vqdq.jobs.requests import BlameRequest, CompareRequest, CompressRequest
from vqdq.jobs.store import Workspace
from vqdq.progress import Event, silent
from vqdq.ui import blame, blame_result, blame_stage, page
from vqdq.ui.blame_look import BlameLook
from vqdq.ui.desk import Desk
from vqdq.ui.live import Region, Session
from vqdq.ui.look import Look, Screen

INSIDE = Session().entering("inspect")
PROMPT = "a large red circle on a plain navy background"
REGION = [0.25, 0.25, 0.75, 0.5]


def _compressed(workspace: Workspace, name: str) -> None:
    folder = workspace.models_folder / name
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    facts = {"base_model": "demo", "bits_per_weight": 3.0, "weight_bytes": 9, "recipe": "r"}
    (folder / "vqdq.json").write_text(json.dumps(facts))


def _picture(workspace: Workspace) -> str:
    """Returns the id of a finished comparison."""
    request = CompareRequest(model="demo", variants=("small",), prompt=PROMPT, seed=7, steps=9)
    workspace.submit(request)
    run = workspace.take()
    assert run is not None
    result = toy_engine.Engine(workspace).execute(request, run.folder, report=silent)
    workspace.finish(run.id, "done", result=dict(result))
    return run.id


def _scores(record: Any, place: int, area: int) -> dict[str, Any] | None:
    if not record.measured[place]:
        return None
    columns = {
        "gain_db": record.gain_db(area), "gain_error_db": record.gain_error_db(area),
        "damage_db": record.damage_db(area), "damage_error_db": record.damage_error_db(area),
        "share": record.share(area),
    }  # fmt: skip
    return {name: float(values[place]) for name, values in columns.items()} | {"step": 2}


def _result(desk: Desk, *, offers: bool = True) -> dict[str, Any]:
    record = report()
    recipe = desk.preset("trellis-3bit").to_json()
    recipe["name"] = "trellis-3bit-repaired"
    recipe["rules"] = [{"pattern": "conv_out", "method": None}, *recipe["rules"]]
    sets = [
        {
            "sentence": f"Keep {n} layers at {bits} bits: +0.47 MB, +{gain} dB in the region"
            " (measured).",
            "layers": list(NAMES[:n]), "bits": bits, "budget_bytes": None, "added_bytes": 470_000,
            "total_bytes": 10_160_000, "before_db": 10.0, "after_db": 10 + gain, "gain_db": gain,
            "predicted_gain_db": gain + 1, "whole_db": 12.0, "recipe": recipe,
            "proposed": (n, bits) == (2, 8),
        }
        for n, bits, gain in ((1, 8, 2.0), (2, 8, 4.5), (2, 16, 4.7))
    ]  # fmt: skip
    return {
        "model": "demo", "variant": "small", "label": "<i>r</i> · 3 bits", "prompt": PROMPT,
        "seed": 7, "steps": 9, "guidance": 3.0, "region": REGION, "steps_measured": [2, 7],
        "before_db": 10.0, "region_db": 13.9, "variant_bytes": 9_690_000, "measured": 3,
        "layers": [
            {
                "name": name, "brief": brief(name), "method": "trellis", "activation": "",
                "bits_per_weight": 3.0, "bytes": record.bytes[place],
                "sixteen_bit_bytes": record.repair_bytes[place], "estimate_db": 20.0 + place,
                "whole": _scores(record, place, 0), "region": _scores(record, place, 1), "ways": [],
            }
            for place, name in enumerate(NAMES)
        ],
        "offers": sets if offers else [], "relearns": True, "report": "blame.npz", "seconds": 14.2,
    }  # fmt: skip


def _done(desk: Desk, *, offers: bool = True) -> str:
    """Returns the id of a finished search."""
    workspace = desk.workspace
    workspace.submit(
        BlameRequest(model="demo", variant="small", prompt=PROMPT, seed=7, steps=9,
                     region=tuple(REGION), worst=3)  # type: ignore[arg-type]
    )  # fmt: skip
    run = workspace.take()
    assert run is not None
    report().save(run.folder / "blame.npz")
    workspace.finish(run.id, "done", result=_result(desk, offers=offers))
    return run.id


@pytest.fixture
def desk(tmp_path: Path):
    workspace = Workspace.open(tmp_path / "workspace")
    yield Desk(workspace, "demo")
    workspace.close()


@cache
def _regions(desk: Desk) -> tuple[Region, ...]:
    """The regions of the part, built once for a desk."""
    with gr.Blocks(analytics_enabled=False):
        return tuple(blame.build(desk, gr.State(Session())).regions)


def _parts(desk: Desk, session: Session = INSIDE) -> dict[str, Any]:
    return {
        region.name.removeprefix("blame "): region.render(session)[1] for region in _regions(desk)
    }


def test_it_says_what_is_missing_and_how_to_get_it(desk: Desk) -> None:
    assert "There is no compressed model yet" in _parts(desk)["empty"]
    assert 'data-act="start"' in _parts(desk)["empty"]
    _compressed(desk.workspace, "small")
    found = _parts(desk)
    assert "There is no picture yet" in found["empty"]
    assert found["stage"] == found["result"] == found["status"] == ""
    with pytest.raises(UserError, match="no picture yet"):
        blame.find(desk, INSIDE, "")
    _picture(desk.workspace)
    assert _parts(desk)["empty"] == ""


def test_a_search_is_asked_for_the_picture_and_the_region_on_display(desk: Desk) -> None:
    _compressed(desk.workspace, "small")
    _picture(desk.workspace)
    stage = _parts(desk)["stage"]
    assert stage.count("<img") == 2
    after = blame.find(desk, INSIDE, "0.25,0.25,0.75,0.5")
    run = desk.workspace.run(after.run("blame"))
    request = run.request
    assert isinstance(request, BlameRequest)
    assert (request.variant, request.prompt, request.seed, request.steps) == ("small", PROMPT, 7, 9)
    assert (list(request.region), request.worst, request.calls) == (REGION, 20, 6)
    assert 'data-region="0.2500,0.2500,0.7500,0.5000"' in _parts(desk, after)["stage"]
    for wrong, words in (("1,2", "four numbers"), ("a,b", "not a region"), ("0,0,2,1", "range")):
        with pytest.raises(UserError, match=words):
            blame.find(desk, INSIDE, wrong)
    shown = blame_stage.subject(desk, INSIDE)
    assert shown is not None
    with pytest.raises(UserError, match="no compressed model"):
        blame.submit(desk, shown, "nowhere")


def test_running_stopped_and_failed_searches_say_so(desk: Desk) -> None:
    _compressed(desk.workspace, "small")
    _picture(desk.workspace)
    session = blame.find(desk, INSIDE, "")
    assert "Waiting for its turn" in blame.status_html(desk, session)
    run = desk.workspace.take()
    assert run is not None
    event = Event(stage="blame", done=40, total=240, message="layer 5 of 129, alone: conv_in")
    desk.workspace.progress(run.id, event, 9.0)
    shown = blame.status_html(desk, session)
    assert "measurement 41 of 240 · 9 s left" in shown
    assert "layer 5 of 129" in shown
    assert 'data-act="cancel"' in shown
    desk.workspace.finish(run.id, "cancelled")
    assert "What was measured is kept" in blame.status_html(desk, session)
    desk.workspace.resume(run.id)
    desk.workspace.take()
    error = {"what": "predicts what the reference does.", "where": "variant", "remedy": "More."}
    desk.workspace.finish(run.id, "failed", error=error)
    shown = blame.status_html(desk, session)
    assert "Predicts what the reference does." in shown
    assert 'data-act="resume"' in shown


def test_a_result_ranks_for_the_region_and_for_the_whole_picture(desk: Desk) -> None:
    run = desk.workspace.run(_done(desk))
    assert _parts(desk, Session())["result"] == ""  # nothing is drawn before the tab is opened
    shown = _parts(desk)["result"]
    assert "up 0 · resnet 0 · conv2</b> is most to blame" in shown
    assert "<i>r</i>" not in shown
    assert shown.count("<svg") == 2
    values = blame_result.result_of(run)
    names = [row["name"] for row in blame_result.ordered(values["layers"], "whole", "share")]
    assert (names[0], names[-1]) == (NAMES[0], NAMES[3])
    by_damage = blame_result.ordered(values["layers"], "region", "damage_db")
    assert by_damage[0]["name"] == NAMES[1]
    whole = blame.looked(INSIDE, {"act": "area", "value": "whole"})
    assert "conv1</b> is most to blame" in _parts(desk, whole)["result"]
    assert "≈ 23.0 dB" in shown  # not measured: an estimate, and it says so
    assert "Estimated" in shown
    damaged = _done(desk)
    (desk.workspace.run(damaged).folder / "blame.npz").write_bytes(b"PK")
    assert "damaged" in _parts(desk, INSIDE.showing(blame=damaged))["result"]


def test_a_repair_becomes_a_recipe_with_one_click(desk: Desk) -> None:
    run = desk.workspace.run(_done(desk))
    shown = _parts(desk)["result"]
    assert shown.count("proposed") == 1
    assert "Keep 2 layers at 8 bits: +0.47 MB, +4.5 dB in the region." in shown
    assert "calibrates and learns again" in shown
    assert 'href="?tab=compress&amp;' in shown
    session = blame.looked(INSIDE, {"act": "offer", "value": "2"})
    offer = blame_result.chosen(run, session.look(BlameLook))
    assert offer is not None
    assert offer["bits"] == 16
    after = blame.mend(desk, session)
    made = desk.workspace.run(after.look(BlameLook).made)
    assert isinstance(made.request, CompressRequest)
    assert made.request.recipe.to_json() == offer["recipe"]
    assert made.request.name == "demo-trellis-3bit-repaired"
    assert "Waiting" in blame.made_html(desk, after)
    desk.workspace.take()
    desk.workspace.finish(made.id, "done", result={})
    assert 'data-act="compare" data-name="demo-trellis-3bit-repaired"' in blame.made_html(
        desk, after
    )
    none = INSIDE.showing(blame=_done(desk, offers=False))
    assert "No repair helps" in _parts(desk, none)["result"]
    with pytest.raises(UserError, match="no repair"):
        blame.mend(desk, none)


def test_clicks_open_a_layer_and_save_figures(desk: Desk) -> None:
    run = desk.workspace.run(_done(desk))
    opened = blame.looked(INSIDE, {"act": "layer", "value": NAMES[1]})
    assert opened.look(Look).layer == NAMES[1]
    assert "layer" in opened.look(Screen).wanted
    assert 'data-act="layer"' not in _parts(desk)["result"]  # there is no recording to look into
    for bad in ({}, {"act": "by", "value": "?"}, {"act": "offer", "value": "x"}):
        assert blame.looked(INSIDE, bad) == INSIDE
    link = blame.save(desk, INSIDE, {"act": "save", "figure": "steps", "as": "csv"})
    assert 'download="blame-steps-region.csv"' in link
    lines = (run.folder / "figures" / "blame-steps-region.csv").read_text().splitlines()
    assert lines[0] == "layer,step,gain_db"
    assert len(lines) == 1 + 3 * 2
    with pytest.raises(UserError, match="no figure"):
        blame.save(desk, INSIDE, {"figure": "../x", "as": "png"})
    with pytest.raises(UserError, match="no format"):
        blame.save(desk, INSIDE, {"figure": "steps", "as": "exe"})


@pytest.mark.browser
def test_a_region_is_drawn_moved_and_sent(tmp_path: Path, browser: Any) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    desk = Desk(workspace, "demo")
    _compressed(workspace, "small")
    _picture(workspace)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = page.build(workspace, "demo", desk=desk)
    options = page.launch_options(workspace, host="127.0.0.1", port=port, auth=None)
    _, url, _ = blocks.launch(prevent_thread_lock=True, **options)
    tab = browser.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    try:
        visit(tab, Studio(url=url, workspace=workspace), "?tab=inspect")
        stage = tab.locator(".vq-blame-stage[data-on=whole]")
        stage.wait_for()
        pane = tab.locator(".vq-blame-pane").last
        pane.scroll_into_view_if_needed()
        box = pane.bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        tab.mouse.down()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 3 / 4, steps=3)
        tab.mouse.up()
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Shift+ArrowUp")
        marked = tab.locator(".vq-blame-stage").get_attribute("data-region")
        assert [float(part) for part in marked.split(",")] == pytest.approx(
            [0.27, 0.25, 0.52, 0.73], abs=0.01
        )
        tab.locator("[data-act=blame]").click()
        tab.locator("#vq-inspect-blame-status [role=progressbar]").wait_for()
        request = workspace.runs("blame")[0].request
        assert [*request.region] == pytest.approx([0.27, 0.25, 0.52, 0.73], abs=0.01)
        tab.locator(".vq-blame-stage[data-on=region]").wait_for()  # it stays
        tab.locator("button.vq-blame-box").press("Escape")
        tab.locator(".vq-blame-stage[data-on=whole]").wait_for()
        workspace.cancel(workspace.runs("blame")[0].id)
        _done(desk)
        visit(tab, Studio(url=url, workspace=workspace), "?tab=inspect", width=390, height=844)
        tab.locator(".vq-offer[data-value='0']").click()
        tab.locator(".vq-offer[data-value='0'][aria-pressed=true]").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tab.locator("[data-narrow=true] svg").first.wait_for()
        photograph(tab, "blame-390")
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(tab).response["violations"]
        assert [(f["id"], f["nodes"][0]["target"]) for f in found
                if f["impact"] in ("serious", "critical")] == []  # fmt: skip
    finally:
        tab.goto("about:blank")
        tab.close()
        blocks.close(verbose=False)
        workspace.close()
    assert faults == []
