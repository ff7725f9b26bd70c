"""The Inspect tab: what goes into a layer and where the words are looked at, FP16 and compressed.

A capture draws the picture once for each model and keeps statistics of every layer; looking at
another word, layer or half afterwards is a click and draws nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.jobs.requests.inspect import MAX_INSPECTED
from vqdq.ui import blame, header, settings
from vqdq.ui.desk import Desk
from vqdq.ui.inspect_clicks import again, saved, turned
from vqdq.ui.inspect_shown import earlier_html, shown_run, status_html
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.look import Look, Screen

STEPS, GUIDANCE, MAX_GUIDANCE = 20, 3.0, 100.0


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
            start = gr.Button(
                "Record", variant="primary", elem_id="vq-inspect-start", min_width=112
            )
        with gr.Row(elem_classes=["vq-options"]):
            seed = gr.Number(7, label="Seed", precision=0, elem_id="vq-inspect-seed", min_width=112)
            guidance = gr.Number(
                GUIDANCE,
                label="Guidance",
                minimum=0,
                maximum=MAX_GUIDANCE,
                elem_id="vq-inspect-guidance",
                min_width=96,
            )
            variants = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                max_choices=MAX_INSPECTED,
                label=f"Beside FP16, up to {MAX_INSPECTED}",
                elem_id="vq-inspect-variant",
                min_width=208,
            )
        fault = html("", "vq-inspect-fault")
        status = html("", "vq-inspect-status")
        bar = html("", "vq-inspect-bar")
        with gr.Column(elem_id="vq-inspect-map-block"):
            overview = html("", "vq-inspect-map")
            match = gr.Textbox(
                label="Layers by name",
                lines=1,
                max_lines=1,
                elem_id="vq-inspect-match",
                placeholder="attn2 or down*conv1",
            )
        with gr.Column(elem_id="vq-inspect-layer-block"):
            details = html("", "vq-inspect-layer-part")
            with gr.Row(elem_id="vq-inspect-place"):
                layer = gr.Dropdown(
                    list(names),
                    value=None,
                    label="Layer, in the order they run",
                    elem_id="vq-inspect-layer",
                    filterable=True,
                    min_width=208,
                )
                step = gr.Slider(
                    1, STEPS, STEPS // 2, step=1, label="Step", elem_id="vq-inspect-step",
                    buttons=[],
                )  # fmt: skip
        weights = html("", "vq-inspect-weights")
        words = html("", "vq-inspect-words")
        way = html("", "vq-inspect-trajectory")
        with gr.Column(elem_id="vq-at-blame"):
            more = blame.build(desk, session)
        earlier = html("", "vq-inspect-earlier")
        fetched = html("", "vq-inspect-fetched")
    parts = {
        "map": overview, "layer": details, "weights": weights, "words": words, "trajectory": way
    }  # fmt: skip
    inputs = [prompt, seed, variants, guidance, layer, step]
    asked = {"prompt": prompt, "seed": seed, "guidance": guidance}

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

    def seek(state: Session, text: str) -> Session:
        return state.looking(replace(state.look(Look), match=text.strip()[:200]))

    def act(state: Session, event: gr.EventData) -> tuple[Any, Any, Any]:
        data = clicked(event)
        match data.get("act"):
            case "record":
                return *again(desk, state), gr.skip()
            case "save":
                return gr.skip(), *saved(desk, state, data)
            case "resume":
                desk.workspace.resume(data["run"])
                return state, "", gr.skip()
            case "cancel":
                desk.workspace.cancel(data["run"])
                return state, "", gr.skip()
            case "open":
                return state.showing(inspect=data.get("run", "")).looking(Look()), "", gr.skip()
            case _:
                return turned(state, data), "", gr.skip()

    clicks = (status, bar, *parts.values(), earlier)
    wires = [
        Wire(start.click, begin, [session, *inputs], [session, fault]),
        Wire(prompt.submit, begin, [session, *inputs], [session, fault]),
        Wire(layer.input, move, [session, layer, step], [session]),
        Wire(step.release, move, [session, layer, step], [session]),
        Wire(match.submit, seek, [session, match], [session]),
        Wire(match.blur, seek, [session, match], [session]),
        *(Wire(part.click, act, [session], [session, fault, fetched]) for part in clicks),
        Wire(tab.select, _enter, [session], [session]),
    ]
    regions = [
        Region("inspect status", status, markup(lambda s: status_html(desk, s))),
        Region("inspect bar", bar, _part(desk, "")),
        *(
            Region(f"inspect {name}", component, _part(desk, name))
            for name, component in parts.items()
        ),
        Region("inspect variants", variants, lambda s: _variants(desk, s)),
        *(
            Region(f"inspect {field} control", component, _asked(desk, field))
            for field, component in asked.items()
        ),
        Region("inspect layer control", layer, _chosen(desk, "layer")),
        Region("inspect step control", step, _chosen(desk, "step")),
        Region("inspect earlier", earlier, markup(lambda s: earlier_html(desk, s))),
    ]
    return Part(regions=regions, wires=wires) + more


def submit(
    desk: Desk,
    prompt: str,
    seed: Any,
    variants: Sequence[str] | None,
    guidance: Any,
    layer: str | None,
    step: Any,
) -> str:
    """Returns the id of a queued capture; `step` counts from 1, as people do.

    Without a `layer` the one that stands out is kept.

    Raises:
        UserError: what is wrong with the prompt, the seed, the models, the layer or the step.
    """
    known = {name for _, name in desk.variants()}
    for variant in variants or ():
        if variant not in known:
            raise UserError(
                f'there is no compressed model "{variant[:80]}".',
                where="variant",
                remedy="Choose one of the list, or compress one first.",
            )
    if guidance is None:
        raise UserError("there is no guidance.", where="guidance", remedy="3 is usual.")
    request = InspectRequest(
        model=desk.model,
        variants=tuple(variants or ()),
        prompt=prompt,
        seed=settings.whole(seed, "seed"),
        steps=STEPS,
        guidance=float(guidance),
        layer=layer or "",
        step=settings.whole(step, "step") - 1,
    )
    return desk.workspace.submit(request)


def layer_names(desk: Desk) -> tuple[str, ...]:
    """Returns the layers to choose from, in the order they run; none for a model at fault."""
    try:
        return tuple(layer.name for layer in desk.component.layers)
    except UserError:
        return ()  # the header says what is wrong with the model


def _enter(state: Session) -> Session:
    return state.entering("inspect")


def _part(desk: Desk, name: str) -> Callable[[Session], tuple[str, str]]:
    """The render function of a section, "" for the row of anchors.

    Figures stay drawn with the capture they show, so asking again is cheap.
    """

    def render(session: Session) -> tuple[str, str]:
        run = shown_run(desk, session) if "inspect" in session.opened else None
        if run is None or run.state != "done":
            return "", ""
        # heavy: matplotlib; not needed before this tab is opened
        from vqdq.ui import inspect_sections, inspection

        look, screen = session.look(Look), session.look(Screen)
        try:
            capture = inspection.of_run(run)
            if name:
                shown = inspect_sections.draw(name, capture, look, screen)
            else:
                shown = inspect_sections.navigation(capture, look)
        except UserError:
            return "", ""  # the status line says what is wrong with the files
        return shown, shown

    return render


def _chosen(desk: Desk, field: str) -> Callable[[Session], tuple[str, Any]]:
    """The render function of the layer and step controls, which follow what is looked at."""

    def render(session: Session) -> tuple[str, Any]:
        run = shown_run(desk, session)
        if run is None or not isinstance(run.request, InspectRequest):
            return "", gr.skip()
        look, request = session.look(Look), run.request
        if field == "layer":
            value = look.layer or (run.result or {}).get("layer") or None
            return f"{run.id} {value}", gr.update(value=value)
        step = 1 + (request.step if look.step < 0 else min(look.step, request.steps - 1))
        return f"{run.id} {step}", gr.update(value=step, maximum=request.steps)

    return render


def _asked(desk: Desk, field: str) -> Callable[[Session], tuple[str, Any]]:
    """The render function of a control that takes up what the run on display was asked with."""

    def render(session: Session) -> tuple[str, Any]:
        run = shown_run(desk, session)
        if run is None or not isinstance(run.request, InspectRequest):
            return "", gr.skip()
        return run.id, gr.update(value=getattr(run.request, field))

    return render


def _variants(desk: Desk, session: Session) -> tuple[str, Any]:
    """The models to choose from; chosen are those of the capture on display, else the newest."""
    known, run = desk.variants(), shown_run(desk, session)
    names = [name for _, name in known]
    asked = run.request.variants if run and isinstance(run.request, InspectRequest) else ()
    chosen = [name for name in asked if name in names] or names[:1]
    if run and not asked:
        chosen = []  # FP16 alone was asked for
    return f"{run.id if run else ''} {known!r}", gr.update(choices=known, value=chosen)
