"""The chooser of prompts: written by hand, a built-in set, a file as published, or the hub.

A tab draws it with `build`, adds `inputs` to its own events, and reads their values with `read`.
What was chosen is shown below the controls, so that nobody is surprised by a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.errors import UserError
from vqdq.models import prompt_hub, prompt_sets
from vqdq.models.prompt_sets import Label, Prompt, PromptSet
from vqdq.ui import header, people
from vqdq.ui.live import ACTION, PRIVATE, html
from vqdq.ui.settings import whole
from vqdq.ui.wording import count, escape

Source = Literal["typed", "set", "file", "hub"]
SOURCES: tuple[tuple[str, Source], ...] = (
    ("Write them", "typed"),
    ("Built-in set", "set"),
    ("A file", "file"),
    ("The hub", "hub"),
)
KINDS = [".txt", ".csv", ".tsv", ".json"]
SPREADS: tuple[tuple[str, str], ...] = (
    ("Over the whole set", ""),
    ("Evenly over categories", "category"),
    ("Evenly over challenges", "challenge"),
)
MOST = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Prompts that were chosen, and where they are from.

    Attributes:
        prompts: in order, with their labels.
        total: how many the source has; `note`: what was left out of it.
    """

    prompts: tuple[Prompt, ...]
    source: str
    total: int
    note: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts as text."""
        return tuple(prompt.text for prompt in self.prompts)


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """The components of one chooser.

    Attributes:
        inputs: in the order in which `read` and `chosen` take their values.
        preview: what was chosen, as HTML; `triggers`: events after which it may be different.
    """

    inputs: list[Any]
    preview: Any
    triggers: list[Any] = field(default_factory=list[Any])


def build(
    name: str,
    *,
    demo: bool,
    source: Source = "typed",
    sample: int = 4,
    lines: int = 2,
    chosen_set: str = "",
) -> PromptChoice:
    """Returns the chooser, drawn into the current layout.

    Args:
        name: unique on the page; every element's id begins with it.
        demo: the embedded model is on the desk, whose world has few words.
        source: which way is chosen first.
        sample: how many prompts of a set are chosen first.
        lines: how many examples are written first, for the embedded model.
        chosen_set: the built-in set that is chosen first; "" for the one that suits the model.
    """
    examples = "\n".join(EXAMPLE_PROMPTS[:lines]) if demo else ""
    names = prompt_sets.built_in_names()
    first = chosen_set or (names[0] if demo else names[-1])
    with gr.Column(elem_classes=["vq-prompt-choice"], elem_id=name):
        where = gr.Radio(list(SOURCES), value=source, label="Prompts", elem_id=f"{name}-source")
        typed = gr.Textbox(
            examples,
            label="One prompt a line",
            lines=3,
            max_lines=8,
            visible=source == "typed",
            elem_id=f"{name}-typed",
        )
        with gr.Row(visible=source == "set", elem_classes=["vq-prompt-source"]) as of_set:
            known = gr.Dropdown(
                list(names), value=first, label="Set", filterable=False, elem_id=f"{name}-set"
            )
        with gr.Row(visible=source == "file", elem_classes=["vq-prompt-source"]) as of_file:
            file = gr.UploadButton(
                "Choose a text, CSV, TSV or JSON file",
                file_types=list[Any](KINDS),
                type="filepath",
                size="sm",
                elem_id=f"{name}-file",
            )
        with gr.Row(visible=source == "hub", elem_classes=["vq-prompt-source"]) as of_hub:
            hub = gr.Textbox(
                label="File of a dataset on the hub",
                info="It is looked up when you press Enter; everything else stays on this machine.",
                placeholder="owner/dataset/PartiPrompts.tsv",
                max_lines=1,
                elem_id=f"{name}-hub",
            )
        with gr.Row(visible=source != "typed", elem_classes=["vq-prompt-sample"]) as sampling:
            number = gr.Number(
                sample, label="How many", precision=0, minimum=1, elem_id=f"{name}-count"
            )
            spread = gr.Dropdown(
                list(SPREADS),
                value="",
                label="Drawn",
                filterable=False,
                elem_id=f"{name}-spread",
                min_width=176,
            )
            seed = gr.Number(
                0, label="Seed of the sample", precision=0, minimum=0, elem_id=f"{name}-seed"
            )
        inputs = [where, typed, known, file, hub, number, spread, seed]
        preview = html(_preview([source, examples, first, None, "", sample, "", 0]), f"{name}-list")

    def switch(kind: str) -> list[Any]:
        shown = (kind == "typed", kind == "set", kind == "file", kind == "hub", kind != "typed")
        return [gr.update(visible=each) for each in shown]

    def look(*values: Any) -> str:
        return _preview(values)

    where.change(switch, where, [typed, of_set, of_file, of_hub, sampling], **PRIVATE)
    triggers = [
        where.change,
        typed.change,
        known.change,
        file.upload,
        hub.submit,
        hub.blur,
        number.change,
        spread.change,
        seed.change,
    ]
    for trigger in triggers:
        trigger(look, inputs, preview, trigger_mode="always_last", **ACTION)
    return PromptChoice(inputs, preview, triggers)


def read(values: Sequence[Any]) -> tuple[str, ...]:
    """Returns the chosen prompts; `values` are those of `PromptChoice.inputs`.

    Raises:
        UserError: nothing is chosen, a fault of the file, or more prompts than there are.
    """
    return chosen(values).texts


def chosen(values: Sequence[Any]) -> Chosen:
    """Returns the chosen prompts with their labels and their source; see `read`."""
    where, typed, known, file, hub, number, spread, seed = values
    if where == "typed":
        return _typed(str(typed or ""))
    found = _set(where, known, file, str(hub or "").strip())
    many = _number(number, found)
    by: Label | None = spread if spread in ("category", "challenge") else None
    prompts = prompt_sets.sample(found, many, seed=whole(seed, "seed of the sample"), by=by)
    return Chosen(prompts=prompts, source=found.name, total=len(found.prompts), note=found.note)


def _typed(text: str) -> Chosen:
    lines = tuple(dict.fromkeys(" ".join(line.split()) for line in text.splitlines()))
    prompts = tuple(Prompt(text=line) for line in lines if line)
    if not prompts:
        raise UserError("there is no prompt.", where="prompts", remedy="Write one a line.")
    return Chosen(prompts=prompts, source="written here", total=len(prompts))


def _number(value: Any, found: PromptSet) -> int:
    """How many are asked for; a set that is smaller gives the fault that says so."""
    number = whole(value, "how many")
    if number > MOST:
        raise UserError(
            f"{number} prompts are too many.",
            where=found.name,
            remedy=f"Use 1 to {min(MOST, len(found.prompts))}.",
        )
    return number


def _set(where: str, known: Any, file: Any, hub: str) -> PromptSet:
    if where == "set":
        return _built_in(str(known))
    if where == "file":
        if not file:
            raise UserError(
                "no file is chosen.",
                where="prompts",
                remedy="Choose one: a prompt a line, a table with a column called prompt, caption"
                " or text, or COCO's captions.",
            )
        path = Path(str(file))
        try:
            return _of_file(str(path), path.stat().st_mtime_ns)
        except UserError as error:  # a person knows the name, not where the upload lies
            place = error.where.replace(str(path), path.name)
            raise UserError(error.what, where=place, remedy=error.remedy) from error
        except OSError as error:
            raise UserError("is gone.", where=path.name, remedy="Choose the file again.") from error
    if not hub:
        raise UserError(
            "no dataset is named.",
            where="prompts",
            remedy='Write "owner/dataset/file.tsv" and press Enter.',
        )
    people.refuse_visitors("Looking up a dataset")
    return _of_hub(hub)


@lru_cache(maxsize=8)
def _built_in(name: str) -> PromptSet:
    return prompt_sets.built_in_set(name)


@lru_cache(maxsize=4)
def _of_file(path: str, changed: int) -> PromptSet:
    del changed  # part of the key: a file that was replaced is read again
    return prompt_sets.read_prompt_set(path)


@lru_cache(maxsize=4)
def _of_hub(reference: str) -> PromptSet:
    return prompt_hub.download_prompt_set(reference)


def _preview(values: Sequence[Any]) -> str:
    try:
        found = chosen(values)
    except UserError as error:
        return header.fault(
            error.what, where=error.where, remedy=error.remedy, title="No prompts yet"
        )
    return listed(found)


def listed(found: Chosen) -> str:
    """Returns the list of chosen prompts as HTML, labels beside them, what was left out below."""
    if found.source == "written here":
        return f'<p class="vq-prompt-head">{count(len(found.prompts), "prompt")}</p>'
    head = f"{len(found.prompts)} of {count(found.total, 'prompt')} · {found.source}"
    rows = "".join(
        f"<li><span>{escape(prompt.text)}</span>{_labels(prompt)}</li>" for prompt in found.prompts
    )
    note = f'<p class="vq-prompt-note">{escape(found.note)}</p>' if found.note else ""
    return (
        f'<p class="vq-prompt-head">{escape(head)}</p>'
        f'<ol class="vq-prompt-list" tabindex="0" aria-label="Chosen prompts">{rows}</ol>{note}'
    )


def _labels(prompt: Prompt) -> str:
    words = " · ".join(filter(None, (prompt.category, prompt.challenge)))
    return f"<small>{escape(words)}</small>" if words else ""
