"""Blame, a part of the Inspect tab: which layer broke the picture, and what mending it costs."""

from __future__ import annotations

import gradio as gr

from vqdq.ui.desk import Desk
from vqdq.ui.live import Part


def build(desk: Desk, session: gr.State) -> Part:
    """Returns the regions and events of this part."""
    del desk, session
    return Part()
