"""Request to find the layers that cost a compressed model most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
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

Box: TypeAlias = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class BlameRequest:
    """Rank the layers of `variant` by what each costs the picture of this prompt and seed.

    Attributes:
        model: the reference; variant: a compressed model made of it.
        region: left, top, right, bottom as shares of the picture, or () for all of it.
        calls: steps of the sampler, spread over all of them, on which layers are measured.
        worst: how many layers are measured after an estimate of all; 0 measures every one.
    """

    kind: ClassVar[str] = "blame"
    model: str
    variant: str
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    region: Box | tuple[()] = ()
    calls: int = 6
    worst: int = 0

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        check_model(self.variant, "variant")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)
        check_whole(self.calls, "calls", 1, self.steps)
        check_whole(self.worst, "worst", 0, 2**31)
        for value in self.region:
            check_number(value, "region", 0, 1)
        if self.region:
            left, top, right, bottom = self.region
            if not (left < right and top < bottom):
                raise UserError(
                    "the region is empty.", where="region", remedy="Mark a part of the picture."
                )

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return f"{self.variant} · {self.prompt} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "variant": self.variant,
            **sampling(self),
            "region": list(self.region),
            "calls": self.calls,
            "worst": self.worst,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = fields_of(values, ("model", "variant", *SAMPLING, "region", "calls", "worst"))
        region = names_in(fields, "region")
        if len(region) not in (0, 4):
            raise UserError(
                "a region is four numbers.",
                where="region",
                remedy="Name left, top, right and bottom.",
            )
        return build(cls, region=region, **fields)
