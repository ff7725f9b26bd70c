"""The form in which a blind test is set up, and the wish that its values say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.protocol import QUESTIONS, Mode
from vqdq.ui import prompt_choice
from vqdq.ui.blind_setup import Wish
from vqdq.ui.blind_words import MODES, SHORT
from vqdq.ui.desk import Desk
from vqdq.ui.live import PRIVATE, html
from vqdq.ui.settings import whole

PROMPTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindForm:
    """The components of the form.

    Attributes:
        inputs: in the order in which `wish_of` takes their values.
        triggers: events after which the outlook may be different.
        models: the choice of compressed models, brought up to date by the tab.
        outlook: what the test would be; `make`: the button.
    """

    inputs: list[Any]
    triggers: list[Any]
    models: Any
    outlook: Any
    make: Any


def build(desk: Desk) -> BlindForm:
    """Returns the form, drawn into the current layout."""
    plain = Wish(variants=(), prompts=())
    with gr.Row(elem_classes=["vq-blind-form"]):
        with gr.Column(elem_classes=["vq-blind-fields"], scale=3):
            mode = gr.Radio(
                list(MODES), value=plain.mode, label="What to ask", elem_id="vq-blind-mode"
            )
            models = gr.CheckboxGroup([], label="Models beside FP16", elem_id="vq-blind-models")
            chooser = prompt_choice.build(
                "vq-blind-prompts",
                demo=desk.is_demo,
                source="set",
                sample=PROMPTS,
                chosen_set="demo evaluation" if desk.is_demo else "",
            )
            with gr.Row():
                number = gr.Number(
                    plain.pairs,
                    label="Pairs for every two models",
                    precision=0,
                    minimum=1,
                    elem_id="vq-blind-number",
                    min_width=176,
                )
                seeds = gr.Textbox(
                    plain.seeds,
                    label="Seeds, continued when more are needed",
                    max_lines=1,
                    elem_id="vq-blind-seeds",
                    min_width=176,
                )
            asked = gr.CheckboxGroup(
                [(SHORT[question.key], question.key) for question in QUESTIONS],
                value=list(plain.questions),
                label="Questions, asked apart; the last chosen one decides",
                elem_id="vq-blind-questions",
            )
            name = gr.Textbox(
                label="Name of the test",
                placeholder="Chosen for you when empty",
                max_lines=1,
                elem_id="vq-blind-title",
            )
            with gr.Accordion("Control pairs, margin and sampling", open=False):
                same = _percent("Pairs of one picture twice", plain.identical, 50, "same")
                coarse = _percent("Pairs of FP16 against 2 bits", plain.obvious, 50, "obvious")
                again = _percent("Pairs shown again, sides swapped", plain.repeats, 100, "again")
                margin = gr.Slider(
                    1,
                    30,
                    100 * plain.margin,
                    step=1,
                    label="Margin of “equally good” (points from 50 : 50)",
                    elem_id="vq-blind-margin",
                    buttons=[],
                )
                steps = gr.Slider(
                    1, 50, plain.steps, step=1, label="Steps", elem_id="vq-blind-steps", buttons=[]
                )
                guidance = gr.Slider(
                    0,
                    12,
                    plain.guidance,
                    step=0.1,
                    label="Guidance",
                    elem_id="vq-blind-guidance",
                    buttons=[],
                )
        with gr.Column(elem_classes=["vq-blind-beside"], scale=2):
            outlook = html("", "vq-blind-outlook")
            make = gr.Button("Make the test", variant="primary", elem_id="vq-blind-make")

    def fitting(kind: str) -> list[Any]:
        return [gr.update(visible=kind == "preference"), gr.update(visible=kind != "staircase")]

    mode.input(fitting, mode, [asked, number], **PRIVATE)
    fields = [name, mode, models, seeds, number, asked, margin, same, coarse, again]
    return BlindForm(
        inputs=[*fields, steps, guidance, *chooser.inputs],
        triggers=[
            *(field.change for field in (mode, models, asked)),
            *(field.input for field in (seeds, number)),
            *(field.release for field in (margin, same, coarse, again, steps, guidance)),
            *chooser.triggers,
        ],
        models=models,
        outlook=outlook,
        make=make,
    )


def wish_of(values: Sequence[Any]) -> Wish:
    """Returns the wish that the values of `BlindForm.inputs` say.

    Raises:
        UserError: a number is not one, or the prompts have a fault.
    """
    name, mode, variants, seeds, number, asked, margin, same, coarse, again, *rest = values
    steps, guidance, *prompts = rest
    return Wish(
        name=str(name or "").strip(),
        mode=cast(Mode, mode),
        variants=tuple(str(variant) for variant in variants or ()),
        prompts=tuple(dict.fromkeys(prompt_choice.read(prompts))),
        seeds=str(seeds or ""),
        pairs=whole(number, "pairs"),
        questions=tuple(str(key) for key in asked or ()),
        margin=float(margin) / 100,
        identical=float(same) / 100,
        obvious=float(coarse) / 100,
        repeats=float(again) / 100,
        steps=whole(steps, "steps"),
        guidance=float(guidance),
    )


def asked_for(values: Sequence[Any]) -> Wish | UserError:
    """Returns the wish, or why the values say none."""
    try:
        return wish_of(values)
    except UserError as error:
        return error


def _percent(label: str, share: float, most: int, name: str) -> Any:
    return gr.Slider(
        0, most, 100 * share, step=1, label=f"{label} (%)", elem_id=f"vq-blind-{name}", buttons=[]
    )
