"""The Blind test tab: pairs, a few questions, five keys, and words that follow the statistics."""

from __future__ import annotations

import gradio as gr

from vqdq.ui.desk import Desk
from vqdq.ui.live import Part


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the regions and events of this tab."""
    del desk, session, tab
    return Part()
