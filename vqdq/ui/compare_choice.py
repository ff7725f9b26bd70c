"""Which compressed models can stand beside the original on the light table."""

from __future__ import annotations

from collections.abc import Sequence

from vqdq.errors import UserError
from vqdq.ui.desk import Desk

SHOWN = 4  # variants beside the original at once: as many as there are colours


def require_variants(desk: Desk, names: Sequence[str]) -> None:
    """Raises `UserError` for no model, too many, one that is not there, or another model's copy."""
    known = {name for _, name in desk.variants()}
    if not names:
        ticked = "Tick one or more below the pictures."
        first = "Compress this model first; the button below the pictures makes a 3-bit copy."
        raise UserError(
            "no compressed model is chosen, so there is nothing to compare with.",
            remedy=ticked if known else first,
        )
    if len(names) > SHOWN:
        raise UserError(
            f"{len(names)} compressed models are too many to look at side by side.",
            where="variants",
            remedy=f"Choose at most {SHOWN}; the Grid tab draws with more.",
        )
    others = {entry.name: entry.model for entry in desk.workspace.models()}
    for name in names:
        if name not in known and name in others:
            raise UserError(
                f"it was made of {others[name]}, and this page is about {desk.model}.",
                where=name[:80],
                remedy="Open that model first, by the name at the top of the page.",
            )
        if name not in known:
            raise UserError(
                f'there is no compressed model "{name[:80]}".',
                where="variants",
                remedy="Choose one of the list, or compress one first.",
            )
