"""What a sweep is asked for: a JSON file of models, recipes, prompts, seeds and settings.

    {"name": "which recipe", "models": ["demo"],
     "recipes": ["trellis-3bit", "mine.json", {"name": "…", "rules": […]}],
     "prompts": ["a red circle"] or {"set": "demo examples", "sample": 8, "seed": 0},
     "seeds": "1-4", "steps": 20, "guidance": 3.0, "metrics": ["psnr", "ssim", "flip"]}

Every recipe is drawn beside the original, which need not be named. Files that it names lie beside
it: links and ".." do not lead elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.jobs.grid_axes import parse_values
from vqdq.jobs.grid_cells import Drawer, Picture
from vqdq.jobs.requests.checks import (
    MAX_SEED,
    check_device,
    check_models,
    check_number,
    check_sampling,
    check_whole,
    fields_of,
)
from vqdq.jobs.requests.grid import ORIGINAL
from vqdq.params import is_text, nearest
from vqdq.places import expanded, inside
from vqdq.recipe import Recipe, load_recipe

METRICS = ("psnr", "ssim", "flip")
MAX_PICTURES = 1_000_000
_KEYS = (
    "version", "name", "models", "recipes", "prompts", "seeds", "steps", "guidance", "metrics",
    "threads", "device", "card_gb",
)  # fmt: skip
_LABELS = ("category", "challenge")
_SET_KEYS = ("set", "sample", "seed", "by")
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Every recipe of every model draws every prompt with every seed, the original as well.

    Attributes:
        name: for people.
        models: "demo", folders or hub ids, found under the same name by every worker.
        metrics: distances from the original's picture, of `METRICS`.
        threads: of one piece of work. Sums are added up in another order by another number, so it
            is a part of what decides a result; more pieces at a time make better use of cores.
        device: "cpu" or "cuda", where pictures are drawn and calls are made; layers are encoded on
            the CPU.
        card_gb: memory of the smallest graphics card among the workers, for "cuda".
    """

    name: str
    models: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int = 20
    guidance: float = 3.0
    metrics: tuple[str, ...] = METRICS
    threads: int = 1
    device: str = "cpu"
    card_gb: float = 24.0

    def __post_init__(self) -> None:
        check_models(self.models, "models", least=1, most=1000)
        for prompt in self.prompts or ("-",):
            check_sampling(prompt, 0, self.steps, self.guidance)
        for seed in self.seeds:
            check_whole(seed, "seeds", 0, MAX_SEED, "0 to 2^63 - 1")
        check_whole(self.threads, "threads", 1, 1024)
        check_number(self.card_gb, "card_gb", 0.1, 10_000)
        for values, where in ((self.seeds, "seeds"), (self.prompts, "prompts")):
            if not values or len(set(values)) < len(values):
                what = "is named twice." if values else "there is none."
                raise UserError(what, where=where, remedy="Name each once.")
        for names in ([r.name for r in self.recipes], [r.digest for r in self.recipes]):
            twice = next((n for at, n in enumerate(names) if n in names[:at]), None)
            if twice is not None:
                name = self.recipes[len(names) - 1 - names[::-1].index(twice)].name
                raise UserError(
                    f'"{name}" is there twice.', where="recipes", remedy="Once will do."
                )
        for value in self.metrics:
            if value not in METRICS:
                remedy = nearest(value, METRICS, "metric")
                raise UserError(f'no metric "{value}".', where="metrics", remedy=remedy)
        check_device(self.device)
        if self.count > MAX_PICTURES:
            raise UserError(
                f"asks for {self.count:,} pictures.", remedy=f"Use at most {MAX_PICTURES:,}."
            )

    @property
    def count(self) -> int:
        """How many pictures there are, the originals' too."""
        each = len(self.prompts) * len(self.seeds)
        return len(self.models) * (1 + len(self.recipes)) * each

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture: models outermost, the original first, then prompts and seeds."""
        found: list[Picture] = []
        for model in self.models:
            original = Drawer(key=model, model=model)
            made = [
                Drawer(key=f"{model} {recipe.digest}", model=model, recipe=recipe)
                for recipe in self.recipes
            ]
            for drawer in (original, *made):
                for prompt, seed in product(self.prompts, self.seeds):
                    found.append(self._picture(drawer, original, prompt, seed))
        return tuple(found)

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked, the name apart."""
        content = {key: value for key, value in self.to_json().items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Returns the sweep as JSON values, every prompt and recipe written out."""
        return {
            "version": _FORMAT_VERSION,
            "name": self.name,
            "models": list(self.models),
            "recipes": [recipe.to_json() for recipe in self.recipes],
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "guidance": self.guidance,
            "metrics": list(self.metrics),
            "threads": self.threads,
            "device": self.device,
            "card_gb": self.card_gb,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, folder: Path, presets: Path) -> Sweep:
        """Returns the sweep in `values`.

        Args:
            folder: where files that it names are looked for.

        Raises:
            UserError: an unknown key or name (the nearest is named), or a bad value.
        """
        fields = fields_of(values, _KEYS)
        version = fields.pop("version", _FORMAT_VERSION)
        if version != _FORMAT_VERSION:
            raise UserError(
                f"version {version!r} is not supported.",
                where="version",
                remedy=f"This program reads version {_FORMAT_VERSION}.",
            )
        prompts = _prompts(fields.pop("prompts", None), folder)
        recipes = _recipes(fields.pop("recipes", None), folder, presets)
        seeds = _seeds(fields.pop("seeds", [0]))
        for key in ("models", "metrics"):
            if key in fields:
                fields[key] = _names(fields[key], key)
        if type(guidance := fields.get("guidance")) is int and abs(guidance) < 1000:
            fields["guidance"] = float(guidance)  # 3 and 3.0 are the same sweep
        models = tuple(_absolute(name) for name in fields.pop("models", ("demo",)))
        name = _text(fields.pop("name", ""), "name")
        return cls(
            name=name, models=models, recipes=recipes, prompts=prompts, seeds=seeds, **fields
        )

    def _picture(self, drawer: Drawer, original: Drawer, prompt: str, seed: int) -> Picture:
        def key(drawn_by: str) -> str:
            content = json.dumps([drawn_by, prompt, seed, self.steps, self.guidance])
            return hashlib.sha256(content.encode()).hexdigest()[:16]

        return Picture(
            key=key(drawer.key),
            reference=key(original.key),
            drawer=drawer,
            prompt=prompt,
            seed=seed,
            steps=self.steps,
            guidance=self.guidance,
        )


def read_sweep(path: Path, presets: Path) -> Sweep:
    """Returns the sweep in a JSON file.

    Raises:
        UserError: no such file, no JSON, or a fault inside it; the place is named.
    """
    try:
        values: object = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UserError("is not JSON.", where=place, remedy=f"{error.msg}.") from error
    except (OSError, ValueError, RecursionError) as error:  # no text, a number too long, too deep
        raise UserError("cannot be read.", where=str(path), remedy=f"{error}.") from error
    if not isinstance(values, dict):
        raise UserError("is not a JSON object.", where=str(path), remedy='Start with {"models": …}')
    try:
        return Sweep.from_json(cast(dict[str, Any], values), folder=path.parent, presets=presets)
    except UserError as error:
        where = f"{path.name}: {error.where}" if error.where else path.name
        raise UserError(error.what, where=where, remedy=error.remedy) from error


def _absolute(model: str) -> str:
    """A folder as every worker can name it; anything else as it is."""
    path = expanded(_text(model, "models"))
    return str(path.absolute()) if os.path.isdir(path) else model


def _text(given: object, where: str) -> str:
    if not is_text(given):
        raise UserError(f"{given!r} is not a text.", where=where)
    return given


def _names(given: object, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(i, str) for i in cast(list[Any], given)):
        raise UserError(f"{given!r} is not a list of names.", where=where)
    return tuple(cast(list[str], given))


def _seeds(given: object) -> tuple[int, ...]:
    if isinstance(given, str):
        return tuple(int(value) for value in parse_values("seed", given))
    if not isinstance(given, list):
        raise UserError(f"{given!r} is not a list.", where="seeds", remedy='Write [1, 2] or "1-4".')
    return tuple(cast(list[int], given))


def _recipes(given: object, folder: Path, presets: Path) -> tuple[Recipe, ...]:
    if not isinstance(given, list):
        raise UserError("is not a list.", where="recipes", remedy='Write ["trellis-3bit", …].')
    found: list[Recipe] = []
    for number, entry in enumerate(cast(list[Any], given)):
        if isinstance(entry, dict):
            values = cast(dict[str, Any], entry)
            found.append(Recipe.from_json(values, where=f"recipes[{number}]"))
        elif not isinstance(entry, str):
            raise UserError(f"{entry!r} is no recipe.", where=f"recipes[{number}]")
        elif entry != ORIGINAL:
            found.append(_named(entry, folder, presets, f"recipes[{number}]"))
    return tuple(found)


def _named(name: str, folder: Path, presets: Path, where: str) -> Recipe:
    """A preset, or the recipe in a file beside the sweep's."""
    known = [path.stem for path in presets.glob("*.json")]
    if name in known:
        return load_recipe(name, presets)
    path = _beside(folder, name, where)
    if not os.path.isfile(path):
        raise UserError(
            f'no recipe "{name[:80]}".', where=where, remedy=nearest(name, known, "preset")
        )
    return load_recipe(path, presets)


def _beside(folder: Path, name: str, where: str) -> Path:
    """Where a file of that name is in the folder of the sweep's file.

    Whoever wrote that file must not make this program read others: prompts end up in tables that
    are shown.
    """
    try:
        return inside(folder, name)
    except UserError as error:
        raise UserError(
            f"{name[:80]!r} does not lie beside the sweep's file.",
            where=where,
            remedy="Copy it there, or write its content into the file.",
        ) from error


def _prompts(given: object, folder: Path) -> tuple[str, ...]:
    """The prompts of a list, or of a set: a built-in one or a file, or a sample of either."""
    if isinstance(given, list):
        return _names(cast(list[Any], given), "prompts")
    if not isinstance(given, dict):
        raise UserError(
            "there are none.", where="prompts", remedy='Write ["…"] or {"set": "demo examples"}.'
        )
    from vqdq.models import prompt_sets  # heavy: diffusers

    values = fields_of(cast(dict[str, Any], given), _SET_KEYS)
    name = str(values.get("set", ""))
    if name in prompt_sets.built_in_names():
        found = prompt_sets.built_in_set(name)
    else:
        found = prompt_sets.read_prompt_set(_beside(folder, name, "prompts"))
    if values.get("sample") is None:
        return tuple(prompt.text for prompt in found.prompts)
    count, seed, by = values["sample"], values.get("seed", 0), values.get("by")
    check_whole(count, "prompts: sample", 1, MAX_PICTURES)
    check_whole(seed, "prompts: seed", 0, MAX_SEED, "0 to 2^63 - 1")
    if by not in (None, *_LABELS):
        remedy = f"Use {' or '.join(_LABELS)}."
        raise UserError(f"no label {by!r}.", where="prompts: by", remedy=remedy)
    chosen = prompt_sets.sample(found, count, seed=seed, by=by)
    return tuple(prompt.text for prompt in chosen)
