"""All shipped recipes, grouped by what they are made of, each one press away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.quantities import size
from vqdq.recipe import Recipe
from vqdq.ui import rules
from vqdq.ui.wording import escape

INPUTS = "activations"
GROUPS = (
    ("trellis", "Trellis"),
    ("additive", "Additive codebooks"),
    (INPUTS, "Weights and activations"),
    ("", "Baselines"),
)
"""Method and heading; the last takes what no other takes."""


def groups(presets: Mapping[str, Recipe], sizes: Mapping[str, int | None], pressed: str) -> str:
    """Returns the recipes as buttons in groups; `sizes` are the exact bytes each would give."""
    members: dict[str, list[str]] = {method: [] for method, _ in GROUPS}
    for name, recipe in sorted(presets.items(), key=lambda item: (-(sizes[item[0]] or 0), item[0])):
        general = rules.split(recipe)[1]
        method = INPUTS if general.activation else general.method or ""
        members[method if method in members else ""].append(name)
    parts: list[str] = []
    for method, heading in GROUPS:
        buttons = "".join(
            f'<button type="button" class="vq-recipe" data-act="goal" data-recipe="{escape(name)}"'
            f' title="{escape(presets[name].description)}"'
            f' aria-pressed="{str(name == pressed).lower()}">'
            f"<span>{escape(_short(presets[name], heading))}</span>"
            f"<small>{size(sizes[name])}</small></button>"
            for name in members[method]
        )
        if buttons:
            parts.append(
                f'<div class="vq-recipe-group" role="group" aria-label="{heading}">'
                f"<h3>{heading}</h3>{buttons}</div>"
            )
    return f'<div class="vq-recipes">{"".join(parts)}</div>'


def learning(recipe: Recipe) -> Recipe:
    """Returns `recipe` with calibration and fine-tuning, as set or by their defaults."""
    return replace(
        recipe,
        calibration=recipe.calibration or CalibrationParams(),
        finetune=recipe.finetune or FinetuneParams(),
    )


def _short(recipe: Recipe, heading: str) -> str:
    """The title without what the group's heading says already."""
    title = recipe.title or recipe.name
    rest = title.removeprefix(f"{heading}, ")
    return rest[:1].upper() + rest[1:]
