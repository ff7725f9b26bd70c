"""Request to draw and seal the pictures of a blind test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vqdq.jobs.requests.checks import build, fields_of


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindRequest:
    """Draw the pictures that the protocol of a blind test needs, under names that say nothing.

    Attributes:
        test: digest of the frozen protocol, which names models, prompts, seeds and questions.
        name: what the person who made the test calls it.
    """

    kind: ClassVar[str] = "blind"
    test: str
    name: str = ""

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return self.name or f"test {self.test[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {"kind": self.kind, "test": self.test, "name": self.name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        return build(cls, **fields_of(values, ("test", "name")))
