"""What a recipe says of the components beside the denoiser: text encoders, autoencoder, others."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.params import nearest
from vqdq.rules import Rule, known_keys

_DENOISER_ONLY = ("calibration", "finetune", "ranges", "attention", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Rules for the components whose name matches `pattern`; works from the weights alone.

    Attributes:
        pattern: shell-style glob over the component's name ("text_encoder*", "vae").
        rules: as those of the recipe, over the names of that component's layers.
    """

    pattern: str
    rules: tuple[Rule, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the section as JSON values."""
        return {"rules": [rule.to_json() for rule in self.rules]}


def sections(values: object, where: str) -> tuple[Section, ...]:
    """Returns the sections in the "components" of a recipe, the most specific pattern first.

    A name without wildcards is more specific than any pattern, a longer pattern than a shorter one;
    the order in the file, which some programs do not keep, decides nothing.

    Raises:
        UserError: a malformed section, or what only a denoiser can have (calibration, activations).
    """
    if not isinstance(values, dict):
        raise UserError(
            "is not a JSON object.", where=where, remedy='Write {"vae": {"rules": […]}}.'
        )
    entries = cast(dict[str, Any], values).items()
    found = [_section(pattern, entry, f'{where}["{pattern}"]') for pattern, entry in entries]
    return tuple(sorted(found, key=_generality))


def section_of(given: Sequence[Section], name: str) -> Section | None:
    """Returns the section that decides about a component, or None: it is kept as it is."""
    return next((part for part in given if fnmatch.fnmatchcase(name, part.pattern)), None)


def chosen(given: Sequence[Section], names: Sequence[str], denoiser: str) -> tuple[str, ...]:
    """Returns the components that some section speaks of, in their order in `names`.

    Args:
        names: the components beside the denoiser that have weights.
        denoiser: name of the denoiser, of which the recipe's own rules speak.

    Raises:
        UserError: a section that matches none of them (the nearest is named).
    """
    for part in given:
        if part.pattern == denoiser:
            raise UserError(
                f"the {denoiser} is the denoiser.",
                where="recipe.components",
                remedy='Its rules are the recipe\'s own "rules".',
            )
        if not any(fnmatch.fnmatchcase(name, part.pattern) for name in names):
            raise UserError(
                f'no component matches "{part.pattern}".',
                where="recipe.components",
                remedy=nearest(part.pattern, names, "component")
                if names
                else f"The model has no weights beside the {denoiser}.",
            )
    return tuple(name for name in names if section_of(given, name) is not None)


def _section(pattern: str, values: object, where: str) -> Section:
    if not isinstance(values, dict):
        raise UserError("is not a JSON object.", where=where, remedy='Write {"rules": […]}.')
    entry = cast(dict[str, Any], values)
    for key in _DENOISER_ONLY:
        if key in entry:
            raise UserError(
                f"has its own {key}; only the denoiser can.",
                where=where,
                remedy="Other components are compressed from their weights alone: remove it.",
            )
    known_keys(entry, ("rules",), where)
    rules = entry.get("rules")
    if not isinstance(rules, list) or not rules:
        raise UserError(
            "there are no rules.", where=where, remedy='Add "rules": [{"pattern": "*", …}].'
        )
    ready = tuple(
        Rule.from_json(rule, f"{where}.rules[{i}]") for i, rule in enumerate(cast(list[Any], rules))
    )
    for i, rule in enumerate(ready):
        if rule.activation is not None:
            raise UserError(
                "inputs are quantized in the denoiser only.",
                where=f"{where}.rules[{i}].activation",
                remedy="Remove the activation.",
            )
        if rule.method is not None and codecs.get(rule.method).needs_hessian:
            raise UserError(
                f"{codecs.get(rule.method).title} needs calibration, which only the denoiser has.",
                where=f"{where}.rules[{i}].method",
                remedy="Choose another method.",
            )
    return Section(pattern=pattern, rules=ready)


def _generality(part: Section) -> tuple[bool, int, str]:
    wild = any(mark in part.pattern for mark in "*?[")
    return wild, -len(part.pattern), part.pattern
