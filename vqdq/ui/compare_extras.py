"""More measures: which can be had on this computer, and how to get the others."""

from __future__ import annotations

import gradio as gr

from vqdq.metrics import extras
from vqdq.ui.live import html
from vqdq.ui.wording import escape


def build() -> tuple[gr.Textbox, gr.Checkbox]:
    """Returns the folder of a CLIP model and the switch for LPIPS, in a fold of their own."""
    ready = {each.name: each.ready for each in extras.available()}
    with gr.Accordion("More measures", open=False, elem_id="vq-more"):
        html(_list(), "vq-extras")
        with gr.Row(elem_classes=["vq-ask"]):
            clip = gr.Textbox(
                "",
                label="Folder of a CLIP model on this computer",
                placeholder="/models/clip-vit-base-patch32",
                elem_id="vq-clip",
            )
            lpips = gr.Checkbox(
                False, label="LPIPS", interactive=ready["lpips"], elem_id="vq-lpips", min_width=112
            )
    return clip, lpips


def _list() -> str:
    rows = "".join(
        f"<dt>{escape(each.title)}</dt><dd>{escape(each.meaning)}"
        f' <span class="vq-muted">{escape(each.missing or "Ready.")}</span></dd>'
        for each in extras.available()
    )
    return (
        '<div class="vq-extras"><p class="vq-muted">These need networks of others. Nothing is'
        f" downloaded.</p><dl>{rows}</dl></div>"
    )
