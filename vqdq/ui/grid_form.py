"""The controls of the Grid tab: what changes along each direction, and what stays the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from vqdq import codecs
from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.errors import UserError
from vqdq.jobs import grid_axes
from vqdq.jobs.cluster import missing as missing_cluster
from vqdq.jobs.grid_cells import data_free
from vqdq.jobs.requests import GridRequest
from vqdq.jobs.requests.grid import MODEL_AXES, ORIGINAL, Axis, Value
from vqdq.ui import prompt_choice, settings
from vqdq.ui.desk import Desk
from vqdq.ui.prompt_choice import PromptChoice

TITLES = {
    "model": "Model",
    "recipe": "Recipe",
    "method": "Method",
    "bits": "Bits",
    "prompt": "Prompt",
    "seed": "Seed",
    "steps": "Steps",
    "guidance": "Guidance",
}
SIDES = (("columns", "Columns"), ("rows", "Rows"), ("pages", "Pages"))
FIRST = {"columns": "bits", "rows": "prompt", "pages": ""}
FIRST_TEXT = {"bits": "16, 4, 3, 2", "seed": "1-4", "steps": "5, 10, 20, 40", "guidance": "1, 3, 6"}
HINTS = {
    "bits": "16 is the original. A range or a list: 2-4 · 16, 4, 2",
    "seed": "A list or a range: 1, 5, 9 · 1-8",
    "steps": "A list or a range: 5, 10, 20 · 10..50:10",
    "guidance": "A list or a range: 1, 3, 6 · 1..7:1.5",
}
NAMES = ("model", "recipe", "method")
STEPS, GUIDANCE, SEED = 20, 3.0, 7


@dataclass(frozen=True, slots=True)
class GridForm:
    """Every control by its name.

    Attributes:
        controls: in the order in which events pass their values; the chooser's follow them.
        areas: what is shown or hidden, by name.
        choice: the chooser of prompts.
    """

    desk: Desk
    controls: dict[str, Any] = field(default_factory=dict[str, Any])
    areas: dict[str, Any] = field(default_factory=dict[str, Any])
    choice: PromptChoice = field(default_factory=lambda: PromptChoice([], None))

    @property
    def inputs(self) -> list[Any]:
        """Every control, for an event's inputs."""
        return [*self.controls.values(), *self.choice.inputs]

    def request(self, values: Sequence[Any]) -> GridRequest:
        """Returns what the controls ask for.

        Raises:
            UserError: the direction or the setting, what is wrong with it, what is allowed.
        """
        count = len(self.controls)
        named = dict(zip(self.controls, values[:count], strict=True))
        axes: list[Axis] = []
        for side, title in SIDES:
            name = named[side]
            if name:
                axes.append(_axis(name, title, named, side, values[count:]))
        if not axes:
            raise UserError("nothing changes.", where="Columns", remedy="Choose a setting.")
        has = {axis.name for axis in axes}
        return GridRequest(
            model=self.desk.model,
            axes=tuple(axes),
            prompt="" if "prompt" in has else str(named["prompt"] or ""),
            seed=settings.whole(named["seed"], "seed"),
            steps=settings.whole(named["steps"], "steps"),
            guidance=_number(named["guidance"]),
            variant="" if has & set(MODEL_AXES) else str(named["variant"] or ""),
            method=str(named["method"]),
            bits=settings.whole(named["bits"], "bits"),
            engine=str(named["engine"] or "local"),
        )

    def visibility(self, values: Sequence[Any]) -> list[Any]:
        """Returns one update for each of `areas`, from what the directions are."""
        named = dict(zip((side for side, _ in SIDES), values, strict=True))
        has = set(named.values())
        shown = {name: name not in has for name in ("prompt", "seed", "steps", "guidance")}
        shown["variant"] = not has & set(MODEL_AXES)
        shown["method"] = "bits" in has and "method" not in has
        shown["bits"] = "method" in has and "bits" not in has
        shown["prompts"] = "prompt" in has
        updates: list[Any] = []
        for name in self.areas:
            side, _, part = name.partition(".")
            if part:
                kinds = grid_axes.NUMBERS if part == "text" else NAMES
                shown[name] = named[side] in kinds
            updates.append(gr.update(visible=shown[name]))
        return updates

    def turned(self, side: str, values: Sequence[Any]) -> list[Any]:
        """Returns one update for each of `areas` after the setting of a direction was chosen."""
        name = dict(zip((each for each, _ in SIDES), values, strict=True))[side]
        fresh = dict(zip((f"{side}.text", f"{side}.names"), self.chosen(name), strict=True))
        shown = zip(self.areas, self.visibility(values), strict=True)
        return [update | fresh.get(area, {}) for area, update in shown]

    def chosen(self, name: str) -> list[Any]:
        """Returns updates of a direction's text and names after its setting was chosen."""
        text = gr.skip()
        names = gr.skip()
        if name in grid_axes.NUMBERS:
            text = gr.update(
                value=FIRST_TEXT[name], label=f"Values of {TITLES[name].lower()}", info=HINTS[name]
            )
        if name in NAMES:
            names = gr.update(
                choices=choices(self.desk, name), value=first(self.desk, name), label=TITLES[name]
            )
        return [text, names]

    def offered(self, name: str) -> Any:
        """Returns the update of a direction's names that offers what there is by now."""
        return gr.update(choices=choices(self.desk, name)) if name in NAMES else gr.skip()

    def filled(self, request: GridRequest) -> list[Any]:
        """Returns updates of the controls (not of the chooser's) that show `request` again."""
        sides = dict(zip((side for side, _ in SIDES), (*request.axes, None, None), strict=False))
        updates: list[Any] = []
        for name in self.controls:
            side, _, part = name.partition(".")
            axis = sides.get(side)
            if side in sides and not part:
                updates.append(gr.update(value="" if axis is None else axis.name))
            elif part == "text" and axis is not None and axis.name in grid_axes.NUMBERS:
                hint = HINTS[axis.name]
                updates.append(gr.update(value=grid_axes.in_words(axis.values), info=hint))
            elif part == "names" and axis is not None and axis.name in NAMES:
                known = choices(self.desk, axis.name)
                updates.append(
                    gr.update(choices=known, value=list(axis.values), label=TITLES[axis.name])
                )
            elif part or (name == "prompt" and not request.prompt):
                updates.append(gr.skip())
            else:
                updates.append(gr.update(value=getattr(request, name)))
        return updates

    def written(self, request: GridRequest) -> list[Any]:
        """Returns updates of the chooser's controls that show the request's prompts."""
        axis = next((axis for axis in request.axes if axis.name == "prompt"), None)
        if axis is None:
            return [gr.skip()] * len(self.choice.inputs)
        lines = "\n".join(str(value) for value in axis.values)
        rest = [gr.skip()] * (len(self.choice.inputs) - 2)
        return [gr.update(value="typed"), gr.update(value=lines), *rest]


def build(desk: Desk) -> GridForm:
    """Returns the form, drawn into the current layout."""
    form = GridForm(desk)
    controls, areas = form.controls, form.areas
    with gr.Row(elem_classes=["vq-grid-sides"]):
        for side, title in SIDES:
            with gr.Column(min_width=240, elem_classes=["vq-grid-side"]):
                _side(form, side, title)
    with gr.Column(elem_classes=["vq-grid-prompts"]) as prompts:
        choice = prompt_choice.build("vq-grid-prompts", demo=desk.is_demo)
    areas["prompts"] = prompts
    form = GridForm(desk, controls, areas, choice)
    with gr.Row(elem_classes=["vq-grid-fixed"]):
        controls["prompt"] = areas["prompt"] = gr.Textbox(
            EXAMPLE_PROMPTS[0] if desk.is_demo else "",
            label="Prompt",
            lines=1,
            max_lines=3,
            visible=False,
            elem_id="vq-grid-prompt",
            min_width=320,
            scale=4,
        )
        controls["variant"] = areas["variant"] = gr.Dropdown(
            [("Original", "")],
            value="",
            label="Model",
            visible=False,
            elem_id="vq-grid-variant",
            min_width=192,
        )
        controls["method"] = areas["method"] = gr.Dropdown(
            choices(desk, "method"),
            value="trellis",
            label="Method",
            filterable=False,
            elem_id="vq-grid-method",
            min_width=192,
        )
        controls["bits"] = areas["bits"] = gr.Number(
            3, label="Bits", precision=0, visible=False, elem_id="vq-grid-bits", min_width=96
        )
        controls["seed"] = areas["seed"] = gr.Number(
            SEED, label="Seed", precision=0, elem_id="vq-grid-seed", min_width=96
        )
        controls["steps"] = areas["steps"] = gr.Number(
            STEPS, label="Steps", precision=0, elem_id="vq-grid-steps", min_width=96
        )
        controls["guidance"] = areas["guidance"] = gr.Number(
            GUIDANCE, label="Guidance", elem_id="vq-grid-guidance", min_width=96
        )
        controls["engine"] = gr.Dropdown(
            [("This computer", "local"), ("Ray cluster", "ray")],
            value="local",
            label="Where",
            filterable=False,
            visible=not missing_cluster(),
            elem_id="vq-grid-engine",
            min_width=160,
        )
    return form


def choices(desk: Desk, name: str) -> list[tuple[str, str]]:
    """Returns (label, value) of what can be named on an axis of models, recipes or methods."""
    if name == "model":
        return [("Original", desk.model), *desk.variants()]
    if name == "recipe":
        free = [
            (recipe.title or key, key) for key, recipe in desk.presets.items() if data_free(recipe)
        ]
        return [("Original", ORIGINAL), *free]
    usable = [key for key in codecs.available() if not codecs.get(key).needs_hessian]
    return [(title, key) for title, key in settings.methods() if key in usable]


def first(desk: Desk, name: str) -> list[str]:
    """Returns what is chosen first on such an axis."""
    known = [value for _, value in choices(desk, name)]
    wanted = {
        "model": known[:4],
        "recipe": [ORIGINAL, "trellis-4bit", "trellis-3bit", "trellis-2bit"],
        "method": ["trellis", "additive", "uniform"],
    }[name]
    return [value for value in wanted if value in known]


def _side(form: GridForm, side: str, title: str) -> None:
    """The three controls of one direction."""
    name = FIRST[side]
    none = [] if side == "columns" else [("Nothing", "")]
    form.controls[side] = gr.Dropdown(
        [*none, *((words, key) for key, words in TITLES.items())],
        value=name,
        label=title,
        filterable=False,
        elem_id=f"vq-grid-{side}",
    )
    form.controls[f"{side}.text"] = form.areas[f"{side}.text"] = gr.Textbox(
        FIRST_TEXT.get(name, ""),
        label=f"Values of {TITLES[name].lower()}" if name else "Values",
        info=HINTS.get(name),
        max_lines=1,
        visible=name in grid_axes.NUMBERS,
        elem_id=f"vq-grid-{side}-values",
    )
    form.controls[f"{side}.names"] = form.areas[f"{side}.names"] = gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        label="Values",
        visible=False,
        elem_id=f"vq-grid-{side}-names",
    )


def _axis(
    name: str, title: str, named: Mapping[str, Any], side: str, prompts: Sequence[Any]
) -> Axis:
    values: tuple[Value, ...]
    if name in grid_axes.NUMBERS:
        values = _said(
            title, lambda: grid_axes.parse_values(name, str(named[f"{side}.text"] or ""))
        )
    elif name == "prompt":
        values = prompt_choice.read(prompts)
    else:
        values = tuple(str(value) for value in named[f"{side}.names"] or ())
    return _said(title, lambda: Axis(name=name, values=values))


def _said(title: str, make: Callable[[], Any]) -> Any:
    """What `make` returns; a fault names the direction, as the page calls it."""
    try:
        return make()
    except UserError as error:
        where = f"{title}, {error.where}" if error.where else title
        raise UserError(error.what, where=where, remedy=error.remedy) from error


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise UserError("is empty.", where="guidance", remedy="Use 0 to 100.")
    return float(value)
