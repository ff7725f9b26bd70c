"""One recipe calibrated or fine-tuned: its settings, and the name that says so.

The page's switches and the command line's flags both come here, so that a calibrated variant of a
preset has one name wherever it is made: that of the shipped preset where there is one.
"""

from __future__ import annotations

from dataclasses import replace

from vqdq import codecs
from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.errors import UserError
from vqdq.recipe import Plan, Recipe

_SUFFIXES = {
    (True, False): ("calibrated", "calibrated"),
    (True, True): ("tuned", "calibrated and fine-tuned"),
    (False, True): ("finetuned", "fine-tuned"),
}


def variant(
    recipe: Recipe, calibration: CalibrationParams | None, finetune: FinetuneParams | None
) -> Recipe:
    """Returns `recipe` with these settings, named after what they do."""
    bare = plain(recipe)
    if calibration is None and finetune is None:
        return bare
    suffix, words = _SUFFIXES[calibration is not None, finetune is not None]
    return replace(
        bare,
        name=f"{bare.name}-{suffix}",
        title=f"{bare.title}, {words}" if bare.title else "",
        calibration=calibration,
        finetune=finetune,
    )


def plain(recipe: Recipe) -> Recipe:
    """Returns `recipe` as it works from the weights alone, under the name it has then."""
    known = _SUFFIXES.get((recipe.calibration is not None, recipe.finetune is not None))
    suffix, words = known or ("", "")
    return replace(
        recipe,
        name=recipe.name.removesuffix(f"-{suffix}") if suffix else recipe.name,
        title=recipe.title.removesuffix(f", {words}") if words else recipe.title,
        calibration=None,
        finetune=None,
    )


def require_calibration(plan: Plan) -> None:
    """Raises `UserError` when a layer's method needs statistics that the recipe does not gather."""
    if plan.recipe.calibration is not None:
        return
    for layer in plan.quantized:
        kind = codecs.get(layer.method or "")
        if kind.needs_hessian:
            raise UserError(
                f"{kind.title} rounds for the inputs that a layer sees, and there is no"
                " calibration.",
                where=layer.layer.name,
                remedy="Switch calibration on (--calibrate on the command line).",
            )
