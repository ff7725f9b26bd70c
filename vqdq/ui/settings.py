"""The controls of the Compress tab: what they are, what they say, and how a recipe fills them.

Values travel by the controls' names, so a new setting is one control here and nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import gradio as gr

from vqdq import codecs
from vqdq.activations.attention import AttentionParams
from vqdq.also import DECODER, TEXT_ENCODERS, also, pattern_of
from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.errors import UserError
from vqdq.jobs.inputs import suffix, with_ranges
from vqdq.jobs.variants import variant
from vqdq.params import Params, describe
from vqdq.recipe import Recipe
from vqdq.rules import Rule
from vqdq.ui import forms, inputs, rules
from vqdq.ui.live import html

P = TypeVar("P", bound=Params)
MAX_SEED = 2**63 - 1
ALIKE, BITS, SIZE = "alike", "bits", "size"
AIMS = (("The same", ALIKE), ("By average", BITS), ("By size", SIZE))
AIM_BITS, AIM_MB = 2.7, 8.0
FIRST = ("trellis", "additive", "uniform")
ALSO = (
    ("Text encoders, trellis at 4 bits", TEXT_ENCODERS),
    ("Picture decoder, rounded to 8 bits", DECODER),
)
"""Components beside the denoiser: what the control says, and the wish (`vqdq.also`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aim:
    """What the bits of all layers together should come to: `bits` on average, or `bytes`."""

    bits: float | None = None
    bytes: int | None = None

    @property
    def words(self) -> str:
        """The aim as the page's address says it: "2.7bits", "8.5MB"."""
        return f"{self.bits:g}bits" if self.bits is not None else f"{(self.bytes or 0) / 1e6:g}MB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the controls ask for: a recipe and, when layers get bits of their own, an aim."""

    recipe: Recipe
    aim: Aim | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every control by its name; those of a form are called "trellis.bits".

    Attributes:
        controls: in the order in which events pass their values.
        areas: what is shown or hidden as a whole, by the name of what it belongs to.
    """

    controls: dict[str, Any] = field(default_factory=dict[str, Any])
    areas: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def inputs(self) -> list[Any]:
        """Every control."""
        return list(self.controls.values())

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """Returns what an event passed, by the controls' names."""
        return dict(zip(self.controls, values, strict=True))

    def wish(self, values: Mapping[str, Any]) -> Wish:
        """Returns what the controls ask for.

        Raises:
            UserError: the setting, what is wrong with it and what is allowed.
        """
        method = values["method"]
        params = _read(codecs.get(method).settings, values, method)
        activation, its_params = inputs.chosen(values)
        general = Rule(
            pattern="*",
            method=method,
            params=params,
            activation=activation,
            activation_params=its_params,
        )
        base = recipe_of(
            general,
            rules.parse(values["rules"] or ""),
            whole(values["seed"], "seed"),
            attention=inputs.attention(values),
        )
        recipe = variant(
            with_ranges(base, _read(RangeParams, values, "ranges") if base.ranges else None),
            _read(CalibrationParams, values, "calibration") if values["calibrate"] else None,
            _read(FinetuneParams, values, "finetuning") if values["finetune"] else None,
        )
        recipe = with_others(recipe, values.get("also") or ())
        return Wish(recipe=recipe, aim=_aim(values), name=values["name"] or "")

    def filled(self, wish: Wish, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values that show `wish`; what it says nothing about keeps what it holds."""
        special, general = rules.split(wish.recipe)
        assert general.method is not None
        assert general.params is not None
        recipe, aim = wish.recipe, wish.aim
        after = dict(values) | {
            "method": general.method,
            "rules": rules.render(special),
            "seed": recipe.seed,
            "calibrate": recipe.calibration is not None,
            "finetune": recipe.finetune is not None,
            "aim": ALIKE if aim is None else BITS if aim.bits is not None else SIZE,
        }
        after["also"] = others_in(recipe)
        if aim is not None:
            after |= {"aim_bits": aim.bits} if aim.bits is not None else {}
            after |= {"aim_mb": aim.bytes / 1e6} if aim.bytes is not None else {}
        after |= inputs.filled(recipe, general)
        for prefix, params in (
            (general.method, general.params),
            ("calibration", recipe.calibration),
            ("finetuning", recipe.finetune),
        ):
            if params is not None:
                after |= {f"{prefix}.{key}": value for key, value in params.to_json().items()}
        return after

    def visibility(self, values: Mapping[str, Any]) -> list[Any]:
        """Returns one update for each of `areas`."""
        aimed = values["aim"] != ALIKE
        shown = {
            "aim_bits": values["aim"] == BITS,
            "aim_mb": values["aim"] == SIZE,
            "calibration": values["calibrate"],
            "finetuning": values["finetune"],
            **inputs.shown(values),
        }
        shown["learning"] = shown["calibration"] or shown["finetuning"] or shown["ranges"]
        for name in codecs.names():
            shown[f"{name}.basic"] = name == values["method"] and not aimed
            shown[f"{name}.deep"] = name == values["method"]
        return [gr.update(visible=bool(shown[name])) for name in self.areas]


def choices(general: Rule) -> Settings:
    """Draws what stands in sight into the current layout and returns it; `folds` adds the rest."""
    made = Settings()
    controls, areas = made.controls, made.areas
    controls["method"] = gr.Dropdown(
        methods(), value=general.method, label="Method", filterable=False, elem_id="vq-method"
    )
    for known in codecs.names():
        if all(info.advanced for info in describe(codecs.get(known).settings)):
            continue  # nothing to draw, not even a gap
        with gr.Column(visible=known == general.method, elem_classes=["vq-basic"]) as area:
            _form(controls, known, general, advanced=False)
        areas[f"{known}.basic"] = area
    controls["aim"] = gr.Radio(
        list(AIMS), value=ALIKE, label="Bits for each layer", elem_id="vq-aim"
    )
    controls["aim_bits"] = areas["aim_bits"] = gr.Slider(
        2.0,
        6.0,
        AIM_BITS,
        step=0.1,
        label="Bits per weight, on average",
        info="Layers that matter more get more.",
        visible=False,
        buttons=[],
        elem_id="vq-aim-bits",
    )
    controls["aim_mb"] = areas["aim_mb"] = gr.Number(
        AIM_MB,
        label="File size of the denoiser (MB)",
        info="Layers that matter more get more.",
        step=0.1,
        visible=False,
        elem_id="vq-aim-mb",
    )
    inputs.choices(controls, areas)
    with gr.Column(elem_classes=["vq-switches"]):
        controls["calibrate"] = gr.Checkbox(label="Calibrate on prompts", elem_id="vq-calibrate")
        controls["finetune"] = gr.Checkbox(label="Fine-tune afterwards", elem_id="vq-finetune")
    return made


def folds(
    made: Settings, general: Rule, special: tuple[Rule, ...], *, name: str, matches: str
) -> Any:
    """Adds the settings in folds to `made`, draws them, and returns the list of what rules take."""
    controls, areas = made.controls, made.areas
    with gr.Accordion("Advanced settings", open=False, elem_id="vq-advanced"):
        for known in codecs.names():
            with gr.Column(visible=known == general.method) as area:
                _form(controls, known, general, advanced=True)
            areas[f"{known}.deep"] = area
        inputs.deep(controls, areas)
        controls["seed"] = gr.Number(
            0, label="Seed", precision=0, info="Same seed, same bytes", elem_id="vq-recipe-seed"
        )
        controls["name"] = gr.Textbox(
            label="Name of the new model", max_lines=1, elem_id="vq-name", placeholder=name
        )
    fold = gr.Accordion(
        "Calibration and fine-tuning", open=False, visible=False, elem_id="vq-learning"
    )
    areas["learning"] = fold
    with fold:
        for prefix, params, title in (
            ("calibration", CalibrationParams, "Calibration"),
            ("finetuning", FinetuneParams, "Fine-tuning"),
        ):
            with gr.Column(visible=False) as area:
                html(f"<h3>{title}</h3>", f"vq-{prefix}-title")
                drawn = forms.build(params)
                controls |= {f"{prefix}.{key}": part for key, part in drawn.components.items()}
            areas[prefix] = area
        inputs.ranges(controls, areas)
    inputs.folds(controls, areas)
    with gr.Accordion("Layer rules", open=False, elem_id="vq-rules"):
        controls["rules"] = gr.Textbox(
            rules.render(special),
            label="One rule a line; the first that matches decides",
            info=f'"pattern = method settings | activation method", or "pattern = {rules.KEEP}"'
            " for 16 bits",
            lines=4,
            max_lines=12,
            placeholder=rules.EXAMPLE,
            elem_id="vq-rule-lines",
        )
        found = html(matches, "vq-rule-matches")
        controls["also"] = gr.CheckboxGroup(
            [(words, pattern_of(wish)) for words, wish in ALSO],
            label="Also compress",
            info="From their weights alone, without calibration.",
            elem_id="vq-also",
        )
        return found


def methods() -> list[tuple[str, str]]:
    """Returns (title, name) of every method: ours, baselines, then other people's code."""

    def rank(name: str) -> tuple[int, str]:
        kind = codecs.get(name)
        return (FIRST.index(name) if name in FIRST else len(FIRST), kind.__module__)

    found: list[tuple[str, str]] = []
    for name in sorted(codecs.names(), key=rank):
        kind = codecs.get(name)
        found.append((f"{kind.title} (not installed)" if kind.missing() else kind.title, name))
    return found


def recipe_of(
    general: Rule, special: tuple[Rule, ...], seed: int, *, attention: AttentionParams | None = None
) -> Recipe:
    """Returns the recipe: special rules first, then the general one for every other layer.

    Ranges are collected, by their defaults, where something needs them.
    """
    params = general.params
    bits = "" if params is None else getattr(params, "bits", "")
    name = f"{general.method}-{bits}bit" if bits else f"{general.method}"
    recipe = Recipe(name=name, rules=(*special, general), seed=seed, attention=attention)
    return with_ranges(replace(recipe, name=f"{name}{suffix(recipe)}"), None)


def with_others(recipe: Recipe, patterns: Sequence[str]) -> Recipe:
    """Returns `recipe` with what `ALSO` says of the components that `patterns` name.

    Raises:
        UserError: a pattern that is not in `ALSO`.
    """
    known = {pattern_of(wish): wish for _, wish in ALSO}
    for pattern in patterns:
        if pattern not in known:
            raise UserError(
                f"{pattern[:40]!r} cannot be chosen here.",
                where="also",
                remedy=f"Use {' or '.join(known)}.",
            )
    return also(recipe, [known[pattern] for pattern in known if pattern in patterns])


def others_in(recipe: Recipe) -> list[str]:
    """Returns the patterns of `ALSO` that a recipe speaks of."""
    spoken = {part.pattern for part in recipe.components}
    return [pattern for _, wish in ALSO if (pattern := pattern_of(wish)) in spoken]


def whole(value: float | str | None, where: str) -> int:
    """Returns a whole number of a number field, which may be empty or hold a fraction.

    Raises:
        UserError: it is no whole number, or not one that a seed can be.
    """
    allowed = "Use 0 to 2^63 − 1."
    if value is None or value == "":
        raise UserError("is empty.", where=where, remedy=allowed)
    try:
        number = int(value) if float(value).is_integer() else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise UserError(f"{str(value)[:40]} is not a whole number.", where=where, remedy=allowed)
    if not 0 <= number <= MAX_SEED:
        raise UserError(f"{number} is out of range.", where=where, remedy=allowed)
    return number


def _aim(values: Mapping[str, Any]) -> Aim | None:
    match values["aim"]:
        case "bits":
            return Aim(bits=round(_positive(values["aim_bits"], "Bits per weight"), 3))
        case "size":
            return Aim(bytes=round(1e6 * _positive(values["aim_mb"], "File size")))
        case _:
            return None


def _positive(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError("is empty or not above 0.", where=where, remedy="Enter a number like 2.7.")
    return float(value)


def _form(controls: dict[str, Any], method: str, general: Rule, *, advanced: bool) -> None:
    params = codecs.get(method).settings
    names = [info.name for info in describe(params) if info.advanced == advanced]
    shown = general.params if method == general.method else None
    drawn = forms.build(params, values=shown, only=names)
    controls |= {f"{method}.{key}": part for key, part in drawn.components.items()}


def _read(params: type[P], values: Mapping[str, Any], prefix: str) -> P:
    return forms.read(params, forms.part(values, prefix))
