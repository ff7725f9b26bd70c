"""The controls for what goes into the layers: activations, attention, and the ranges they need.

`settings` draws them among its own and asks here what they say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from vqdq import activations
from vqdq.activations.attention import AttentionParams
from vqdq.calibration import RangeParams
from vqdq.errors import UserError
from vqdq.jobs.inputs import needs_ranges
from vqdq.params import Params, describe
from vqdq.recipe import Recipe
from vqdq.rules import Rule
from vqdq.ui import forms, rules
from vqdq.ui.live import html

OFF = 0
BITS = (("Off", OFF), *((str(bits), bits) for bits in (8, 7, 6, 5, 4)))
FIRST = ("dynamic", "dgq")
_BITS = "bits"  # the setting that every method has; the row of buttons stands for it
SWITCHES = ("activations", "activation", "attention", "attention.qkv_method", "attention.qkv_bits")
"""Controls on which it depends what is shown."""


def choices(controls: dict[str, Any], areas: dict[str, Any]) -> None:
    """Draws what stands in sight."""
    with gr.Column(elem_classes=["vq-inputs"]):
        controls["activations"] = gr.Radio(
            list(BITS), value=OFF, label="Bits of activations", elem_id="vq-activations"
        )
        controls["activation"] = areas["input.method"] = gr.Dropdown(
            methods(),
            value=FIRST[0],
            label="Method for activations",
            filterable=False,
            visible=False,
            elem_id="vq-activation",
        )
        for name in activations.names():
            _area(controls, areas, name, advanced=False)
        controls["attention"] = gr.Checkbox(label="Quantize attention too", elem_id="vq-attention")


def deep(controls: dict[str, Any], areas: dict[str, Any]) -> None:
    """Draws the finer settings of the methods, inside the fold of the advanced ones."""
    for name in activations.names():
        _area(controls, areas, name, advanced=True)


def folds(controls: dict[str, Any], areas: dict[str, Any]) -> None:
    """Draws the fold of attention, which is there while it is switched on."""
    fold = gr.Accordion("Attention", open=False, visible=False, elem_id="vq-attention-fold")
    areas["attention"] = fold
    with fold:
        drawn = forms.build(AttentionParams)
        controls |= {f"attention.{key}": part for key, part in drawn.components.items()}


def ranges(controls: dict[str, Any], areas: dict[str, Any]) -> None:
    """Draws how ranges are collected, inside the fold of calibration."""
    with gr.Column(visible=False) as area:
        html("<h3>Ranges of activations</h3>", "vq-ranges-title")
        drawn = forms.build(RangeParams)
        controls |= {f"ranges.{key}": part for key, part in drawn.components.items()}
    areas["ranges"] = area


def methods() -> list[tuple[str, str]]:
    """Returns (title, name) of every method, the usual first."""

    def rank(name: str) -> tuple[int, str]:
        return (FIRST.index(name) if name in FIRST else len(FIRST), name)

    return [(activations.get(name).title, name) for name in sorted(activations.names(), key=rank)]


def chosen(values: Mapping[str, Any]) -> tuple[str, Params] | tuple[None, None]:
    """Returns the method of all layers and its settings, or nothing.

    Raises:
        UserError: the setting, what is wrong with it and what is allowed.
    """
    if values["activations"] == OFF:
        return None, None
    method = values["activation"]
    given = forms.part(values, f"input.{method}") | {_BITS: values["activations"]}
    return method, forms.read(activations.get(method).settings, given)


def attention(values: Mapping[str, Any]) -> AttentionParams | None:
    """Returns how attention is quantized, or None.

    Raises:
        UserError: the setting, what is wrong with it and what is allowed.
    """
    if not values["attention"]:
        return None
    return forms.read(AttentionParams, forms.part(values, "attention"))


def filled(recipe: Recipe, general: Rule) -> dict[str, Any]:
    """Returns the values that show what `recipe` does to the layers' inputs."""
    after: dict[str, Any] = {"activations": OFF, "attention": recipe.attention is not None}
    if general.activation is not None and general.activation_params is not None:
        settings = general.activation_params.to_json()
        after |= {"activations": settings.pop(_BITS), "activation": general.activation}
        after |= {f"input.{general.activation}.{key}": value for key, value in settings.items()}
    for prefix, params in (("attention", recipe.attention), ("ranges", recipe.ranges)):
        if params is not None:
            after |= {f"{prefix}.{key}": value for key, value in params.to_json().items()}
    return after


def shown(values: Mapping[str, Any]) -> dict[str, bool]:
    """Returns which areas are visible."""
    on = values["activations"] != OFF
    found = {
        "input.method": on,
        "attention": bool(values["attention"]),
        "ranges": watched(values),
    }
    for name in activations.names():
        for depth in ("basic", "deep"):
            found[f"input.{name}.{depth}"] = on and values["activation"] == name
    return found


def watched(values: Mapping[str, Any]) -> bool:
    """Returns whether the controls ask for ranges; False while they hold a fault."""
    try:
        special = rules.parse(values["rules"] or "")
        method, params = chosen(values)
        quantized = attention(values)
    except UserError:
        return False
    general = Rule(pattern="*", activation=method, activation_params=params)
    return needs_ranges((*special, general), quantized)


def _area(controls: dict[str, Any], areas: dict[str, Any], name: str, *, advanced: bool) -> None:
    """Draws the settings of one method that are advanced, or those that are not, if there are."""
    params = activations.get(name).settings
    names = [i.name for i in describe(params) if i.advanced == advanced and i.name != _BITS]
    if not names:
        return
    with gr.Column(visible=False, elem_classes=[] if advanced else ["vq-basic"]) as area:
        drawn = forms.build(params, only=names)
    controls |= {f"input.{name}.{key}": part for key, part in drawn.components.items()}
    areas[f"input.{name}.{'deep' if advanced else 'basic'}"] = area
