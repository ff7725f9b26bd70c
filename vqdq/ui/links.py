"""The settings of the Compress tab in the page's address: a link that works tomorrow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast
from urllib.parse import urlencode

from vqdq.activations.attention import AttentionParams
from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.errors import UserError
from vqdq.jobs.inputs import prompt_files, with_ranges
from vqdq.jobs.variants import variant
from vqdq.params import Params
from vqdq.recipe import Recipe
from vqdq.ui import rules
from vqdq.ui.desk import DEFAULT_GOAL, Desk
from vqdq.ui.settings import Aim, Wish, others_in, whole, with_others

P = TypeVar("P", bound=Params)
_AIM = re.compile(r"(\d+(?:\.\d+)?)(bits|MB)")


def link_of(desk: Desk, wish: Wish) -> str:
    """Returns the part of the page's address that brings `wish` back; "" for the default."""
    recipe = wish.recipe
    words: dict[str, str | int] = {}
    if recipe.name in desk.presets:
        words = {} if recipe.name == DEFAULT_GOAL and wish.aim is None else {"recipe": recipe.name}
    else:
        words = {"rules": rules.render(recipe.rules), "seed": recipe.seed}
        for key, params in (
            ("calibrate", recipe.calibration),
            ("finetune", recipe.finetune),
            ("attention", recipe.attention),
            ("ranges", recipe.ranges),
        ):
            if params is not None:
                defaults = type(params)().to_json()
                changed = {k: v for k, v in params.to_json().items() if v != defaults[k]}
                words[key] = json.dumps(changed, separators=(",", ":"))
        if recipe.components:
            words["also"] = ",".join(others_in(recipe))
    if desk.model != desk.first:
        words["model"] = desk.model
    if wish.aim is not None:
        words["target"] = wish.aim.words
    return urlencode(words)


def wish_in(desk: Desk, query: Mapping[str, str]) -> Wish | None:
    """Returns what an address names, or None when it names nothing.

    Raises:
        UserError: it names something that does not exist or has a fault.
    """
    recipe = _recipe(desk, query)
    aim = _aim(query["target"]) if query.get("target") else None
    if recipe is None:
        return None if aim is None else Wish(recipe=desk.preset(DEFAULT_GOAL), aim=aim)
    return Wish(recipe=recipe, aim=aim)


def _recipe(desk: Desk, query: Mapping[str, str]) -> Recipe | None:
    if query.get("recipe"):
        return desk.preset(query["recipe"])
    if not query.get("rules"):
        return None
    seed = whole(query.get("seed") or 0, "seed")
    recipe = Recipe(name="linked", rules=rules.parse(query["rules"]), seed=seed)
    rules.split(recipe)
    calibration = _params(CalibrationParams, query.get("calibrate"), "calibrate")
    finetune = _params(FinetuneParams, query.get("finetune"), "finetune")
    attention = _params(AttentionParams, query.get("attention"), "attention")
    ranges = _params(RangeParams, query.get("ranges"), "ranges")
    recipe = with_ranges(replace(recipe, attention=attention), ranges)
    ready = replace(variant(recipe, calibration, finetune), name="linked")
    if prompt_files(ready):
        raise UserError(
            "an address cannot name a file.", where="calibrate", remedy="Choose it on the page."
        )
    return with_others(ready, [part for part in query.get("also", "").split(",") if part])


def _params(kind: type[P], text: str | None, where: str) -> P | None:
    if not text:
        return None
    try:
        values: object = json.loads(text)
    except RecursionError as error:
        raise UserError("is nested too deeply.", where=where) from error
    except ValueError as error:  # also a number too long
        raise UserError("is not JSON.", where=where, remedy=f"{error}.") from error
    if not isinstance(values, dict):
        raise UserError("is not a JSON object.", where=where, remedy='Write {"prompts":64}.')
    return kind.from_json(cast(dict[str, Any], values), where=where)


def _aim(text: str) -> Aim:
    found = _AIM.fullmatch(text)
    if found is None:
        raise UserError(
            f"{text[:40]!r} is no target.", where="target", remedy="Write 2.7bits or 8.5MB."
        )
    value = float(found[1])
    return Aim(bits=value) if found[2] == "bits" else Aim(bytes=round(1e6 * value))
