"""What a recipe does to the layers' inputs: put on and taken off, and what it needs for that.

The page's panel and the command line's flags both come here, as `variants` serves calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vqdq.activations.attention import AttentionParams
from vqdq.calibration import RangeParams
from vqdq.params import Params
from vqdq.recipe import Recipe
from vqdq.rules import Rule


def with_activations(recipe: Recipe, method: str | None, params: Params | None = None) -> Recipe:
    """Returns `recipe` with this quantizer on the input of every layer whose weight it encodes.

    None takes every quantizer off. Ranges are collected if, and only if, something needs them.
    """
    rules = tuple(
        replace(rule, activation=method, activation_params=params) if rule.method else rule
        for rule in recipe.rules
    )
    return with_ranges(replace(recipe, rules=rules), recipe.ranges)


def with_attention(recipe: Recipe, params: AttentionParams | None) -> Recipe:
    """Returns `recipe` with attention quantized like this; None leaves it in full precision."""
    return with_ranges(replace(recipe, attention=params), recipe.ranges)


def with_ranges(recipe: Recipe, ranges: RangeParams | None) -> Recipe:
    """Returns `recipe` with `ranges`, or their defaults, where it needs them; else without."""
    if not needs_ranges(recipe.rules, recipe.attention):
        return replace(recipe, ranges=None)
    return replace(recipe, ranges=ranges or RangeParams())


def needs_ranges(rules: Sequence[Rule], attention: AttentionParams | None = None) -> bool:
    """Returns whether the inputs have to be watched on prompts before they can be quantized."""
    if attention is not None and attention.qkv_bits < 16 and attention.qkv_method == "dgq":
        return True
    built = [quantizer for rule in rules if (quantizer := rule.quantizer()) is not None]
    return any(quantizer.calibrated or quantizer.smooths for quantizer in built)


def suffix(recipe: Recipe) -> str:
    """Returns what the recipe's inputs add to its name: "-a8", "-a6-s4", "" for nothing."""
    built = [quantizer for rule in recipe.rules if (quantizer := rule.quantizer()) is not None]
    bits = f"-a{min(quantizer.bits for quantizer in built)}" if built else ""
    attention = recipe.attention
    scores = attention is not None and attention.scores != "off"
    return bits + (f"-s{attention.bits}" if attention is not None and scores else "")


def renamed(recipe: Recipe, before: Recipe) -> Recipe:
    """Returns `recipe` under a name that says how it differs from `before`, whose name it has."""
    old, new = suffix(before), suffix(recipe)
    stem = before.name.removesuffix(old)
    if new == old:
        changed = recipe.rules != before.rules
        method = next((rule.activation for rule in reversed(recipe.rules) if rule.activation), None)
        name = f"{before.name}-{method if changed and method else 'changed'}"
    elif old and stem == before.name:  # the name says it in its own way
        name = f"{before.name}{new or '-a16'}"
    else:
        name = f"{stem}{new}"
    words = in_words(recipe) or "activations in 16 bits"
    return replace(recipe, name=name, title=before.title and f"{before.title}, {words}")


def in_words(recipe: Recipe) -> str:
    """Returns what becomes of activations and attention: "activations 8 bits (dynamic)"."""
    kinds = {
        f"{quantizer.bits} bits ({quantizer.name})"
        for rule in recipe.rules
        if (quantizer := rule.quantizer()) is not None
    }
    parts = [f"activations {' and '.join(sorted(kinds))}"] if kinds else []
    attention = recipe.attention
    if attention is not None and attention.scores != "off":
        parts.append(f"attention scores {attention.bits} bits ({attention.scores})")
    if attention is not None and attention.qkv_bits < 16:
        parts.append(f"q, k, v {attention.qkv_bits} bits")
    return ", ".join(parts)


def prompt_files(recipe: Recipe) -> tuple[str, ...]:
    """Returns the files of prompts that a recipe names; one from elsewhere must name none."""
    sections = (recipe.calibration, recipe.ranges)
    return tuple(each.prompt_file for each in sections if each is not None and each.prompt_file)
