"""Blame, a part of the Inspect tab: which layer broke the picture, and what mending it costs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.requests import BlameRequest, CompressRequest
from vqdq.recipe import Recipe
from vqdq.ui import blame_stage, header, inspect_shown
from vqdq.ui.blame_look import RANKS, BlameLook
from vqdq.ui.blame_stage import shown_run
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.look import Look, Screen
from vqdq.ui.wording import escape, file_url

INTRO = (
    '<section class="vq-part vq-blame"><h2>Blame</h2><p class="vq-muted">Which layers cost this'
    " picture most, and what mending them takes. Each is put back to 16 bits alone, and compressed"
    " alone; then several are mended together and measured.</p></section>"
)


def build(desk: Desk, session: gr.State) -> Part:
    """Returns the regions and events of this part."""
    html(INTRO, "vq-inspect-blame-head")
    empty = html("", "vq-inspect-blame-empty")
    variant = gr.Dropdown(
        [],
        value=None,
        label="Compressed model",
        elem_id="vq-blame-variant",
        min_width=208,
        visible=False,
    )
    stage = html("", "vq-inspect-blame-stage")
    fault = html("", "vq-inspect-blame-fault")
    status = html("", "vq-inspect-blame-status")
    result = html("", "vq-inspect-blame-result")
    made = html("", "vq-inspect-blame-made")
    fetched = html("", "vq-blame-fetched")

    def act(state: Session, event: gr.EventData) -> tuple[Any, Any, Any]:
        data = clicked(event)
        try:
            match data.get("act"):
                case "blame":
                    return find(desk, state, data.get("region", "")), "", gr.skip()
                case "mend":
                    return mend(desk, state), "", gr.skip()
                case "save":
                    return gr.skip(), "", save(desk, state, data)
                case _:
                    return looked(state, data), "", gr.skip()
        except UserError as error:
            shown = header.fault(error.what, where=error.where, remedy=error.remedy)
            return state, shown, gr.skip()

    def choose(state: Session, name: str | None) -> Session:
        return state.looking(replace(state.look(BlameLook), variant=name or ""))

    return Part(
        regions=[
            Region("blame variants", variant, lambda s: _variants(desk, s)),
            Region("blame empty", empty, markup(lambda s: blame_stage.missing(desk, s))),
            Region("blame stage", stage, lambda s: _when_open(s, blame_stage.stage(desk, s))),
            Region("blame status", status, markup(lambda s: status_html(desk, s))),
            Region("blame result", result, lambda s: _result(desk, s)),
            Region("blame made", made, markup(lambda s: made_html(desk, s))),
        ],
        wires=[
            Wire(stage.click, act, [session], [session, fault, fetched]),
            Wire(result.click, act, [session], [session, fault, fetched]),
            Wire(variant.input, choose, [session, variant], [session]),
        ],
        doors=[empty, status, made],
    )


def submit(
    desk: Desk,
    shown: blame_stage.Subject,
    variant: str,
    region: tuple[float, ...] = (),
    worst: int = blame_stage.WORST,
) -> str:
    """Returns the id of a queued search for the layers to blame for a picture.

    Raises:
        UserError: there is no such model, or the region lies outside the picture.
    """
    if variant not in {name for _, name in desk.variants()}:
        raise UserError(
            f'there is no compressed model "{variant[:80]}".',
            where="variant",
            remedy="Choose one of the list, or compress one first.",
        )
    request = BlameRequest.from_json(
        {
            "model": desk.model,
            "variant": variant,
            "prompt": shown.prompt,
            "seed": shown.seed,
            "steps": shown.steps,
            "guidance": shown.guidance,
            "region": list(region),
            "calls": min(blame_stage.CALLS, shown.steps),
            "worst": worst,
        }
    )
    return desk.workspace.submit(request)


def find(desk: Desk, state: Session, region: str) -> Session:
    """Returns the session after a search was queued for the picture and the region on display.

    Raises:
        UserError: there is no picture or no model, or the region is none.
    """
    shown = blame_stage.subject(desk, state)
    if shown is None:
        raise UserError(
            "there is no picture yet.", where="blame", remedy="Record or draw a comparison first."
        )
    marked = blame_stage.region_in(region)
    variant = blame_stage.chosen_variant(desk, state, shown)
    run = submit(desk, shown, variant, marked)
    look = state.look(BlameLook)
    return state.showing(blame=run).looking(BlameLook(variant=look.variant, by=look.by))


def mend(desk: Desk, state: Session) -> Session:
    """Returns the session after the chosen set of repairs became a compression.

    Raises:
        UserError: the result is gone, or the recipe no longer fits the model.
    """
    from vqdq.ui import blame_result

    run = shown_run(desk, state)
    offer = None if run is None else blame_result.chosen(run, state.look(BlameLook))
    if offer is None:
        raise UserError("there is no repair.", where="blame", remedy="Find the layers again.")
    recipe = Recipe.from_json(offer["recipe"])
    desk.plan(recipe)
    name = desk.suggest_name(recipe)
    made = desk.workspace.submit(CompressRequest(model=desk.model, recipe=recipe, name=name))
    return state.looking(replace(state.look(BlameLook), made=made))


def looked(state: Session, data: dict[str, str]) -> Session:
    """Returns the session after a click on a row, a set of repairs, or an order."""
    look, value = state.look(BlameLook), data.get("value", "")
    match data.get("act"):
        case "layer" if value:
            screen = state.look(Screen)
            inside = replace(state.look(Look), layer=value[:400])
            return state.looking(inside, replace(screen, wanted=screen.wanted | {"layer"}))
        case "offer" if value.isdecimal():
            return state.looking(replace(look, offer=int(value)))
        case "by" if value in {name for name, _, _ in RANKS}:
            return state.looking(replace(look, by=value))
        case "area" if value in ("whole", "region"):
            return state.looking(replace(look, area=value))
        case "narrow":
            return state.looking(replace(state.look(Screen), narrow=value == "true"))
        case "all":
            return state.looking(replace(look, everything=not look.everything))
        case _:
            return state


def save(desk: Desk, state: Session, data: dict[str, str]) -> str:
    """Returns the link that the page's script follows to a figure's file, after writing it.

    Raises:
        UserError: no such figure or format, or a full disk.
    """
    from vqdq.ui import blame_result

    run = shown_run(desk, state)
    if run is None:
        return ""
    dark = data.get("dark") == "true"
    name, kind = data.get("figure", ""), data.get("as", "")
    path = blame_result.saved(run, state.look(BlameLook), name, kind, dark=dark)
    link = f'<a hidden href="{escape(file_url(path))}" download="{escape(path.name)}"'
    return f'{link} data-fetch="{time.time_ns()}">{escape(path.name)}</a>'


def status_html(desk: Desk, session: Session) -> str:
    """Returns the progress of the search on display, or why it stopped; "" when it is done."""
    run = shown_run(desk, session)
    if run is None or run.state == "done":
        return ""
    if run.state in ("queued", "running"):
        return header.progress(run, desk.ahead(run))
    again = (
        '<div class="vq-actions"><button type="button" class="vq-button" data-act="resume"'
        f' data-run="{escape(run.id)}">Go on</button></div>'
    )
    if run.state == "cancelled":
        return (
            '<div class="vq-progress"><p>Stopped before it was done. What was measured is kept.'
            f"</p>{again}</div>"
        )
    fault = as_fault(run.error)
    return header.fault(
        fault.what, where=fault.where, remedy=fault.remedy, title="Not found", actions=again
    )


def made_html(desk: Desk, session: Session) -> str:
    """Returns the compression that was started here: its progress, then how to compare it."""
    made = session.look(BlameLook).made
    if not made:
        return ""
    try:
        run = desk.workspace.run(made)
    except UserError:
        return ""  # it was deleted
    assert isinstance(run.request, CompressRequest)
    name = escape(run.request.name)
    see = (
        f'<button type="button" class="vq-button" data-act="open" data-run="{escape(run.id)}"'
        ' data-kind="compress">Show it in Compress</button>'
    )
    if run.state in ("queued", "running"):
        return header.progress(run, desk.ahead(run))
    if run.state == "done":
        return (
            f'<div class="vq-progress" role="status"><p><b>{name}</b> is ready.</p>'
            '<div class="vq-actions"><button type="button" class="vq-button" data-act="compare"'
            f' data-name="{name}">Compare with FP16</button>{see}</div></div>'
        )
    fault = as_fault(run.error)
    return header.fault(
        fault.what if run.error else "It was stopped.",
        where=fault.where,
        remedy=fault.remedy,
        title="Not compressed",
        actions=see,
    )


def _variants(desk: Desk, session: Session) -> tuple[str, Any]:
    known = desk.variants()
    value = blame_stage.chosen_variant(desk, session, blame_stage.subject(desk, session))
    key = f"{known!r} {value}"
    return key, gr.update(choices=known, value=value or None, visible=len(known) > 1)


def _when_open(session: Session, shown: tuple[str, str]) -> tuple[str, str]:
    return shown if "inspect" in session.opened else ("", "")


def _result(desk: Desk, session: Session) -> tuple[str, str]:
    run = shown_run(desk, session) if "inspect" in session.opened else None
    if run is None or run.state != "done":
        return "", ""
    from vqdq.ui import blame_result  # heavy: matplotlib; not needed before this tab is opened

    look, narrow = session.look(BlameLook), session.look(Screen).narrow
    recorded = inspect_shown.shown_run(desk, session) is not None
    key = f"{run.id} {replace(look, variant='', made='')} {narrow} {recorded}"
    try:
        return key, blame_result.shown(desk, run, look, narrow=narrow, recorded=recorded)
    except UserError as error:
        return key, header.fault(error.what, where=error.where, remedy=error.remedy)
