"""The Grid tab: one picture for each pair of settings."""

from __future__ import annotations

import gradio as gr

from vqdq.ui.desk import Desk
from vqdq.ui.live import Part


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the regions and events of this tab."""
    del desk, session, tab
    return Part()
