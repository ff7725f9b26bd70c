"""Request for a look inside while a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
    SAMPLING,
    build,
    check_model,
    check_models,
    check_sampling,
    check_whole,
    fields_of,
    names_in,
    sampling,
)

MAX_INSPECTED = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectRequest:
    """Record what goes into every layer, and where the words are looked at, in one picture.

    Attributes:
        model: the reference.
        variants: compressed models recorded beside it, at most `MAX_INSPECTED`.
        layer: full name of a linear or convolution layer of the denoiser, or a pattern
            ("down*attn2.to_q"): recorded in detail at every step; "" chooses one afterwards.
        step: the step whose activations are kept, from 0.
        keep_bytes: what the whole input of the first such layer at `step` may take; 0 does not
            keep it.
    """

    kind: ClassVar[str] = "inspect"
    model: str
    variants: tuple[str, ...] = ()
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    layer: str = ""
    step: int = 0
    keep_bytes: int = 1 << 24

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        check_models(self.variants, "variants", least=0, most=MAX_INSPECTED)
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)
        if not isinstance(cast(object, self.layer), str):
            raise UserError(
                "is no name of a layer.", where="layer", remedy="Choose one of the list."
            )
        check_whole(self.step, "step", 0, self.steps - 1)
        check_whole(self.keep_bytes, "keep_bytes", 0, 1 << 40)

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
            "layer": self.layer,
            "step": self.step,
            "keep_bytes": self.keep_bytes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`; "variant" is what one variant was called earlier."""
        known = ("model", "variants", "variant", *SAMPLING, "layer", "step", "keep_bytes")
        fields = fields_of(values, known)
        single = fields.pop("variant", None)
        variants = names_in(fields, "variants") or (() if single is None else (single,))
        return build(cls, variants=variants, **fields)
