"""The Inspect tab: what goes into a layer and where the words are looked at, FP16 and compressed.

A capture draws the picture once for each model and keeps statistics of every layer; looking at
another word, layer or half afterwards is a click and draws nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.run import RunRecord
from vqdq.ui import blame, header, settings
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.look import HALVES, QUANTITIES, Look
from vqdq.ui.wording import escape, moment, shorten

EARLIER = 12
STEPS, GUIDANCE = 20, 3.0
PREFERRED = ("attn2.to_out.0", "attn2.to_q", "attn2.to_k")
"""The layer offered first is the middle one of the first kind here that the model has."""


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the regions that follow the store, and the events."""
    names = layer_names(desk)
    with gr.Column(elem_classes=["vq-inspect"]):
        with gr.Row(elem_classes=["vq-ask"]):
            prompt = gr.Textbox(
                EXAMPLE_PROMPTS[0] if desk.is_demo else "",
                label="Prompt",
                lines=1,
                max_lines=3,
                elem_id="vq-inspect-prompt",
                placeholder="What the picture should show",
            )
            seed = gr.Number(7, label="Seed", precision=0, elem_id="vq-inspect-seed", min_width=112)
            variant = gr.Dropdown(
                [("FP16 only", "")],
                value="",
                label="Beside FP16",
                elem_id="vq-inspect-variant",
                min_width=208,
            )
            start = gr.Button(
                "Record", variant="primary", elem_id="vq-inspect-start", min_width=112
            )
        with gr.Row(elem_classes=["vq-options"]):
            layer = gr.Dropdown(
                list(names),
                value=first_layer(names),
                label="Layer, in the order they run",
                elem_id="vq-inspect-layer",
                filterable=True,
                min_width=320,
            )
            step = gr.Slider(
                1,
                STEPS,
                STEPS // 2,
                step=1,
                label="Step to look at",
                elem_id="vq-inspect-step",
                buttons=[],
            )
            guidance = gr.Slider(
                0,
                12,
                GUIDANCE,
                step=0.1,
                label="Guidance",
                elem_id="vq-inspect-guidance",
                buttons=[],
            )
        fault = html("", "vq-inspect-fault")
        status = html("", "vq-inspect-status")
        words = html("", "vq-inspect-words")
        scores = html("", "vq-inspect-scores")
        details = html("", "vq-inspect-details")
        overview = html("", "vq-inspect-layers")
        earlier = html("", "vq-inspect-earlier")
    parts = {"words": words, "scores": scores, "layer": details, "layers": overview}
    inputs = [prompt, seed, variant, guidance, layer, step]
    asked = {"prompt": prompt, "seed": seed, "guidance": guidance, "layer": layer, "step": step}

    def begin(state: Session, *values: Any) -> tuple[Session, str]:
        try:
            run = submit(desk, *values)
        except UserError as error:
            return state, header.fault(
                error.what, where=error.where, remedy=error.remedy, title="Not recorded"
            )
        return state.showing(inspect=run).looking(Look(half=state.look(Look).half)), ""

    def move(state: Session, name: str | None, at: float) -> Session:
        return state.looking(replace(state.look(Look), layer=name or "", step=int(at) - 1))

    def act(state: Session, event: gr.EventData) -> tuple[Session, str]:
        data = clicked(event)
        match data.get("act"):
            case "record":
                return again(desk, state)
            case "resume":
                desk.workspace.resume(data["run"])
                return state, ""
            case "cancel":
                desk.workspace.cancel(data["run"])
                return state, ""
            case "open":
                return state.showing(inspect=data.get("run", "")).looking(Look()), ""
            case _:
                return state.looking(looked(state.look(Look), data)), ""

    wires = [
        Wire(start.click, begin, [session, *inputs], [session, fault]),
        Wire(prompt.submit, begin, [session, *inputs], [session, fault]),
        Wire(layer.input, move, [session, layer, step], [session]),
        Wire(step.release, move, [session, layer, step], [session]),
        *(
            Wire(part.click, act, [session], [session, fault])
            for part in (status, *parts.values(), earlier)
        ),
        Wire(tab.select, _enter, [session], [session]),
    ]
    regions = [
        Region("inspect status", status, markup(lambda s: status_html(desk, s))),
        *(
            Region(f"inspect {name}", component, _part(desk, name))
            for name, component in parts.items()
        ),
        Region("inspect variants", variant, lambda _: _variants(desk)),
        *(
            Region(f"inspect {field} control", component, _asked(desk, field))
            for field, component in asked.items()
        ),
        Region("inspect earlier", earlier, markup(lambda s: _earlier(desk, s))),
    ]
    return Part(regions=regions, wires=wires) + blame.build(desk, session)


def submit(
    desk: Desk, prompt: str, seed: Any, variant: str | None, guidance: float, layer: str, step: Any
) -> str:
    """Returns the id of a queued capture; `step` counts from 1, as people do.

    Raises:
        UserError: what is wrong with the prompt, the seed, the model, the layer or the step.
    """
    if variant and variant not in {name for _, name in desk.variants()}:
        raise UserError(
            f'there is no compressed model "{variant[:80]}".',
            where="variant",
            remedy="Choose one of the list, or compress one first.",
        )
    request = InspectRequest(
        model=desk.model,
        variants=(variant,) if variant else (),
        prompt=prompt,
        seed=settings.whole(seed, "seed"),
        steps=STEPS,
        guidance=float(guidance),
        layer=layer or "",
        step=settings.whole(step, "step") - 1,
    )
    return desk.workspace.submit(request)


def again(desk: Desk, state: Session) -> tuple[Session, str]:
    """Returns the session and fault after recording anew with the layer that is looked at."""
    run = shown_run(desk, state)
    if run is None or not isinstance(run.request, InspectRequest):
        return state, ""
    look = state.look(Look)
    layer = look.layer or run.request.layer
    step = run.request.step if look.step < 0 else min(look.step, run.request.steps - 1)
    try:
        made = desk.workspace.submit(replace(run.request, layer=layer, step=step))
    except UserError as error:
        return state, header.fault(error.what, where=error.where, remedy=error.remedy)
    return state.showing(inspect=made), ""


def looked(look: Look, data: dict[str, str]) -> Look:
    """Returns what is looked at after a click on a word, an order, a half or a quantity."""
    value = data.get("value", "")
    match data.get("act"):
        case "word" if data.get("at", "").isdigit():
            return replace(look, word=int(data["at"]))
        case "order":
            return replace(look, by_size=value == "size")
        case "half" if value in dict(HALVES):
            return replace(look, half=value)
        case "where":
            return replace(look, where=value)
        case "quantity" if value in {name for name, _, _ in QUANTITIES}:
            return replace(look, quantity=value)
        case _:
            return look


def layer_names(desk: Desk) -> tuple[str, ...]:
    """Returns the layers to choose from, in the order they run; none for a model at fault."""
    try:
        return tuple(layer.name for layer in desk.component.layers)
    except UserError:
        return ()  # the header says what is wrong with the model


def first_layer(names: tuple[str, ...]) -> str | None:
    """Returns the layer that is offered first."""
    for kind in PREFERRED:
        found = [name for name in names if name.endswith(kind)]
        if found:
            return found[len(found) // 2]
    return names[0] if names else None


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the capture on display: the chosen one, else the newest."""
    if session.run("inspect"):
        try:
            return desk.workspace.run(session.run("inspect"))
        except UserError:
            pass  # it was deleted: show the newest instead
    runs = desk.workspace.runs("inspect", 20)
    return next((run for run in runs if run.state in ("queued", "running", "done")), None)


def status_html(desk: Desk, session: Session) -> str:
    """Returns the state of the capture on display: nothing yet, recording, stopped, or one line."""
    run = shown_run(desk, session)
    if run is None:
        return (
            '<div class="vq-inspect-empty"><h2>Look inside while a picture is drawn</h2>'
            "<p>Press <b>Record</b>. You will see where each word of the prompt is looked at, and"
            " what goes into any layer: which channels and places stand out, and what"
            f" compression changes.</p>{_SKETCH}</div>"
        )
    if run.state in ("queued", "running"):
        return header.progress(run)
    if run.state == "done":
        if "inspect" not in session.opened:
            return ""
        from vqdq.ui import inspection

        try:
            return inspection.summary(run, inspection.of_run(run))
        except UserError as error:
            return header.fault(error.what, where=error.where, remedy=error.remedy)
    button = (
        '<div class="vq-actions"><button type="button" class="vq-button" data-act="resume"'
        f' data-run="{escape(run.id)}">Record again</button></div>'
    )
    if run.state == "cancelled":
        return f'<div class="vq-progress"><p>Stopped before it was done.</p>{button}</div>'
    fault = as_fault(run.error)
    return header.fault(
        fault.what, where=fault.where, remedy=fault.remedy, title="Not recorded", actions=button
    )


def _enter(state: Session) -> Session:
    return state.entering("inspect")


def _part(desk: Desk, name: str) -> Callable[[Session], tuple[str, str]]:
    """The render function of one part; the parts keep their drawings, so asking again is cheap."""

    def render(session: Session) -> tuple[str, str]:
        run = shown_run(desk, session) if "inspect" in session.opened else None
        if run is None or run.state != "done":
            return "", ""
        from vqdq.ui import inspection  # heavy: matplotlib; not needed before this tab is opened

        draw = getattr(inspection, name)
        try:
            shown = draw(inspection.of_run(run), session.look(Look))
        except UserError:
            return "", ""  # the status line says what is wrong with the files
        return f"{run.id} {session.look(Look)}", shown

    return render


def _asked(desk: Desk, field: str) -> Callable[[Session], tuple[str, Any]]:
    """The render function of a control that takes up what the run on display was asked with."""

    def render(session: Session) -> tuple[str, Any]:
        run = shown_run(desk, session)
        if run is None or not isinstance(run.request, InspectRequest):
            return "", gr.skip()
        value = getattr(run.request, field)
        return run.id, gr.update(value=value + 1 if field == "step" else value)

    return render


def _variants(desk: Desk) -> tuple[str, Any]:
    known = desk.variants()
    choices = [("FP16 only", ""), *known]
    return repr(known), gr.update(choices=choices, value=known[0][1] if known else "")


def _earlier(desk: Desk, session: Session) -> str:
    runs = [run for run in desk.workspace.runs("inspect", 40) if run.state == "done"][:EARLIER]
    if not runs:
        return ""
    shown = shown_run(desk, session)
    cards: list[str] = []
    for run in runs:
        request = run.request
        assert isinstance(request, InspectRequest)
        on = str(shown is not None and shown.id == run.id).lower()
        beside = escape(", ".join(request.variants) or "FP16 only")
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-run="{escape(run.id)}"'
            f' aria-pressed="{on}"><span>{escape(shorten(request.prompt, 64))}</span>'
            f"<small>{beside} · seed {request.seed} · {moment(run.created)}</small></button>"
        )
    return f'<h2>Earlier recordings</h2><div class="vq-cards">{"".join(cards)}</div>'


_SKETCH = (
    '<svg class="vq-sketch" viewBox="0 0 480 120" aria-hidden="true">'
    + "".join(
        f'<rect x="{8 + 12 * at}" y="{104 - height}" width="10" height="{height}"/>'
        for at, height in enumerate(
            (22, 30, 18, 26, 96, 24, 20, 34, 28, 16, 30, 24, 62, 20, 26, 18)
        )
    )
    + "".join(
        f'<rect x="{224 + 24 * (at % 4)}" y="{8 + 24 * (at // 4)}" width="23" height="23"'
        f' opacity="{opacity}"/>'
        for at, opacity in enumerate(
            (0.1, 0.2, 0.2, 0.1, 0.2, 0.6, 0.9, 0.3, 0.2, 0.8, 1, 0.4, 0.1, 0.3, 0.4, 0.2)
        )
    )
    + "".join(
        f'<rect x="{348 + 14 * at}" y="{104 - height}" width="13" height="{height}"/>'
        for at, height in enumerate((10, 26, 52, 80, 60, 30, 14, 24))
    )
    + "</svg>"
)
