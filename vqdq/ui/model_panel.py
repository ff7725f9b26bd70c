"""The model panel: choose what is on the desk, and see what it is made of.

It opens from the model's name in the header and lies over the page, so that nothing moves. The
model belongs to the page that chose it; runs keep the model they were started with.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.recents import Recent
from vqdq.models.glance import glance
from vqdq.models.sources import DEMO, DEMO_TITLE
from vqdq.ui import header, model_cards, model_facts
from vqdq.ui.desk import Desk
from vqdq.ui.live import ACTION, PRIVATE, Part, Region, Session, changing, clicked, html, markup
from vqdq.ui.model_open import Openings

PANEL = "model"  # as `Session.opened` knows it
POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPanel:
    """What page.py wires.

    Attributes:
        part: regions that follow the desk.
        opened: events after which `chosen` holds the model that was opened, or "".
        chosen: the state with that model.
    """

    part: Part
    opened: list[Any]
    chosen: gr.State


def build(desk: Desk, identity: Any, session: gr.State) -> ModelPanel:
    """Returns the panel; `identity` is the header's region with the button that opens it."""
    openings = Openings(desk)
    with gr.Column(elem_id="vq-model-panel"):
        html("<h2>Model</h2>", "vq-model-title")
        with gr.Row(elem_classes=["vq-ask"]):
            field = gr.Textbox(
                label="A diffusers folder, a .safetensors file, or a hub id",
                lines=1,
                max_lines=1,
                elem_id="vq-model-field",
                placeholder="/models/sdxl · model.safetensors · owner/name@revision",
            )
            press = gr.Button("Open", elem_id="vq-model-open", min_width=96)
        look = html(model_facts.check(glance("")), "vq-model-check")
        outcome = html("", "vq-model-outcome")
        recent = html("", "vq-model-recent")
        about = html(_waiting(), "vq-model-about")
        suited = html("", "vq-model-suited")
    chosen = gr.State("")

    def typed(text: str) -> str:
        model = str(text or "").strip()[:1000]
        fault = refusal(desk, model) if model else None  # before anybody looks at the disk
        return model_facts.fault(fault) if fault else model_facts.check(glance(model))

    def take(event: gr.EventData) -> Any:
        """A suggestion goes into the field; Stop ends a download."""
        data = clicked(event)
        text = data.get("text", "")
        if data.get("act") == "stop":
            openings.stop(text)
            return gr.skip()
        return text

    def open_(text: str) -> Generator[tuple[Any, str], None, None]:
        model = str(text or "").strip()[:1000]
        refused = refusal(desk, model)
        if refused is not None:
            yield model_facts.fault(refused), ""
            return
        seen = glance(model)
        if not seen.ready:
            fault = UserError(seen.words or "This is no model.", where=model, remedy=seen.remedy)
            yield model_facts.fault(fault), ""
            return
        work = openings.start(model)
        while not work.wait(POLL_SECONDS):
            yield model_facts.opening(model, work.event), ""
        if work.stopped:
            yield model_facts.stopped(), ""
        elif work.fault is not None:
            yield model_facts.fault(work.fault), ""
        else:
            yield "", model

    def open_recent(event: gr.EventData) -> Generator[tuple[Any, str], None, None]:
        yield from open_(clicked(event).get("text", ""))

    def unfold(state: Session, event: gr.EventData) -> Session:
        return state.entering(PANEL) if clicked(event).get("act") == PANEL else state

    # A paste or a fill-in by the browser is a change of a text, but not always an input.
    field.change(typed, [field], [look], trigger_mode="always_last", **ACTION)
    for region in (look, outcome):
        region.click(take, None, [field], **PRIVATE)
    long: dict[str, Any] = {**ACTION, "concurrency_limit": None}
    events = [
        press.click(open_, [field], [outcome, chosen], **long),
        field.submit(open_, [field], [outcome, chosen], **long),
        recent.click(open_recent, None, [outcome, chosen], **long),
    ]
    identity.click(changing(unfold), [session], [session], **ACTION)
    part = Part(
        regions=[
            Region("identity", identity, markup(lambda _: identity_html(desk))),
            Region("recent models", recent, markup(lambda _: _recents(desk))),
            Region("model facts", about, markup(lambda state: _about(desk, state))),
            Region("what fits", suited, markup(lambda state: _suited(desk, state))),
        ]
    )
    return ModelPanel(part=part, opened=events, chosen=chosen)


def identity_html(desk: Desk) -> str:
    """Returns the header's facts, the model's name as a button that opens the panel."""
    if desk.fault is not None:
        return header.identity("This model cannot be opened", str(desk.fault))
    card = desk.card
    return header.identity(card.title, card.details, offline=desk.stays_here)


def refusal(desk: Desk, model: str) -> UserError | None:
    """Returns why a model must not be opened by who asks; None when it may."""
    try:
        desk.workspace.admit(model)
    except UserError as error:
        return error
    return None


def allowed(desk: Desk, model: str) -> bool:
    """True for what an address may put on the desk: what was opened here before and is there."""
    if model in (desk.first, DEMO):
        return True
    known = desk.recents.find(model)
    return known is not None and not known.missing and refusal(desk, model) is None


def _recents(desk: Desk) -> str:
    entries = [each for each in desk.recents.entries() if refusal(desk, each.model) is None]
    if all(entry.model != DEMO for entry in entries):
        entries.append(Recent(model=DEMO, title=DEMO_TITLE, folder="", parameters=0, opened=0.0))
    return model_facts.recents(entries, desk.model)


def _about(desk: Desk, state: Session) -> str:
    if PANEL not in state.opened:
        return _waiting()  # reading a large model's headers takes a moment: only when asked for
    try:
        return model_facts.facts(desk.subject.inventory)
    except UserError as error:
        return header.fault(
            error.what,
            where=error.where,
            remedy=f"{error.remedy} The demo can still be used.".strip(),
            title="This model cannot be opened",
        )


def _suited(desk: Desk, state: Session) -> str:
    if PANEL not in state.opened:
        return ""
    try:
        found = desk.subject.suited.answer()
    except UserError:
        return ""  # `_about` says why
    return model_cards.waiting() if found is None else model_cards.suited(found)


def _waiting() -> str:
    return '<div class="vq-model-facts vq-skeleton" aria-hidden="true"></div>'
