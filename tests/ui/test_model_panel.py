"""Another model on the desk: what is typed, what was opened, and that only one page changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from huggingface_hub import constants

from tests.models import tiny
from tests.models.hub_stand_in import HubStandIn, hub
from tests.ui.conftest import Studio, photograph, visit
from vqdq.also import DECODER, TEXT_ENCODERS, also
from vqdq.errors import UserError
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.store import Workspace
from vqdq.models.fit import fit
from vqdq.models.glance import glance
from vqdq.models.sources import demo_folder
from vqdq.quantities import size
from vqdq.ui import compare, drawn_on, fit_panel, model_cards, model_facts, model_panel, panels
from vqdq.ui.desk import Desk
from vqdq.ui.model_open import Opening
from vqdq.ui.wording import escape

__all__ = ["hub"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of them damaged, and a pickle."""
    folder = tmp_path_factory.mktemp("models")
    tiny.folder(folder / "tiny")
    shutil.copytree(folder / "tiny", folder / "torn")
    path = next((folder / "torn" / "text_encoder").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "old.ckpt").write_bytes(b"pickled")
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    workspace = Workspace.open(tmp_path / "workspace")
    yield Desk(workspace, "demo")
    workspace.close()


def test_what_is_typed_is_looked_at_without_opening_it(models: Path) -> None:
    seen = {
        "": "empty",
        "demo": "demo",
        f"{models}/tiny": "folder",
        f"{models}/torn": "folder",  # its headers are read when it is opened
        f"{models}/old.ckpt": "fault",
        f"{models}/ti": "on the way",
        f"{models}/none": "fault",
        str(models): "on the way",
        "nobody/nothing@main": "hub",
        "\0": "fault",
        "~nobody/x": "fault",
        "x" * 5000: "fault",
    }
    assert {text: glance(text).kind for text in seen} == seen
    found = glance(f"{models}/t").suggestions  # models first
    assert found[:2] == (f"{models}/tiny", f"{models}/torn")
    assert "pickled" in glance(f"{models}/old.ckpt").words
    ready = [text for text in seen if glance(text).ready]
    assert ready == ["demo", f"{models}/tiny", f"{models}/torn", "nobody/nothing@main"]


def test_a_model_is_chosen_on_one_page(
    desk: Desk, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(models / "tiny")
    before = desk.plan(desk.preset("trellis-3bit"))
    desk.opened(other)
    monkeypatch.setattr("vqdq.ui.desk.page_key", lambda: "one")
    desk.choose(other)
    assert desk.model == other
    assert not desk.is_demo
    after = desk.plan(desk.preset("trellis-3bit"))
    assert after.reference_bytes < before.reference_bytes
    recipe = desk.preset("trellis-3bit")
    mine = desk.workspace.submit(CompressRequest(model=other, recipe=recipe, name="mine"))
    theirs = desk.workspace.submit(CompressRequest(model="demo", recipe=recipe, name="theirs"))
    assert [run.id for run in desk.runs("compress", 5)] == [mine]
    monkeypatch.setattr("vqdq.ui.desk.page_key", lambda: "two")
    assert desk.model == "demo"
    assert desk.plan(desk.preset("trellis-3bit")) == before
    assert [run.id for run in desk.runs("compress", 5)] == [theirs]


def test_recent_models_newest_first_and_missing_ones_marked(
    desk: Desk, models: Path, tmp_path: Path
) -> None:
    gone = shutil.copytree(models / "tiny", tmp_path / "gone")
    desk.opened(str(gone))
    desk.opened(str(models / "tiny"))
    with pytest.raises(UserError, match="its header promises"):
        desk.opened(str(models / "torn"))
    shutil.rmtree(gone)
    found = Desk(desk.workspace, "demo").recents.entries()
    assert [entry.model for entry in found] == [str(models / "tiny"), str(gone)]
    assert [entry.missing for entry in found] == [False, True]
    markup = model_facts.recents(found, "demo")
    assert markup.count('data-missing="true"') == 1
    assert model_panel.allowed(desk, str(models / "tiny"))
    for model in (str(gone), str(models / "torn"), "/etc"):
        assert not model_panel.allowed(desk, model)
    desk.recents._path.write_text("{]")
    assert desk.recents.entries() == ()


def test_a_download_tells_its_bytes_and_can_be_stopped(
    desk: Desk, models: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    hub.add("owner/slow", models / "tiny")
    hub.slow = 4096
    work = Opening(desk, "owner/slow")
    seen: dict[int, str] = {}
    while len([done for done in seen if done > 20_000]) < 3 and not work.wait(0.02):
        if work.event is not None and work.event.stage == "download":
            seen[work.event.done] = model_facts.opening("owner/slow", work.event)
    work.stop()
    assert work.wait(60)
    assert work.stopped
    assert work.fault is None
    assert list(seen) == sorted(seen)
    total = sum(path.stat().st_size for path in (models / "tiny").rglob("*") if path.is_file())
    assert max(seen) < total
    assert all(f"{size(done)} of {size(total)}" in text for done, text in seen.items())
    assert desk.recents.find("owner/slow") is None
    hub.slow = None
    again = Opening(desk, "owner/slow")
    assert again.wait(60)
    assert again.fault is None
    assert desk.recents.find("owner/slow") is not None


def test_the_whole_model_stands_beside_the_denoiser(desk: Desk) -> None:
    sizes = {
        path.parent.name: path.stat().st_size
        for path in demo_folder().glob("*/*.safetensors")
        if path.parent.name != "unet"
    }
    recipe = desk.preset("trellis-3bit")
    plan = desk.plan(recipe)
    rest = sum(sizes.values())
    assert desk.whole_bytes(plan) == (plan.reference_bytes + rest, plan.predicted_bytes + rest)
    both = desk.plan(also(recipe, [TEXT_ENCODERS]))
    rest -= sizes["text_encoder"]
    whole = desk.whole_bytes(both)
    assert whole == (
        both.reference_bytes + both.others[0].reference_bytes + rest,
        both.total_bytes + rest,
    )
    shown = panels.prediction(both, desk.estimate(both), None, whole)
    assert "The denoiser alone; also text_encoder" in shown
    assert f"<b>{size(whole[1])}</b> instead of {size(whole[0])}" in shown


def test_a_fitting_way_names_all_that_it_compresses(desk: Desk) -> None:
    found = fit(desk.subject.inventory, 10**12, 128)[-1]
    ways = tuple(replace(found, recipe=f"r{i}", also=(TEXT_ENCODERS, DECODER)) for i in range(7))
    shown = fit_panel.cards_html(ways)
    assert shown.count('data-also="text_encoder*,vae"') == 7
    assert "Use r0, text encoders and decoder too" in shown
    assert "7 ways fit 1000 GB" in shown
    assert "4 more ways, and why" in shown
    assert shown.index("Use r2,") < shown.index("<details") < shown.index("Use r3,")


def test_a_way_that_leaves_weights_in_main_memory_says_how_it_is_opened(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = next(each for each in fit(desk.subject.inventory, 10**12, 128) if each.recipe)
    away = replace(found, mode="streaming", offload=True)
    shown = fit_panel.cards_html((away,))
    opening = 'vqdq.load("DIR", mode="streaming", offload=True).to("cuda", torch.float16)'
    assert f"Opened with <code>pipe = {escape(opening)}</code>" in shown
    assert 'data-way="offload"' in shown
    assert "<code>" not in fit_panel.cards_html((found,))
    assert drawn_on.way(replace(away, offload=False)) == "streaming"
    assert drawn_on.way(replace(away, one_at_a_time=True)) == ""
    assert drawn_on.fields("offload") == {"device": "cuda", "mode": "streaming", "offload": True}
    with pytest.raises(UserError, match="no place to draw"):
        drawn_on.fields("elsewhere")
    monkeypatch.setattr(drawn_on.fit, "present_card", lambda: None)
    assert drawn_on.applied("offload") == gr.skip()
    monkeypatch.setattr(drawn_on.fit, "present_card", lambda: ("a card", 8 * 10**9))
    assert drawn_on.applied("offload")["value"] == "offload"
    assert drawn_on.applied("") == gr.skip()
    monkeypatch.setattr(Desk, "variants", lambda _: [("small", "small")])
    run = compare.submit_batch(desk, ("a red circle",), (7,), ("small",), place="offload")
    assert desk.workspace.run(run).request.to_json().items() >= drawn_on.fields("offload").items()


def test_what_fits_is_counted_beside_the_page(desk: Desk, models: Path) -> None:
    subject = desk.opened(str(models / "tiny"))
    found = subject.suited.answer(60)
    assert isinstance(found, model_cards.Suited)
    for name, option in found.best[-len(model_cards.CARDS) :]:
        assert option == fit(subject.inventory, int(name.split()[0]) * 10**9, found.side)[0]
    shown = model_cards.suited(found)
    assert shown.count("<li") == model_cards.waiting().count("<li")  # of the same size
    assert "estimated" in shown
    too_large = replace(found.best[0][1], card_bytes=1)
    nothing = model_cards.suited(replace(found, best=(("1 B", too_large),)))
    assert 'data-state="none"' in nothing
    assert "Nothing fits" in nothing


def test_the_panel(tab, studio: Studio, models: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit(tab, studio)
    before = tab.locator("#vq-compress").inner_text()
    place = tab.locator("#vq-tabs").bounding_box()
    tab.locator(".vq-model").press("Enter")
    tab.wait_for_selector(".vq-model-facts table")
    tab.wait_for_selector("#vq-model-suited li:has-text('24 GB'):has-text('16 bits')")
    assert tab.locator("#vq-tabs").bounding_box() == place
    field = tab.get_by_label("A diffusers folder")
    assert field.evaluate("element => element === document.activeElement")
    assert "57.2 %" in tab.locator("#vq-model-about").inner_text()

    field.fill(f"{models}/t")
    tab.get_by_role("button", name=f"{models}/torn").click()
    tab.wait_for_function(
        "path => document.querySelector('#vq-model-field :is(input, textarea)').value === path",
        arg=f"{models}/torn",
    )
    field.press("Enter")
    fault = tab.locator("#vq-model-outcome .vq-fault")
    fault.wait_for()
    assert "text_encoder" in fault.inner_text()
    assert tab.locator("#vq-compress").inner_text() == before

    field.fill(f"{models}/tiny")
    field.press("Enter")
    tab.wait_for_selector(".vq-model:has-text('tiny')")
    tab.wait_for_function(
        "before => document.querySelector('#vq-compress').innerText !== before", arg=before
    )
    violations = Axe().run(tab, "#vq-model-panel").response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in violations] == []
    photograph(tab, "model-panel")
    assert fault.count() == 0
    tab.keyboard.press("Escape")
    assert tab.locator(".vq-model").evaluate("element => element === document.activeElement")
    assert not tab.locator("#vq-model-panel").is_visible()
    tab.reload()  # the address has the model
    tab.wait_for_selector(".vq-model:has-text('tiny')")
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.locator(".vq-model").click()
    tab.wait_for_selector(".vq-model-facts table")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator(".vq-recent-model:has-text('demo')").click()
    tab.wait_for_selector(".vq-model:has-text('Embedded')")
