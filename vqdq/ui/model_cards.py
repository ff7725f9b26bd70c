"""What of a model fits common graphics cards: counted beside the page, shown in the model panel.

Counting runs the model without weights and takes seconds for a large one, so it has a thread of its
own; until it has answered there is a skeleton of the same size.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from vqdq.errors import UserError
from vqdq.models import fit as fits
from vqdq.models.fit_options import FitOption
from vqdq.models.inventory import Inventory
from vqdq.quantities import size
from vqdq.ui.wording import chip, escape

CARDS = (6, 8, 12, 16, 24)  # GB, of 10^9 bytes
SIDE = 512  # of a model that says no size
_ROOM = 10**15  # bytes that hold every model, as it is
_QUICK = 0.2  # seconds that a page waits for the answer before it shows a skeleton


@dataclass(frozen=True, kw_only=True, slots=True)
class Suited:
    """What was counted.

    Attributes:
        whole: the model as it is, with all components on the card.
        best: for each card the way of the best quality that fits, or the least that does not.
        side: of the picture, in pixels.
    """

    whole: FitOption
    best: tuple[tuple[str, FitOption], ...]
    side: int


class Counting:
    """The counting of one model, in a thread of its own. Safe for threads."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._answer: Suited | UserError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="what-fits")
        self._thread.start()

    def answer(self, seconds: float = _QUICK) -> Suited | UserError | None:
        """Returns what fits, why that cannot be said, or None while it is counted."""
        self._thread.join(seconds)
        ended = not self._thread.is_alive()
        if ended and self._answer is None:
            return UserError("cannot be counted for this model.")
        return self._answer

    def _work(self) -> None:
        side = max(self._inventory.resolution or (SIDE,))
        cards = [(f"{memory} GB", memory * 10**9) for memory in CARDS]
        present = fits.present_card()
        if present is not None:
            cards.insert(0, ("Yours", present[1]))
        try:
            memories = [memory for _, memory in cards]
            whole, *best = fits.fit_each(self._inventory, [_ROOM, *memories], side)
        except UserError as error:
            self._answer = error
            return
        named = zip([name for name, _ in cards], best, strict=True)
        self._answer = Suited(whole=whole, best=tuple(named), side=side)


def waiting() -> str:
    """Returns a skeleton of the size that the answer will have."""
    lines = "<li></li>" * (len(CARDS) + (fits.present_card() is not None))
    return (
        '<section class="vq-suited" aria-busy="true"><h3>What fits which card</h3>'
        f'<p class="vq-muted">Counting …</p><ul class="vq-skeleton" aria-hidden="true">{lines}</ul>'
        "</section>"
    )


def suited(found: Suited | UserError) -> str:
    """Returns what fits each card, or one sentence on why it cannot be said."""
    if isinstance(found, UserError):
        return (
            '<section class="vq-suited"><h3>What fits which card</h3>'
            f'<p class="vq-muted">It {escape(found.what)} {escape(found.remedy)}</p></section>'
        )
    how = (
        "Weights to the byte; working memory of one picture with guidance, counted without weights,"
        " without what a kernel or an allocator keeps."
    )
    rows = "".join(_row(name, option) for name, option in found.best)
    return (
        f'<section class="vq-suited"><h3>What fits which card {chip("estimated", how)}</h3>'
        f'<p class="vq-muted">{found.side} × {found.side} px. As it is, in 16 bits, it takes'
        f" {size(found.whole.total_bytes)}.</p><ul>{rows}</ul></section>"
    )


def _row(name: str, option: FitOption) -> str:
    state = "whole" if not option.recipe else "smaller"
    words, _, how = option.title.partition(", ")
    said = f"<b>{escape(words)}</b>{escape(', ' + how if how else '')}"
    if not option.fits:
        state, said = "none", "Nothing fits; the least takes"
    return (
        f'<li data-state="{state}"><span>{escape(name)}</span><span>{said}</span>'
        f"<span>{size(option.total_bytes)}</span></li>"
    )
