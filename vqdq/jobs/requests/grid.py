"""Request for a grid of pictures: what changes along columns, rows and pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias, cast

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
    SAMPLING,
    build,
    check_model,
    check_sampling,
    fields_of,
    names_in,
    sampling,
)
from vqdq.params import nearest

Value: TypeAlias = str | int | float
AXES = ("model", "recipe", "method", "bits", "prompt", "seed", "steps", "guidance")
MAX_CELLS = 400


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

    def to_json(self) -> dict[str, Any]:
        """Returns the axis as JSON values."""
        return {"name": self.name, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRequest:
    """Draw one picture for each cell; what no axis changes is as the request says.

    Attributes:
        model: the reference; it draws where no axis names another.
        axes: columns, rows, pages, in this order; one to three, each of another setting.
    """

    kind: ClassVar[str] = "grid"
    model: str
    axes: tuple[Axis, ...]
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)
        names = [axis.name for axis in self.axes]
        if not 1 <= len(names) <= 3 or len(set(names)) < len(names):
            raise UserError(
                f"the axes are {', '.join(names) or 'none'}.",
                where="axes",
                remedy="Choose one to three different ones.",
            )
        if self.cells > MAX_CELLS:
            raise UserError(
                f"the grid has {self.cells} cells.",
                where="axes",
                remedy=f"Use at most {MAX_CELLS}.",
            )

    @property
    def cells(self) -> int:
        """How many pictures the grid has."""
        count = 1
        for axis in self.axes:
            count *= len(axis.values)
        return count

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return " × ".join(f"{len(axis.values)} {axis.name}" for axis in self.axes)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "axes": [axis.to_json() for axis in self.axes],
            **sampling(self),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = fields_of(values, ("model", "axes", *SAMPLING))
        axes: list[Axis] = []
        for entry in names_in(fields, "axes"):
            if not isinstance(entry, dict):
                raise UserError(f"{entry!r} is no axis.", where="axes")
            axis = fields_of(cast(dict[str, Any], entry), ("name", "values"))
            axes.append(build(Axis, values=names_in(axis, "values"), **axis))
        return build(cls, axes=tuple(axes), **fields)
