"""Request for a grid of pictures: what changes along columns, rows and pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeAlias, cast

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_STEPS,
    SAMPLING,
    build,
    check_model,
    check_number,
    check_sampling,
    check_whole,
    fields_of,
    names_in,
    sampling,
)
from vqdq.params import nearest

Value: TypeAlias = str | int | float
AXES = ("model", "recipe", "method", "bits", "prompt", "seed", "steps", "guidance")
MODEL_AXES = ("model", "recipe", "method", "bits")
MAX_CELLS = 400
FULL_BITS = 16
"""On the axis of bits: the reference itself."""
ENGINES = ("local", "ray")
ORIGINAL = "original"
"""On the axis of recipes: the reference itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One direction of a grid: the setting that changes, and its values in order."""

    name: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.name not in AXES:
            raise UserError(
                f'"{self.name}" is no axis.', where="axis", remedy=nearest(self.name, AXES, "axis")
            )
        if not self.values:
            raise UserError("has no values.", where=self.name, remedy="Name at least one.")
        for value in self.values:
            self._check(value)
        if len(set(self.values)) < len(self.values):
            again = next(v for v in self.values if self.values.count(v) > 1)
            raise UserError(
                f"{str(again)[:60]!r} is named twice.", where=self.name, remedy="Name it once."
            )

    def _check(self, value: object) -> None:
        match self.name:
            case "bits":
                check_whole(value, "bits", 1, FULL_BITS)
            case "seed":
                check_whole(value, "seed", 0, MAX_SEED, "0 to 2^63 - 1")
            case "steps":
                check_whole(value, "steps", 1, MAX_STEPS)
            case "guidance":
                check_number(value, "guidance", 0, MAX_GUIDANCE)
            case "prompt":
                check_sampling(value, 0, 1, 0)
            case _:
                check_model(value, self.name)

    def to_json(self) -> dict[str, Any]:
        """Returns the axis as JSON values."""
        return {"name": self.name, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRequest:
    """Draw one picture for each cell; what no axis changes is as the request says.

    Attributes:
        model: the reference.
        axes: columns, rows, pages, in this order; one to three, each of another setting. An axis of
            models excludes the other three that make one; so does one of recipes for method and
            bits.
        variant: what draws where no axis names a model; "" is the reference.
        method, bits: of the recipe, where the other one of the two is an axis.
        made: digest of a recipe -> the model in the workspace that was made with it; what is not
            here is compressed into the run's folder.
        engine: of `ENGINES`: this computer, or the computers of a Ray cluster.
    """

    kind: ClassVar[str] = "grid"
    model: str
    axes: tuple[Axis, ...]
    prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    variant: str = ""
    method: str = "trellis"
    bits: int = 3
    made: tuple[tuple[str, str], ...] = ()
    engine: str = "local"

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        names = [axis.name for axis in self.axes]
        if not 1 <= len(names) <= 3 or len(set(names)) < len(names):
            raise UserError(
                f"the axes are {', '.join(names) or 'none'}.",
                where="axes",
                remedy="Choose one to three different ones.",
            )
        prompt = self.prompt or ("-" if "prompt" in names else "")
        check_sampling(prompt, self.seed, self.steps, self.guidance)
        check_whole(self.bits, "bits", 1, FULL_BITS)
        if self.engine not in ENGINES:
            remedy = nearest(str(self.engine), ENGINES, "engine")
            raise UserError(f"no engine {self.engine!r}.", where="engine", remedy=remedy)
        self._check_models(names)
        if self.cells > MAX_CELLS:
            sides = " × ".join(f"{len(axis.values)} {plural(axis.name)}" for axis in self.axes)
            raise UserError(
                f"the grid has {self.cells:,} cells: {sides}.",
                where="axes",
                remedy=f"Use at most {MAX_CELLS}.",
            )

    def _check_models(self, names: list[str]) -> None:
        """A cell has one model: it is chosen, or made by a recipe, or by method and bits."""
        chosen = [name for name in MODEL_AXES if name in names]
        if len(chosen) > 1 and chosen != ["method", "bits"]:
            raise UserError(
                f"{' and '.join(plural(name) for name in chosen)} each decide the model.",
                where="axes",
                remedy="Keep one of them; only methods and bits go together.",
            )

    @property
    def cells(self) -> int:
        """How many cells the grid has."""
        count = 1
        for axis in self.axes:
            count *= len(axis.values)
        return count

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        names = " × ".join(axis.name for axis in self.axes)
        return f"{names} · {self.cells} cell{'' if self.cells == 1 else 's'}"

    def with_made(self, made: Mapping[str, str]) -> Self:
        """Returns the request that uses these models where their recipes are asked for."""
        return replace(self, made=tuple(sorted(made.items())))

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "axes": [axis.to_json() for axis in self.axes],
            **sampling(self),
            "variant": self.variant,
            "method": self.method,
            "bits": self.bits,
            "made": dict(self.made),
            # left out where it says nothing: folders of earlier versions stay the same grid
            **({} if self.engine == "local" else {"engine": self.engine}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = fields_of(
            values, ("model", "axes", *SAMPLING, "variant", "method", "bits", "made", "engine")
        )
        axes: list[Axis] = []
        for entry in names_in(fields, "axes"):
            if not isinstance(entry, dict):
                raise UserError(f"{entry!r} is no axis.", where="axes")
            axis = fields_of(cast(dict[str, Any], entry), ("name", "values"))
            axes.append(build(Axis, values=names_in(axis, "values"), **axis))
        made = fields.pop("made", {})
        if not isinstance(made, dict):
            raise UserError(f"{made!r} names no models.", where="made")
        pairs = tuple(sorted((str(k), str(v)) for k, v in cast(dict[Any, Any], made).items()))
        return build(cls, axes=tuple(axes), made=pairs, **fields)


def plural(axis: str) -> str:
    """Returns the name of an axis for several values: "models", "bits"."""
    return axis if axis in ("bits", "steps", "guidance") else f"{axis}s"
