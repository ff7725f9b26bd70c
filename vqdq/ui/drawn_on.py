"""Where a comparison is drawn: asked only where there is a graphics card, else the processor."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.models import fit
from vqdq.models.fit_options import FitOption

PROCESSOR = "processor"
_WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    PROCESSOR: ("The processor", {}),
    "resident": ("The graphics card", {"device": "cuda"}),
    "streaming": (
        "The graphics card, decoded as it runs",
        {"device": "cuda", "mode": "streaming"},
    ),
    "offload": (
        "The graphics card, packed weights in main memory",
        {"device": "cuda", "mode": "streaming", "offload": True},
    ),
}


def build() -> gr.Dropdown:
    """Returns the control; nothing of it is seen where there is no card."""
    return gr.Dropdown(
        [(words, name) for name, (words, _) in _WAYS.items()],
        value=PROCESSOR,
        label="Drawn on",
        info="The processor computes in 32 bits, the card in 16.",
        visible=fit.present_card() is not None,
        elem_id="vq-drawn-on",
    )


def fields(name: object) -> dict[str, Any]:
    """Returns the fields of a request that a choice stands for.

    Raises:
        UserError: there is no such choice.
    """
    found = _WAYS.get(str(name))
    if found is None:
        raise UserError(f"{str(name)[:40]!r} is no place to draw.", where="drawn on")
    return dict(found[1])


def way(option: FitOption) -> str:
    """Returns the choice that runs a fitting way; "" where none does."""
    if option.one_at_a_time or not option.recipe:
        return ""
    name = "offload" if option.offload else option.mode
    return name if name in _WAYS else ""


def applied(name: str) -> Any:
    """Returns the control's update after a way that fits the card here was chosen."""
    known = name in _WAYS and fit.present_card() is not None
    return gr.update(value=name) if known else gr.skip()
