"""Which compressed models the evidence compares: every method, at every size, with and without aid.

The layers that stay in 16 bits are the same for every variant: those of the presets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.models.sources import presets_folder
from vqdq.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row of the evidence.

    Attributes:
        name: unique; what the row is kept under.
        method: registered codec; `params`: its settings.
        aid: "none", "calibrated" or "fine-tuned" (calibrated first).
        average_bits: bits allocated by sensitivity to this average, or None for `params` alike.
        pictures: also drawn; False compares predictions only, which takes a tenth of the time.
    """

    name: str
    method: str
    params: dict[str, Any]
    aid: str = "none"
    average_bits: float | None = None
    pictures: bool = True

    def recipe(self) -> Recipe:
        """Returns the recipe, before any allocation."""
        text = (presets_folder() / "trellis-3bit.json").read_text(encoding="utf-8")
        rules = json.loads(text)["rules"][:-1]
        rules.append({"pattern": "*", "method": self.method, "params": self.params})
        plain = Recipe.from_json({"name": self.name, "rules": rules})
        if self.aid == "none":
            return plain
        tuned = FinetuneParams() if self.aid == "fine-tuned" else None
        return replace(plain, calibration=CalibrationParams(), finetune=tuned)


def _each(
    method: str, settings: dict[str, dict[str, Any]], aid: str = "none", *, pictures: bool = True
) -> tuple[Variant, ...]:
    return tuple(
        Variant(
            name=f"{method} {size}{_mark(aid)}",
            method=method,
            params=params,
            aid=aid,
            pictures=pictures,
        )
        for size, params in settings.items()
    )


def _allocated(method: str, aid: str = "none", *, pictures: bool = True) -> tuple[Variant, ...]:
    return tuple(
        Variant(
            name=f"{method} {bits} allocated{_mark(aid)}",
            method=method,
            params={},
            aid=aid,
            average_bits=bits,
            pictures=pictures,
        )
        for bits in (2.5, 3.0, 3.5)
    )


def _mark(aid: str) -> str:
    return "" if aid == "none" else f", {aid}"


_BOOKS: dict[str, dict[str, Any]] = {f"{count}": {"num_codebooks": count} for count in (2, 3, 4)}
_TWO: dict[str, dict[str, Any]] = {"2": {"bits": 2}}
_THREE: dict[str, dict[str, Any]] = {"3": {"bits": 3}}
_FOUR: dict[str, dict[str, Any]] = {"4": {"bits": 4}}

# Pictures take most of the time: they are drawn for what the claims are about.
VARIANTS: tuple[Variant, ...] = (
    *_each("trellis", _TWO | _THREE),
    *_each("trellis", _FOUR, pictures=False),
    *_each("trellis", _TWO | _THREE, "calibrated"),
    *_each("trellis", _FOUR, "calibrated", pictures=False),
    *_allocated("trellis", "calibrated"),
    *_each("trellis", _THREE, "fine-tuned"),
    *_each("additive", _BOOKS, pictures=False),
    *_each("additive", {"2": _BOOKS["2"], "3": _BOOKS["3"]}, "calibrated"),
    *_each("additive", {"4": _BOOKS["4"]}, "calibrated", pictures=False),
    *_allocated("additive", "calibrated", pictures=False),
    *_each("additive", {"3": _BOOKS["3"]}, "fine-tuned"),
    *_each("uniform", _TWO),
    *_each("uniform", _THREE, pictures=False),
    *_each("uniform", _FOUR),
    *_each("gptq", _TWO, "calibrated"),
    *_each("gptq", _THREE, "calibrated", pictures=False),
    *_each("gptq", _FOUR, "calibrated"),
    *_allocated("gptq", "calibrated", pictures=False),
    *_each("lloyd_max", _TWO),
    *_each("lloyd_max", _THREE | _FOUR, pictures=False),
    *_each("nf4", {"4": {}}),
    *_each("bnb", {"nf4": {}}),
    *_each("gguf", {"Q4_0": {"kind": "Q4_0"}}),
    *_each("hqq", _TWO | _FOUR),
    *_each("hqq", _THREE, pictures=False),
    *_each("quanto", _TWO | _FOUR),
    *_each("sdnq", _TWO | _FOUR),
    *_each("sdnq", _THREE, pictures=False),
)
