"""The frontier, a section of the Runs tab: every model by what it costs and how good it is."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import gradio as gr

from vqdq.jobs import frontier
from vqdq.jobs.frontier import COSTS, QUALITIES, Frontier, Scale, scale
from vqdq.quantities import digits
from vqdq.ui import frontier_panel, settings
from vqdq.ui.desk import Desk
from vqdq.ui.frontier_data import Known, Shelf
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.runs_look import FrontierLook, RunsLook
from vqdq.ui.runs_reveal import reveal
from vqdq.ui.wording import escape
from vqdq.views import frontier as plots
from vqdq.views.style import LIGHT, PAGE, PEN


def build(desk: Desk, session: gr.State) -> Part:
    """Returns the plot with its points to click, and the panel of the chosen one."""
    shelf = Shelf(desk)
    plot = html("", "vq-frontier")

    def act(session: Session, event: gr.EventData) -> Session:
        data = clicked(event)
        look = session.look(FrontierLook)
        name, value = data.get("name", ""), data.get("value", "")
        match data.get("act"):
            case "cost":
                return session.looking(replace(look, cost=value))
            case "quality":
                return session.looking(replace(look, quality=value))
            case "point":
                return session.looking(replace(look, model="" if name == look.model else name))
            case "reveal-model":
                reveal(Path(desk.workspace.locate(name)))
            case _:
                pass
        return session

    region = Region("frontier", plot, markup(lambda s: frontier_html(shelf, desk, s)))
    wire = Wire(plot.click, act, [session], [session])
    return Part(regions=[region], wires=[wire], doors=[plot])


def frontier_html(shelf: Shelf, desk: Desk, session: Session) -> str:
    """Returns the plot and the panel; "" while another section is shown."""
    if "runs" not in session.opened or session.look(RunsLook).section != "frontier":
        return ""
    known = shelf.look()
    if not known.models:
        return frontier_panel.NO_MODELS
    look = session.look(FrontierLook)
    cost, quality = scale(COSTS, look.cost), scale(QUALITIES, look.quality)
    model = next((each for each in known.models if each.name == look.model), None)
    panel = ""
    if model is not None:
        mine = frontier.of_model(model, known.samples)
        panel = frontier_panel.panel(desk, model, mine, known.blind.get(model.name))
    found = _found(known, cost, quality)
    return (
        f'<div class="vq-frontier"><div class="vq-axes">'
        f"{_axis('quality', 'Quality', QUALITIES, quality, known)}"
        f"{_axis('cost', 'Cost', COSTS, cost, known)}</div>"
        f"{_plot(found, look.model)}{panel}</div>"
    )


def _found(known: Known, cost: Scale, quality: Scale) -> Frontier:
    return frontier.frontier(
        known.models,
        known.samples,
        cost=cost,
        quality=quality,
        methods=known.methods,
        blind=known.blind,
    )


def _axis(act: str, label: str, scales: Sequence[Scale], chosen: Scale, known: Known) -> str:
    """The choices of one axis; those that nothing was measured on cannot be pressed."""
    buttons = ""
    for each in scales:
        cost, quality = (each, chosen) if act == "cost" else (COSTS[0], each)
        there = act == "cost" or bool(_found(known, cost, quality).drawn)
        off = "" if there else ' disabled title="Not measured on any model yet."'
        buttons += (
            f'<button type="button" class="vq-pick" data-act="{act}" data-value="{each.name}"'
            f' aria-pressed="{str(each == chosen).lower()}"{off}>{each.title}</button>'
        )
    return (
        f'<div class="vq-axis"><span class="vq-muted">{label}</span>'
        f'<div class="vq-picks" role="group" aria-label="{label}">{buttons}</div></div>'
    )


@lru_cache(maxsize=32)
def _plot(found: Frontier, chosen: str) -> str:
    """The figure at both widths, a button on each point, the methods' colours and the files."""
    if not found.drawn:
        return (
            '<div class="vq-history-empty"><h3>Nothing is measured on this yet</h3>'
            '<p class="vq-muted">Compare a model with the original: every comparison counts.</p>'
            "</div>"
        )
    sides: list[str] = []
    with PEN:
        for name, style, height in (("wide", PAGE, 400.0), ("narrow", PAGE.phone(), 320.0)):
            view = plots.frontier(found, style, height=height)
            svg = view.svg()
            dots = "".join(
                _dot(found, point, left, top, chosen)
                for point, left, top in plots.spots(view, found)
            )
            sides.append(f'<div class="vq-plot vq-plot-{name}">{svg}{dots}</div>')
        view = plots.frontier(found, LIGHT)
        png, vector, table = view.png(), view.svg_file(), view.data.to_csv().encode()
    name = f"frontier-{found.quality.name}-{found.cost.name}"
    files = "".join(
        f'<a class="vq-file" download="{name}.{kind}" href="data:{mime};base64,'
        f'{base64.b64encode(content).decode()}">{kind.upper()}</a>'
        for kind, mime, content in (
            ("png", "image/png", png),
            ("svg", "image/svg+xml", vector),
            ("csv", "text/csv", table),
        )
    )
    titles = {key: title for title, key in settings.methods()}
    colours = "".join(
        f'<span><i class="vq-swatch vq-swatch-{1 + place % 4}"></i>'
        f"{escape(titles.get(method, method or 'other'))}</span>"
        for place, method in enumerate(plots.methods_of(found.drawn))
    )
    return (
        f'<figure class="vq-front">{"".join(sides)}'
        f'<div class="vq-legend">{colours}</div><figcaption>{escape(view.caption)}</figcaption>'
        f'<div class="vq-files"><span>Save as</span>{files}</div></figure>'
    )


def _dot(found: Frontier, point: frontier.Point, left: float, top: float, chosen: str) -> str:
    cost, quality = point.placed
    told = (
        f"{point.label}: {digits(quality.value, found.quality.unit)} at"
        f" {digits(cost, found.cost.unit)}, n = {point.count}"
    )
    return (
        f'<button type="button" class="vq-dot" data-act="point" data-name="{escape(point.name)}"'
        f' style="left:{100 * left:.2f}%;top:{100 * top:.2f}%" title="{escape(told)}"'
        f' aria-label="{escape(told)}" aria-pressed="{str(point.name == chosen).lower()}"></button>'
    )
