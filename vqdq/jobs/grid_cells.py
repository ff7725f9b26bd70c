"""From a request to its cells: which model draws what, in which order, and what has to be made.

Pure: recipes come from the caller. Models are outermost, so that each is opened or made once, and
the reference is first, so that every other picture can be measured against it as it comes. Cells
that ask for the same picture share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.jobs.requests.grid import FULL_BITS, ORIGINAL, Axis, GridRequest, Value
from vqdq.params import describe
from vqdq.recipe import Recipe
from vqdq.rules import Rule

SKELETON = "trellis-3bit"
"""The preset whose kept layers (first, last, time) are kept by method and bits too."""
_BITS = ("bits", "num_codebooks")
"""The settings that mean bits; a codebook of 256 vectors of 8 weights is one bit a weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawer:
    """What draws a picture: a model, or one to be made of the reference with `recipe`.

    Attributes:
        key: unique; decides the pictures' file names.
        model: reference of the model that draws or, with a recipe, of the one to compress.
        made: model in the workspace that was made with the recipe, or "".
    """

    key: str
    model: str
    recipe: Recipe | None = None
    made: str = ""

    @property
    def compresses(self) -> bool:
        """True when the model has to be made first."""
        return self.recipe is not None and not self.made


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One picture to draw; `reference`: key of the same one by the reference model."""

    key: str
    reference: str
    drawer: Drawer
    prompt: str
    seed: int
    steps: int
    guidance: float

    @property
    def image(self) -> str:
        """File name of its PNG."""
        return f"{self.key}.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One place of the grid.

    Attributes:
        place: column, row, page, from 0.
        picture: what belongs there, or None, and `why` says why there can be none.
    """

    place: tuple[int, int, int]
    picture: Picture | None
    why: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A request expanded.

    Attributes:
        sides: columns, rows and pages, each an axis or None.
        cells: page by page, row by row.
        pictures: different ones in the order of drawing.
    """

    sides: tuple[Axis | None, Axis | None, Axis | None]
    cells: tuple[Cell, ...]
    pictures: tuple[Picture, ...]

    @property
    def drawers(self) -> tuple[Drawer, ...]:
        """The models in the order of drawing."""
        return tuple({picture.drawer.key: picture.drawer for picture in self.pictures}.values())

    @property
    def empty(self) -> tuple[Cell, ...]:
        """The cells that cannot have a picture."""
        return tuple(cell for cell in self.cells if cell.picture is None)

    def at(self, column: int, row: int, page: int) -> Cell:
        """Returns the cell of a place."""
        columns, rows, _ = self.shape
        return self.cells[(page * rows + row) * columns + column]

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many columns, rows and pages."""
        columns, rows, pages = (1 if side is None else len(side.values) for side in self.sides)
        return columns, rows, pages


def expand(request: GridRequest, recipe: Callable[[str], Recipe]) -> Grid:
    """Returns the cells of a request.

    Args:
        recipe: from the name of a preset to its recipe.

    Raises:
        UserError: an unknown method or preset, or no cell that can have a picture.
    """
    sides = (*request.axes, None, None)[:3]
    cells: list[Cell] = []
    first: dict[str, Picture] = {}
    for page, row, column in product(*(range(_count(side)) for side in reversed(sides))):
        place = (column, row, page)
        chosen = {
            side.name: side.values[at]
            for side, at in zip(sides, place, strict=True)
            if side is not None
        }
        found = _drawer(request, chosen, recipe)
        if isinstance(found, str):
            cells.append(Cell(place=place, picture=None, why=found))
            continue
        picture = _picture(request, chosen, found)
        picture = first.setdefault(picture.key, picture)
        cells.append(Cell(place=place, picture=picture))
    if not first:
        raise UserError(
            f"no cell can have a picture: {cells[0].why}",
            where="axes",
            remedy="Choose other values.",
        )
    return Grid(
        sides=(sides[0], sides[1], sides[2]),
        cells=tuple(cells),
        pictures=tuple(_ordered(request, tuple(first.values()))),
    )


def recipe_of(method: str, bits: int | None, skeleton: Recipe) -> Recipe | str:
    """Returns the recipe of a method at these bits, or the reason why there is none.

    It is the preset of that method and these bits wherever there is one: the same rules keep the
    same layers in 16 bits, so it has the same digest.

    Args:
        bits: None for the method's own choice.
        skeleton: recipe whose rules but the last are taken over.

    Raises:
        UserError: no such method.
    """
    kind = codecs.get(method)
    if kind.missing():
        return f"{kind.title} is not installed here: {kind.missing()}."
    if kind.needs_hessian:
        return f"{kind.title} needs calibration: compress it on its own first."
    infos = {info.name: info for info in describe(kind.settings)}
    info = next((infos[name] for name in _BITS if name in infos), None)
    given: dict[str, int] = {}
    if bits is not None:
        if info is None:
            return f"{kind.title} has no choice of bits."
        offered = info.choices or range(int(info.low or 1), int(info.high or FULL_BITS) + 1)
        if bits not in offered:
            known = [str(each) for each in offered]
            span = f"{known[0]} to {known[-1]}" if not info.choices else ", ".join(known)
            return f"{kind.title} offers {span} bits."
        given = {info.name: bits}
    params = kind.settings.from_json(given, where=method)
    rule = Rule(pattern="*", method=method, params=params)
    name = f"{method}-{bits}bit" if given else method
    title = f"{kind.title}, {bits} bits" if given else kind.title
    return Recipe(name=name, title=title, rules=(*skeleton.rules[:-1], rule), seed=skeleton.seed)


def label(axis: Axis, value: Value) -> str:
    """Returns a value as the header of its column, row or page says it."""
    match axis.name:
        case "bits":
            return "original" if value == FULL_BITS else f"{value} bits"
        case "seed":
            return f"seed {value}"
        case "steps":
            return f"{value} step{'' if value == 1 else 's'}"
        case "guidance":
            return f"guidance {value:g}" if isinstance(value, int | float) else str(value)
        case "method":
            return codecs.get(str(value)).title if value in codecs.names() else str(value)
        case _:
            return str(value)


def _count(side: Axis | None) -> int:
    return 1 if side is None else len(side.values)


def _drawer(
    request: GridRequest, chosen: dict[str, Value], recipe: Callable[[str], Recipe]
) -> Drawer | str:
    """What draws the cell, or why nothing can."""
    if "model" in chosen:
        model = str(chosen["model"])
        return Drawer(key=model, model=model)
    names = [axis.name for axis in request.axes]
    if not {"recipe", "method", "bits"} & set(names):
        model = request.variant or request.model
        return Drawer(key=model, model=model)
    if chosen.get("bits") == FULL_BITS or chosen.get("recipe") == ORIGINAL:
        return Drawer(key=request.model, model=request.model)
    if "recipe" in chosen:
        asked: Recipe | str = recipe(str(chosen["recipe"]))
    else:
        method = str(chosen.get("method", request.method))
        bits = int(chosen["bits"]) if "bits" in chosen else request.bits
        fixed = "bits" not in chosen and not _has_bits(method)
        asked = recipe_of(method, None if fixed else bits, recipe(SKELETON))
    if isinstance(asked, str):
        return asked
    made = dict(request.made).get(asked.digest, "")
    if not made and not data_free(asked):
        return f"{asked.title or asked.name} needs prompts: compress it on its own first."
    return Drawer(
        key=f"{request.model} {asked.digest}", model=request.model, recipe=asked, made=made
    )


def data_free(recipe: Recipe) -> bool:
    """Returns whether a recipe works from the weights alone."""
    return recipe.calibration is None and recipe.finetune is None and recipe.ranges is None


def _has_bits(method: str) -> bool:
    return any(info.name in _BITS for info in describe(codecs.get(method).settings))


def _picture(request: GridRequest, chosen: dict[str, Value], drawer: Drawer) -> Picture:
    prompt = str(chosen.get("prompt", request.prompt))
    seed = int(chosen.get("seed", request.seed))
    steps = int(chosen.get("steps", request.steps))
    guidance = float(chosen.get("guidance", request.guidance))

    def key(drawn_by: str) -> str:
        content = json.dumps([drawn_by, prompt, seed, steps, guidance])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    return Picture(
        key=key(drawer.key),
        reference=key(request.model),
        drawer=drawer,
        prompt=prompt,
        seed=seed,
        steps=steps,
        guidance=guidance,
    )


def _ordered(request: GridRequest, pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Models outermost, the reference first, else in the order of the cells."""
    keys = dict.fromkeys(each.drawer.key for each in pictures)
    for key in sorted(keys, key=lambda each: each != request.model):
        yield from (each for each in pictures if each.drawer.key == key)
