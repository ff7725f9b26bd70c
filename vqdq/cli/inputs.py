"""What the flags about activations mean: they change a recipe, and a plan says what comes of it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vqdq import notation
from vqdq.errors import UserError
from vqdq.jobs import arithmetic, inputs
from vqdq.jobs.variants import plain, variant

if TYPE_CHECKING:
    from vqdq.cli.terminal import Output
    from vqdq.recipe import Plan, PlannedLayer, Recipe

OFF = "off"


def applied(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    """Returns the recipe with what the flags ask of its layers' inputs and of attention.

    Raises:
        UserError: an unknown method or setting, or ranges that nothing asks for.
    """
    if options.activations is None and options.attention is None and options.range_prompts is None:
        return recipe
    changed = bare = plain(recipe)
    if options.activations is not None:
        changed = _activations(options.activations, changed)
    if options.attention is not None:
        changed = _attention(options.attention, changed)
    if options.range_prompts is not None:
        if changed.ranges is None:
            raise UserError(
                "no method here takes its ranges from prompts.",
                where="--range-prompts",
                remedy="Add --activations dgq, or leave it out.",
            )
        ranges = replace(changed.ranges, prompts=options.range_prompts)
        changed = replace(changed, ranges=ranges)
    if changed == bare:
        return recipe
    return variant(inputs.renamed(changed, bare), recipe.calibration, recipe.finetune)


def check_fragile(options: argparse.Namespace, plan: Plan) -> None:
    """Raises `UserError` when fragile inputs are to be kept and none is quantized."""
    if options.keep_fragile is not None and not plan.activated:
        raise UserError(
            "no input is quantized, so there is none to keep.",
            where="--keep-fragile",
            remedy="Add --activations dynamic, or leave it out.",
        )


def protected(options: argparse.Namespace, recipe: Recipe, output: Output) -> Recipe:
    """Returns the recipe with the most fragile inputs in 16 bits, after measuring them.

    Raises:
        UserError: a fault of the model.
    """
    from vqdq.models import protection  # heavy: diffusers

    found, _ = protection.protected(
        options.model, recipe, options.keep_fragile, report=output.report
    )
    return found


def _activations(text: str, recipe: Recipe) -> Recipe:
    from vqdq import activations

    if text == OFF:
        return inputs.with_activations(recipe, None)
    name, colon, settings = text.partition(":")
    where = "--activations"
    try:
        kind = activations.get(name)
    except UserError as error:
        raise UserError(error.what, where=where, remedy=error.remedy) from error
    words = settings.split(",") if colon else []
    return inputs.with_activations(recipe, name, notation.read(kind.settings, words, where=where))


def _attention(text: str, recipe: Recipe) -> Recipe:
    from vqdq.activations.attention import AttentionParams

    if text == OFF:
        return inputs.with_attention(recipe, None)
    words = text.split(",") if text else []
    return inputs.with_attention(recipe, notation.read(AttentionParams, words, where="--attention"))


def of_plan(plan: Plan) -> list[str]:
    """Returns the lines of a plan about activations; none when nothing is quantized."""
    found = arithmetic.expected(plan)
    if found is None:
        return []
    ranges = plan.recipe.ranges
    lines = [inputs.in_words(plan.recipe)]
    if ranges is not None:
        lines.append(f"ranges of activations from {ranges.prompts} prompts, {ranges.steps} steps")
    return [f"  {line}" for line in (*lines, f"{arithmetic.in_words(found)} (estimated)")]


def of_layer(planned: PlannedLayer) -> dict[str, Any]:
    """Returns what a program is told about a planned layer's input."""
    settings = planned.activation_params
    return {
        "activation": planned.activation,
        "activation_settings": None if settings is None else settings.to_json(),
        "activation_bytes": sum(spec.num_bytes for spec in planned.inputs),
    }


def in_a_word(planned: PlannedLayer) -> str:
    """Returns the quantizer of a layer's input: "dgq 6", or "" for none."""
    quantizer = planned.quantizer()
    return "" if quantizer is None else f"{quantizer.name} {quantizer.bits}"
