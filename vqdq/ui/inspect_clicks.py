"""What a click changes: the look, the parts that are drawn, a file, a new recording."""

from __future__ import annotations

import time
from dataclasses import replace

from vqdq.errors import UserError
from vqdq.jobs.requests import InspectRequest
from vqdq.ui import header
from vqdq.ui.desk import Desk
from vqdq.ui.inspect_shown import shown_run
from vqdq.ui.live import Session
from vqdq.ui.look import SECTIONS, Look, Screen
from vqdq.ui.wording import escape, file_url


def again(desk: Desk, state: Session) -> tuple[Session, str]:
    """Returns the session and fault after recording anew with the layer that is looked at."""
    run = shown_run(desk, state)
    if run is None or not isinstance(run.request, InspectRequest):
        return state, ""
    look = state.look(Look)
    layer = look.layer or (run.result or {}).get("layer", "")
    step = run.request.step if look.step < 0 else min(look.step, run.request.steps - 1)
    try:
        made = desk.workspace.submit(replace(run.request, layer=layer, step=step))
    except UserError as error:
        return state, header.fault(error.what, where=error.where, remedy=error.remedy)
    return state.showing(inspect=made), ""


def saved(desk: Desk, state: Session, data: dict[str, str]) -> tuple[str, str]:
    """Returns the fault, and the link that the page's script follows to a figure's file."""
    from vqdq.ui import inspect_sections, inspection

    run = shown_run(desk, state)
    if run is None or run.state != "done":
        return "", ""
    try:
        path = inspect_sections.file_of(
            inspection.of_run(run),
            state.look(Look),
            data.get("figure", ""),
            data.get("as", ""),
            dark=data.get("dark") == "true",
        )
    except UserError as error:
        return header.fault(error.what, where=error.where, remedy=error.remedy), ""
    link = f'<a hidden href="{escape(file_url(path))}" download="{escape(path.name)}"'
    return "", f'{link} data-fetch="{time.time_ns()}">{escape(path.name)}</a>'


def turned(state: Session, data: dict[str, str]) -> Session:
    """Returns the session after a click on a cell, a word, a choice, or a part to be drawn."""
    screen = state.look(Screen)
    match data.get("act"):
        case "want" if data.get("value") in dict(SECTIONS):
            wanted = screen.wanted | {data["value"]}
            return state.looking(replace(screen, wanted=wanted))
        case "narrow":
            return state.looking(replace(screen, narrow=data.get("value") == "true"))
        case "cell":
            screen = replace(screen, wanted=screen.wanted | {"layer"})
            return state.looking(looked(state.look(Look), data), screen)
        case _:
            return state.looking(looked(state.look(Look), data))


def looked(look: Look, data: dict[str, str]) -> Look:
    """Returns what is looked at after a click; what the capture lacks is settled when drawn."""
    value, at = data.get("value", "")[:400], data.get("at", "")
    match data.get("act"):
        case "cell" if data.get("step", "").isdigit() and data.get("layer"):
            return replace(look, layer=data["layer"][:400], step=int(data["step"]))
        case "word" if at.isdigit():
            return replace(look, word=int(at))
        case "variant" if at.isdigit():
            return replace(look, variant=int(at))
        case "order-channels":
            return replace(look, by_size=value == "size")
        case "raised":
            return replace(look, raised=value == "raised")
        case "half" | "quantity" | "scale" | "order" | "which" | "where" | "by" | "inside" as field:
            return replace(look, **{field: value})
        case _:
            return look
