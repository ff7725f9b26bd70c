"""What every request checks: models, prompts, numbers, and the JSON it comes from."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from vqdq.errors import UserError
from vqdq.params import is_text, nearest
from vqdq.recipe import Recipe

MAX_PROMPT_CHARACTERS = 2000  # CLIP reads 77 tokens; a text beyond this is a mistake, not a prompt
MAX_SEED = 2**63 - 1  # what SQLite and torch both hold
MAX_STEPS = 1000  # the training steps of every scheduler in diffusers
MAX_GUIDANCE = 100.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
R = TypeVar("R")
SAMPLING = ("prompt", "seed", "steps", "guidance")
DEVICES = ("cpu", "cuda")


def check_sampling(prompt: object, seed: object, steps: object, guidance: object) -> None:
    """Raises `UserError` for a prompt, seed, number of steps or guidance that cannot be drawn."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(
            "the prompt is empty.", where="prompt", remedy="Say what the picture should show."
        )
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"the prompt has {len(prompt):,} characters.",
            where="prompt",
            remedy=f"Use at most {MAX_PROMPT_CHARACTERS:,}; text encoders read about 77 tokens.",
        )
    if not is_text(prompt) or any(ord(mark) < 32 and mark not in "\t\n\r" for mark in prompt):
        raise UserError(
            "the prompt holds characters that are no text.", where="prompt", remedy="Type it again."
        )
    check_whole(seed, "seed", 0, MAX_SEED, "0 to 2^63 - 1")
    check_whole(steps, "steps", 1, MAX_STEPS)
    check_number(guidance, "guidance", 0, MAX_GUIDANCE)


def check_number(value: object, where: str, low: float, high: float) -> None:
    """Raises `UserError` unless `value` is a number from `low` to `high`."""
    number = math.nan if isinstance(value, bool) else value
    if not isinstance(number, int | float) or not low <= number <= high:
        raise UserError(
            f"{value!r} is out of range.", where=where, remedy=f"Use {low:g} to {high:g}."
        )


def check_whole(value: object, where: str, low: int, high: int, allowed: str = "") -> None:
    """Raises `UserError` unless `value` is a whole number from `low` to `high`."""
    remedy = f"Use {allowed or f'{low} to {high}'}."
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{value!r} is not a whole number.", where=where, remedy=remedy)
    if not low <= value <= high:
        raise UserError(f"{value} is out of range.", where=where, remedy=remedy)


def check_text(value: object, where: str) -> None:
    """Raises `UserError` unless `value` is a text that a file can hold."""
    if not isinstance(value, str):
        raise UserError(f"{str(value)[:80]} is not a text.", where=where, remedy="Use a text.")
    if "\0" in value or not is_text(value):
        raise UserError("holds characters that are no text.", where=where, remedy="Type it again.")


def check_json(value: object, where: str) -> None:
    """Raises `UserError` unless `value` can be written as JSON, and is read back as it is."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise UserError(f"{error}.", where=where, remedy="Leave it out.") from error


def check_model(model: object, where: str) -> None:
    """Raises `UserError` unless `model` can be a reference to a model."""
    if not isinstance(model, str) or not model.strip() or "\0" in model:
        raise UserError(
            "no model is chosen.", where=where, remedy='Use "demo", a folder or a hub id.'
        )


def check_models(models: object, where: str, *, least: int, most: int) -> None:
    """Raises `UserError` unless `models` are `least` to `most` different references."""
    listed = cast(tuple[object, ...], models if isinstance(models, tuple) else (models,))
    if not least <= len(listed) <= most:
        raise UserError(
            f"{len(listed)} models were chosen.", where=where, remedy=f"Choose {least} to {most}."
        )
    for model in listed:
        check_model(model, where)
    if len(set(listed)) < len(listed):
        raise UserError("a model is named twice.", where=where, remedy="Name each model once.")


def check_device(device: object) -> None:
    """Raises `UserError` unless `device` is one of `DEVICES`; whether it is here is not asked."""
    if device not in DEVICES:
        remedy = f"Use {' or '.join(DEVICES)}."
        raise UserError(f'no device "{device}".', where="device", remedy=remedy)


def sampling(request: object) -> dict[str, Any]:
    """Returns prompt, seed, steps and guidance of a request that has them, as JSON values."""
    return {name: getattr(request, name) for name in SAMPLING}


def recipe_in(fields: dict[str, Any]) -> Recipe:
    """Returns the recipe in `fields`, taken out of them."""
    recipe = fields.pop("recipe", None)
    if not isinstance(recipe, dict):
        raise UserError("there is no recipe.", where="request")
    return Recipe.from_json(cast(dict[str, Any], recipe))


def names_in(fields: dict[str, Any], name: str) -> tuple[Any, ...]:
    """Returns the list called `name` in `fields`, taken out of them; () when there is none."""
    found = fields.pop(name, ())
    if not isinstance(found, list | tuple):
        raise UserError(f"{found!r} is not a list.", where=name)
    return tuple(cast(list[Any], found))


def fields_of(values: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Returns the values of `known` fields that are there.

    Raises:
        UserError: an unknown key; the nearest is named.
    """
    for key in values:
        if key != "kind" and key not in known:
            raise UserError(
                f'unknown key "{key}".', where="request", remedy=nearest(key, known, "key")
            )
    return {key: values[key] for key in known if key in values}


def build(kind: type[R], **fields: Any) -> R:
    """Returns `kind(**fields)`.

    Raises:
        UserError: a field is missing or has a bad value.
    """
    for each in dataclasses.fields(cast(Any, kind)):  # `check_sampling` looks at the prompt
        if each.type == "str" and each.name in fields and each.name != "prompt":
            check_text(fields[each.name], each.name)
    try:
        return kind(**fields)
    except TypeError as error:  # a required field is missing
        raise UserError(f"{error}.", where="request", remedy="Name every field.") from error
