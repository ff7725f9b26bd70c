"""A codec's declaration drawn as a form and read back: the one place where `Params` meet the page.

`build` makes one component for each declared setting, `read` makes `Params` of what a person
entered (they
validate themselves), `write` goes the other way. A new method needs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr

from vqdq.errors import UserError
from vqdq.params import ParamInfo, Params, Value, describe

P = TypeVar("P", bound=Params)
FEW = 5  # choices up to this number are shown side by side, more in a list


@dataclass(frozen=True, slots=True)
class Form:
    """The components of one `Params` class, in the order of its declaration."""

    params: type[Params]
    components: Mapping[str, Any]

    @property
    def inputs(self) -> list[Any]:
        """The components, for an event's `inputs` or `outputs`."""
        return list(self.components.values())


def build(
    params: type[Params], *, values: Params | None = None, only: Sequence[str] | None = None
) -> Form:
    """Returns the form of `params`, drawn into the current layout.

    Args:
        values: what it shows first; the defaults when None.
        only: names of the settings to draw; all when None.
    """
    chosen = {
        info.name: component(info, info.default if values is None else getattr(values, info.name))
        for info in describe(params)
        if only is None or info.name in only
    }
    return Form(params, chosen)


def component(info: ParamInfo, value: Value, *, elem_id: str | None = None) -> Any:
    """Returns the control of one setting: what its type, range and number of choices ask for."""
    said = not info.unit or info.unit in info.label.lower()
    label = info.label if said else f"{info.label} ({info.unit})"
    common: dict[str, Any] = {
        "label": label,
        "info": _help(info),
        "value": value,
        "elem_id": elem_id,
        "elem_classes": ["vq-setting"],
    }
    if info.choices:
        choices = [(str(choice), choice) for choice in info.choices]
        if len(choices) <= FEW:
            return gr.Radio(choices=choices, **common)
        return gr.Dropdown(choices=choices, filterable=False, **common)
    if info.kind is bool:
        return gr.Checkbox(**common)
    if info.kind is str:
        return gr.Textbox(max_lines=1, **common)
    whole = info.kind is int
    if info.low is not None and info.high is not None and info.high - info.low <= 64:
        step = 1 if whole else (info.high - info.low) / 100
        if whole or float(info.default) >= info.low + 5 * step:  # finer ones are typed, not dragged
            return gr.Slider(minimum=info.low, maximum=info.high, step=step, buttons=[], **common)
    return gr.Number(step=1 if whole else _step(info), precision=0 if whole else None, **common)


def read(params: type[P], values: Mapping[str, Any], *, where: str = "") -> P:
    """Returns `params` made of what the components hold; settings that are not drawn take their
    defaults.

    Raises:
        UserError: an empty field, a value out of range or not offered; `where` is the setting's
        label.
    """
    ready: dict[str, Any] = {}
    for info in describe(params):
        if info.name not in values:
            continue
        value = values[info.name]
        if value is None or (value == "" and info.kind is not str):
            raise UserError("is empty.", where=info.label, remedy=f"The default is {info.default}.")
        if info.kind in (int, float) and isinstance(value, str):
            value = _number(value, info)
        if info.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        ready[info.name] = value
    return params.from_json(ready, where=where or params.__name__)


def part(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values of one form: those whose name starts with `prefix` and a point."""
    start = f"{prefix}."
    return {
        key.removeprefix(start): value for key, value in values.items() if key.startswith(start)
    }


def write(form: Form, values: Params) -> list[Any]:
    """Returns the updates that make `form` show `values`."""
    return [gr.update(value=getattr(values, name)) for name in form.components]


def _step(info: ParamInfo) -> float:
    """What one press of an arrow key adds: a tenth, or less for settings that are smaller."""
    size = abs(float(info.default))
    return min(0.1, 10.0 ** math.floor(math.log10(size))) if size else 0.1


def _number(text: str, info: ParamInfo) -> float | int:
    try:
        number = float(text)
    except ValueError as error:
        raise UserError(
            f'"{text}" is not a number.', where=info.label, remedy=f"The default is {info.default}."
        ) from error
    return int(number) if info.kind is int and number.is_integer() else number


def _help(info: ParamInfo) -> str | None:
    """One sentence in sight; in the fold also where the default comes from."""
    source = info.reference if info.advanced else ""
    return " ".join(filter(None, (info.help, source and f"({source})"))) or None
