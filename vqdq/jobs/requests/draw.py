"""Requests for pictures: one, or the same one from several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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

MAX_VARIANTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """Draw one picture. `prompt, seed, steps, guidance` decide it together with the model."""

    kind: ClassVar[str] = "generate"
    model: str
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return f"{self.prompt} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {"kind": self.kind, "model": self.model, **sampling(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        return build(cls, **fields_of(values, ("model", *SAMPLING)))


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareRequest:
    """Draw the same picture with a reference and its variants, from one initial latent.

    Attributes:
        model: the reference.
        variants: compressed models: a name in the workspace, a folder or a hub id; at least one.
    """

    kind: ClassVar[str] = "compare"
    model: str
    variants: tuple[str, ...]
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        if not 1 <= len(self.variants) <= MAX_VARIANTS:
            raise UserError(
                f"{len(self.variants)} models were chosen to compare with.",
                where="variants",
                remedy=f"Choose 1 to {MAX_VARIANTS}.",
            )
        for variant in self.variants:
            check_model(variant, "variants")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return f"{self.prompt} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "variants": list(self.variants),
            **sampling(self),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = fields_of(values, ("model", "variants", *SAMPLING))
        return build(cls, variants=names_in(fields, "variants"), **fields)
