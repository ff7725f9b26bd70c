"""Which activation quantizers the evidence compares, on which weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vqdq.models.sources import presets_folder
from vqdq.recipe import Recipe

_WEIGHTS: dict[str, tuple[str, dict[str, Any]]] = {
    "W16": ("half", {}),
    "W8": ("int8", {}),
    "W4": ("trellis", {"bits": 4}),
    "W4 round-to-nearest": ("uniform", {"bits": 4}),
    "W3": ("trellis", {"bits": 3}),
}
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "per tensor": ("minmax", {}),
    "per channel": ("minmax", {"granularity": "channel"}),
    "DGQ, 1 group": ("dgq", {"groups": 1}),
    "DGQ, 8 groups": ("dgq", {"groups": 8}),
    "DGQ, 16 groups": ("dgq", {"groups": 16}),
    "DGQ, 16, as published": ("dgq", {"groups": 16, "paper_exact": True, "levels": 20}),
    "sorted blocks of 32": ("sorted", {"block": 32}),
    "per token, per picture": ("dynamic", {}),
    "per token, per pixel": ("dynamic", {"pixels": True}),
    "rotated": ("rotated", {}),
    "smoothed and rotated": ("smooth", {"rotation": 128}),
    "8-bit floats": ("fp8", {}),
}
_ASKED = (
    "per tensor",
    "per channel",
    "DGQ, 1 group",
    "DGQ, 8 groups",
    "DGQ, 16 groups",
    "per token, per picture",
    "per token, per pixel",
    "rotated",
    "smoothed and rotated",
    "8-bit floats",
)
_DRAWN_SCORES = (("linear", 6), ("linear", 4))
_PLAIN = {"keep_sums": False}
_SCORES: dict[str, dict[str, Any]] = {
    "linear": {"scores": "linear", "start_apart": False, **_PLAIN},
    "linear, start apart": {"scores": "linear", **_PLAIN},
    "log 2": {"scores": "log2", "start_apart": False, **_PLAIN},
    "log 2, start apart, as published": {"scores": "log2", "paper_exact": True},
    "log, base fitted, sums kept, start apart": {"scores": "log"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationVariant:
    """One row of the evidence.

    Attributes:
        name: unique; what the row is kept under.
        weights: a key of the weights above.
        activation: method and settings of the layers' inputs, or None.
        attention: settings of the attention quantizer, or None.
        pictures: also drawn; False compares predictions only.
    """

    name: str
    weights: str
    activation: tuple[str, dict[str, Any]] | None = None
    attention: dict[str, Any] | None = None
    pictures: bool = False
    aid: str = "none"
    average_bits: float | None = field(default=None, init=False)

    @property
    def method(self) -> str:
        """The weight codec."""
        return _WEIGHTS[self.weights][0]

    def recipe(self) -> Recipe:
        """Returns the recipe; the layers that stay in 16 bits are those of the presets."""
        text = (presets_folder() / "trellis-3bit.json").read_text(encoding="utf-8")
        method, params = _WEIGHTS[self.weights]
        rule: dict[str, Any] = {"pattern": "*", "method": method, "params": params}
        if self.activation is not None:
            name, settings = self.activation
            rule["activation"] = {"method": name, "params": settings}
        values: dict[str, Any] = {
            "name": self.name,
            "rules": [*json.loads(text)["rules"][:-1], rule],
        }
        if self.attention is not None:
            values["attention"] = self.attention
        return Recipe.from_json(values)


def _rows(weights: str, bits: int, *methods: str, drawn: tuple[str, ...] = ()) -> list[Any]:
    return [
        ActivationVariant(
            name=f"{weights} A{bits}, {name}",
            weights=weights,
            activation=(_METHODS[name][0], {**_METHODS[name][1], "bits": bits}),
            pictures=name in drawn,
        )
        for name in methods or [name for name in _METHODS if bits == 8 or "floats" not in name]
    ]


def _scores(bits: int) -> list[ActivationVariant]:
    return [
        ActivationVariant(
            name=f"scores {bits} bits, {name}",
            weights="W16",
            attention={**settings, "bits": bits, "qkv_bits": 16},
            pictures=(name, bits) in _DRAWN_SCORES,
        )
        for name, settings in _SCORES.items()
    ]


def _alone(weights: str) -> ActivationVariant:
    return ActivationVariant(name=f"{weights} A16", weights=weights)


VARIANTS: tuple[ActivationVariant, ...] = (
    *(_alone(weights) for weights in _WEIGHTS),
    *_rows("W8", 8, *_ASKED, drawn=("DGQ, 8 groups", "per token, per picture", "8-bit floats")),
    *_rows("W4", 6, drawn=("per tensor", "DGQ, 8 groups")),
    *_rows("W3", 8, *_ASKED, drawn=("per token, per picture", "8-bit floats")),
    *_rows("W4 round-to-nearest", 8, "per tensor", "per token, per picture", drawn=("per tensor",)),
    *_rows("W4", 8, *_ASKED),
    *_scores(8),
    *_scores(6),
    *_scores(4),
    *_rows("W16", 4, "per tensor", "DGQ, 8 groups", "DGQ, 16 groups", "per token, per pixel"),
)
