"""Requests about a recipe: compress with it, or find the bits of each layer for a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
    NAME,
    build,
    check_json,
    check_model,
    check_number,
    check_whole,
    fields_of,
    recipe_in,
)
from vqdq.recipe import Recipe

_TARGET = ("bits", "bytes", "card_bytes", "resolution")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """Compress the denoiser of `model` with `recipe`.

    Attributes:
        model: "demo", a folder or a hub id.
        recipe: rules and seed; decides the bytes.
        name: name of the new model; its folder inside the workspace.
        output: folder to write; "" lets the workspace choose `models/<name>`.
        calibration: folder of `vqdq calibrate` to use instead of running the model, or "".
        forecast: what was expected of it (`vqdq.jobs.forecast.Forecast`), or None; decides nothing.
    """

    kind: ClassVar[str] = "compress"
    model: str
    recipe: Recipe
    name: str
    output: str = ""
    calibration: str = ""
    forecast: Mapping[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        if not NAME.fullmatch(self.name) or self.name.endswith(".partial"):
            raise UserError(
                f"{self.name[:80]!r} cannot be the name of a model.",
                where="name",
                remedy="Use 1 to 64 letters, digits, points, dashes or underscores.",
            )

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return f"{self.model} with {self.recipe.name}, saved as {self.name}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "recipe": self.recipe.to_json(),
            "name": self.name,
            "output": self.output,
            "calibration": self.calibration,
            **({} if self.forecast is None else {"forecast": dict(self.forecast)}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        known = ("model", "recipe", "name", "output", "calibration", "forecast")
        fields = fields_of(values, known)
        if not isinstance(fields.get("forecast", {}), dict | None):
            raise UserError("the forecast is not a JSON object.", where="forecast")
        check_json(fields.get("forecast"), "forecast")
        return build(cls, recipe=recipe_in(fields), **fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """Measure how sensitive the layers of `model` are, and give each the bits that it earns.

    Exactly one of the three targets is set.

    Attributes:
        recipe: its last method is offered at every size; what it keeps in 16 bits stays so.
        bits: true average over the compressed layers.
        bytes: of the denoiser's weight file.
        card_bytes: memory of a graphics card that must hold the model while it draws pictures of
            `resolution` pixels; a resolution of 0 is the model's own.
        sensitivity: file that keeps the measurement for the next plan; "" measures anew.
    """

    kind: ClassVar[str] = "plan"
    model: str
    recipe: Recipe
    bits: float | None = None
    bytes: int | None = None
    card_bytes: int | None = None
    resolution: int = 0
    sensitivity: str = ""

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        given = [value for value in (self.bits, self.bytes, self.card_bytes) if value is not None]
        if len(given) != 1:
            raise UserError(
                f"{len(given)} targets are named.",
                where="target",
                remedy="Name one: bits, bytes or a card.",
            )
        if self.bits is not None:
            check_number(self.bits, "bits", 1, 16)
        for value, where in ((self.bytes, "bytes"), (self.card_bytes, "card")):
            if value is not None:
                check_whole(value, where, 1, 2**53, "a size like 8 MB")
        check_whole(self.resolution, "resolution", 0, 2**16)

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        if self.bits is not None:
            aim = f"{self.bits:g} bits"
        else:
            aim = f"{(self.bytes or self.card_bytes or 0) / 1e6:.3g} MB"
        return f"{self.model} with {self.recipe.name}, {aim}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "recipe": self.recipe.to_json(),
            **{name: getattr(self, name) for name in _TARGET},
            "sensitivity": self.sensitivity,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = fields_of(values, ("model", "recipe", *_TARGET, "sensitivity"))
        return build(cls, recipe=recipe_in(fields), **fields)
