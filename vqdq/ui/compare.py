"""The Compare tab: one prompt, one seed, the original and the compressed models side by side."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import gradio as gr

from vqdq.demo.scenes import EXAMPLE_PROMPTS, VOCABULARY
from vqdq.errors import UserError
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.run import RunRecord
from vqdq.ui import comparison, header, settings, viewer
from vqdq.ui.comparison import Comparison
from vqdq.ui.desk import ASSETS, DEFAULT_GOAL, Desk, as_fault
from vqdq.ui.live import PRIVATE, Region, Session, clicked, html, markup
from vqdq.ui.look import CompareLook
from vqdq.ui.wording import escape, file_url, moment, shorten

FIRST_LOOK = ASSETS / "first-look"
GALLERY = 12
STEPS, GUIDANCE = 20, 3.0


def build(desk: Desk) -> tuple[list[Region], dict[str, Any]]:
    """Returns the regions that follow the store, and what page.py wires to other tabs."""
    first = EXAMPLE_PROMPTS[0] if desk.is_demo else ""
    with gr.Column(elem_classes=["vq-compare"]):
        with gr.Row(elem_classes=["vq-ask"]):
            prompt = gr.Textbox(
                first,
                label="Prompt",
                lines=1,
                max_lines=3,
                elem_id="vq-prompt",
                placeholder="What the picture should show",
            )
            seed = gr.Number(7, label="Seed", precision=0, elem_id="vq-seed", min_width=112)
            keep = gr.Checkbox(True, label="Keep seed", elem_id="vq-keep", min_width=112)
            draw = gr.Button("Draw", variant="primary", elem_id="vq-draw", min_width=112)
        words = html(_words() if desk.is_demo else "", "vq-words", visible=desk.is_demo)
        fault = html("", "vq-compare-fault")
        with gr.Row(elem_classes=["vq-look"]):
            stage = html(viewer.empty(""), "vq-compare-stage", elem_classes=["vq-table"])
            beside = html(comparison.blank_numbers(), "vq-compare-numbers")
        with gr.Row(elem_classes=["vq-options"]):
            chosen = gr.CheckboxGroup([], label="Compressed models to show", elem_id="vq-variants")
            steps = gr.Slider(1, 50, STEPS, step=1, label="Steps", elem_id="vq-steps", buttons=[])
            guidance = gr.Slider(
                0, 12, GUIDANCE, step=0.1, label="Guidance", elem_id="vq-guidance", buttons=[]
            )
        first_model = html("", "vq-first-model")
        gallery = html("", "vq-gallery")
    inputs = [prompt, seed, chosen, steps, guidance]

    def example(event: gr.EventData, now: str) -> Any:
        if clicked(event).get("act") != "example":
            return gr.skip()
        return random.choice([text for text in EXAMPLE_PROMPTS if text != now])

    def start(session: Session, hold: bool, *values: Any) -> tuple[Any, ...]:
        text, number, variants, count, scale = values
        number = number if hold else random.randrange(10_000)
        try:
            run = submit(desk, text, number, variants or (), count, scale)
        except UserError as error:
            gr.Warning(escape(str(error)), title="Not drawn")
            panel = header.fault(
                error.what, where=error.where, remedy=error.remedy, title="Not drawn"
            )
            return session, gr.skip(), panel
        return session.showing(compare=run).looking(CompareLook()), number, ""

    def on_stage(session: Session, event: gr.EventData) -> Any:
        data = clicked(event)
        if data.get("act") == "variant":
            return session.looking(CompareLook(chosen=int(data.get("index", 0))))
        if data.get("act") == "cancel":
            desk.workspace.cancel(data["run"])
        elif data.get("act") == "resume":
            desk.workspace.resume(data["run"])
        return gr.skip()

    def open_earlier(session: Session, event: gr.EventData) -> Any:
        run = clicked(event).get("run", "")
        return session.showing(compare=run).looking(CompareLook()) if run else gr.skip()

    words.click(example, prompt, prompt, **PRIVATE)
    wiring = {
        "start": (draw, prompt, start, [keep, *inputs], [seed, fault]),
        "stage": (stage, on_stage),
        "gallery": (gallery, open_earlier),
        "first_model": first_model,
        "chosen": chosen,
        "asked": [prompt, seed, steps, guidance],
    }
    return [
        Region("compare stage", stage, markup(lambda s: stage_html(desk, s))),
        Region("compare numbers", beside, markup(lambda s: numbers_html(desk, s))),
        Region("variants", chosen, lambda s: _choices(desk, s)),
        Region("first model", first_model, markup(lambda _: _first_model(desk))),
        Region("gallery", gallery, markup(lambda s: _gallery(desk, s))),
    ], wiring


def submit(
    desk: Desk,
    prompt: str,
    seed: Any,
    variants: Any,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> str:
    """Returns the id of a queued comparison.

    Raises:
        UserError: what is wrong with the prompt, the seed, the models or the settings.
    """
    names = tuple(str(name) for name in variants)
    known = {name for _, name in desk.variants()}
    for name in names:
        if name not in known:
            raise UserError(
                f'there is no compressed model "{name[:80]}".',
                where="variants",
                remedy="Choose one of the list, or compress one first.",
            )
    request = CompareRequest(
        model=desk.model,
        variants=names,
        prompt=prompt,
        seed=settings.whole(seed, "seed"),
        steps=int(steps),
        guidance=float(guidance),
    )
    return desk.workspace.submit(request)


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the comparison on display: the chosen one, else the newest that is active or done."""
    if session.run("compare"):
        try:
            return desk.workspace.run(session.run("compare"))
        except UserError:
            pass  # it was deleted: show the newest instead
    states = ("queued", "running", "done")
    return next((run for run in desk.workspace.runs("compare", 20) if run.state in states), None)


def latest(desk: Desk) -> Comparison | None:
    """Returns the newest finished comparison, its first variant, or the shipped first look."""
    run = next((run for run in desk.workspace.runs("compare", 20) if run.state == "done"), None)
    if run is not None:
        found = comparison.of_run(run)
        return replace(found, variants=found.variants[:1])
    return comparison.first_look(FIRST_LOOK) if desk.is_demo else None


def stage_html(desk: Desk, session: Session) -> str:
    """Returns the light table for what the session shows: empty, drawing, stopped or done."""
    run = shown_run(desk, session)
    if run is None:
        found = comparison.first_look(FIRST_LOOK) if desk.is_demo else None
        if found is not None:
            return comparison.light_table(found) + comparison.caption(found)
        return viewer.empty("Your pictures will be here: the original and the compressed model.")
    if run.state in ("queued", "running"):
        preview = f"{file_url(run.preview)}?{run.done}" if run.preview else None
        return viewer.loading(header.progress(run), preview)
    if run.state == "done":
        shown = comparison.light_table(comparison.of_run(run), session.look(CompareLook).chosen)
        return f'<div data-shown-run="{escape(run.id)}">{shown}</div>'
    fault = as_fault(run.error)
    again = (
        f'<button type="button" class="vq-button" data-act="resume"'
        f' data-run="{escape(run.id)}">Draw again'
        "</button>"
    )
    if run.state == "cancelled":
        words = "<p>Stopped before it was done.</p>"
        return viewer.covered(
            f'<div class="vq-progress">{words}<div class="vq-actions">{again}</div></div>'
        )
    panel = header.fault(
        fault.what, where=fault.where, remedy=fault.remedy, title="Not drawn", actions=again
    )
    return viewer.covered(panel)


def numbers_html(desk: Desk, session: Session) -> str:
    """Returns the numbers beside the light table."""
    run = shown_run(desk, session)
    if run is not None and run.state == "done":
        return comparison.numbers(comparison.of_run(run), session.look(CompareLook).chosen)
    found = comparison.first_look(FIRST_LOOK) if run is None and desk.is_demo else None
    return comparison.blank_numbers() if found is None else comparison.numbers(found)


def _choices(desk: Desk, session: Session) -> tuple[str, Any]:
    del session
    known = desk.variants()
    value = [known[0][1]] if known else []
    return repr(known), gr.update(choices=known, value=value, visible=bool(known))


def _first_model(desk: Desk) -> str:
    if desk.variants():
        return ""
    active = desk.workspace.active()
    if active is not None and active.kind == "compress":
        return (
            '<p class="vq-caption">Your first compressed model is being made. It will'
            " be offered here.</p>"
        )
    return (
        '<div class="vq-nothing"><h3>There is no compressed model yet</h3><p>Make a'
        " 3-bit copy first. It takes"
        ' a moment, and your model stays as it is.</p><div class="vq-actions"><button type="button"'
        f' class="vq-button" data-act="first" data-goal="{DEFAULT_GOAL}">Compress to 3'
        f" bits</button></div></div>"
    )


def _gallery(desk: Desk, session: Session) -> str:
    runs = [run for run in desk.workspace.runs("compare", 40) if run.state == "done"][:GALLERY]
    if not runs:
        return ""
    shown = shown_run(desk, session)
    cards: list[str] = []
    for run in runs:
        found = comparison.of_run(run)
        on = str(shown is not None and shown.id == run.id).lower()
        pictures = "".join(
            f'<img src="{escape(entry.image)}" alt="" loading="lazy">'
            for entry in (found.reference, found.variants[0])
        )
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-run="{escape(run.id)}"'
            f' aria-pressed="{on}"><span class="vq-pair">{pictures}</span>'
            f"<span>{escape(shorten(found.prompt, 64))}</span>"
            f"<small>seed {found.seed} · {escape(found.variants[0].label)} ·"
            f" {moment(run.created)}</small></button>"
        )
    return f'<h2>Earlier comparisons</h2><div class="vq-cards">{"".join(cards)}</div>'


def _words() -> str:
    groups = "".join(
        '<span class="vq-group">'
        + "".join(
            f'<button type="button" class="vq-word"'
            f' data-word="{escape(word)}">{escape(word)}</button>'
            for word in words
        )
        + "</span>"
        for words in VOCABULARY.values()
    )
    return (
        '<div class="vq-vocabulary"><button type="button" class="vq-link"'
        ' data-act="example">Try an example'
        f'</button><span class="vq-muted">or click the words this model knows:</span>{groups}</div>'
    )
