"""Fit a graphics card: choose it and a resolution, see what should fit, use it with a click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vqdq.also import pattern_of
from vqdq.errors import UserError
from vqdq.models import fit as fits
from vqdq.models.fit import CARDS
from vqdq.models.fit_options import FitOption
from vqdq.quantities import size
from vqdq.ui import drawn_on, header
from vqdq.ui.desk import Desk
from vqdq.ui.live import Part, Region, Session, Wire, html, markup
from vqdq.ui.wording import chip, count, escape

PRESENT, USUAL = "", "8 GB"
OWN = "Its own size"
RESOLUTIONS = (OWN, "512", "768", "1024", "1536", "2048")
FIRST = 3  # ways that are shown before the rest is asked for
SIDE = 512  # of a model that says no size


@dataclass(frozen=True, kw_only=True, slots=True)
class FitLook:
    """What the fold is asked: a card and a resolution as typed; nothing before it was opened."""

    card: str = ""
    resolution: str = OWN
    opened: bool = False


def build(desk: Desk, session: gr.State) -> tuple[Part, Any]:
    """Returns the fold's region and events, and the component whose buttons name a recipe."""
    present = fits.present_card()
    cards = [(name, f"{memory} GB") for name, memory in CARDS]
    if present is not None:
        cards.insert(0, (f"{present[0]} · {size(present[1])} · this computer", PRESENT))
    with gr.Accordion("Fit a graphics card", open=False, elem_id="vq-fit") as fold:
        card = gr.Dropdown(
            cards,
            value=PRESENT if present else USUAL,
            label="Card, or its memory",
            allow_custom_value=True,
            elem_id="vq-fit-card",
        )
        side = gr.Dropdown(
            list(RESOLUTIONS),
            value=OWN,
            label="Pixels a side",
            allow_custom_value=True,
            elem_id="vq-fit-side",
        )
        options = html("", "vq-fit-options")

    def ask(state: Session, memory: Any, pixels: Any) -> Session:
        look = FitLook(card=str(memory or ""), resolution=str(pixels or OWN), opened=True)
        return state.looking(look)

    inputs = [session, card, side]
    wires = [Wire(event, ask, inputs, [session]) for event in (fold.expand, card.input, side.input)]
    region = Region("fit", options, markup(lambda state: options_html(desk, state)))
    return Part(regions=[region], wires=wires), options


def options_html(desk: Desk, state: Session) -> str:
    """Returns what fits the card that the session asks about."""
    look = state.look(FitLook)
    if not look.opened:
        return '<div class="vq-fits" aria-hidden="true"></div>'
    try:
        memory = fits.card_bytes(look.card)
        side = _side(look.resolution, desk.pixels)
        found = desk.subject.fitted(memory, side)
    except UserError as error:
        return header.fault(
            error.what, where=error.where, remedy=error.remedy, title="This cannot be answered"
        )
    return cards_html(found)


def cards_html(found: tuple[FitOption, ...]) -> str:
    """Returns the options as cards, the best first."""
    how = "Weights to the byte; working memory counted without weights, without an allocator's."
    note = chip("estimated", how)
    if not found[0].fits:
        least = found[0]
        return (
            f'<div class="vq-fits"><p>Nothing fits {_card_size(least)} {note}</p>'
            f'<p class="vq-muted">The least is {escape(least.title)}: {escape(least.sum)}.'
            " A smaller picture takes less.</p></div>"
        )
    many = "One way fits" if len(found) == 1 else f"{len(found)} ways fit"
    best = "" if len(found) == 1 else ", the best first"
    head = f"<p>{many} {_card_size(found[0])}{best} {note}</p>"
    shown = [_card(found[0]), *(_card(each, whole=False) for each in found[1:FIRST])]
    return f'<div class="vq-fits">{head}{"".join(shown)}{_more(found)}</div>'


def _more(found: tuple[FitOption, ...]) -> str:
    """What is a press away: the reasons of the ways beside the best, and the ways after them."""
    rest = found[FIRST:]
    words = f"{count(len(rest), 'more way')}, and why" if rest else "And why"
    reasons = "".join(
        f'<p class="vq-small vq-muted"><b>{escape(each.title)}</b> {escape(each.sum)}.'
        f" {_why(each)}</p>"
        for each in found[1:FIRST]
    )
    if not reasons:
        return ""
    return (
        f'<details class="vq-more"><summary>{words}</summary>'
        f'<div class="vq-fits">{reasons}{"".join(map(_card, rest))}</div></details>'
    )


def _card_size(option: FitOption) -> str:
    """The card as its box says it: 8 GB."""
    return (
        f"{option.card_bytes / 1e9:.4g} GB" if option.card_bytes >= 1e9 else size(option.card_bytes)
    )


def _card(option: FitOption, *, whole: bool = True) -> str:
    share = 100 * option.total_bytes / option.card_bytes
    also = ",".join(map(pattern_of, option.also))
    words = f"{option.recipe}, {option.others} too" if also else option.recipe
    button = (
        f'<button type="button" class="vq-button vq-button-small" data-act="recipe"'
        f' data-recipe="{escape(option.recipe)}" data-also="{escape(also)}"'
        f' data-way="{drawn_on.way(option)}">Use {escape(words)}'
        "</button>"
        if option.recipe
        else '<span class="vq-small vq-muted">Nothing to compress</span>'
    )
    short = "" if whole else " vq-fit-short"
    said = f'<p class="vq-small">{escape(option.sum if whole else option.total)}</p>'
    if whole and (more := _why(option)):
        said += f'<p class="vq-small vq-muted">{more}</p>'
    return (
        f'<article class="vq-fit{short}"><div class="vq-fit-head"><b>{escape(option.title)}</b>'
        f"<span>{escape(option.quality)}</span></div>"
        f'<div class="vq-fit-bar" aria-hidden="true"><i style="width:{min(share, 100):.0f}%"></i>'
        f'</div><div class="vq-fit-said">{said}<div class="vq-actions">{button}</div></div>'
        "</article>"
    )


def _why(option: FitOption) -> str:
    """The reasons, and how it is opened where packed weights are left in main memory."""
    words = escape(" ".join(option.reasons[1:]))
    if option.offload:
        words += f" Opened with <code>{escape(option.opening)}</code>"
    return words


def _side(text: str, own: int) -> int:
    if text == OWN:
        return own or SIDE
    try:
        return int(text)
    except ValueError as error:
        raise UserError(
            f"{text[:40]!r} is no number of pixels.", where="Pixels a side", remedy="Write 1024."
        ) from error
