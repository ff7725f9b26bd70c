"""What can be asked of the worker: four frozen requests that validate themselves and travel as
JSON.

A request holds everything that decides its result, so that a run can be rebuilt from its
folder. The page, the command line and Python callers build the same objects; a bad value is
refused here, before any work starts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias, cast

from vqdq.errors import UserError
from vqdq.params import nearest
from vqdq.recipe import Recipe

MAX_PROMPT_CHARACTERS = 2000  # CLIP reads 77 tokens; a text beyond this is a mistake, not a prompt
MAX_SEED = 2**63 - 1  # what SQLite and torch both hold
MAX_STEPS = 1000  # the training steps of every scheduler in diffusers
MAX_GUIDANCE = 100.0
MAX_VARIANTS = 8
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """Compress the denoiser of `model` with `recipe`.

    Attributes:
        model: "demo", a folder or a hub id.
        recipe: rules and seed; decides the bytes.
        name: name of the new model; its folder inside the workspace.
        output: folder to write; "" lets the workspace choose `models/<name>`.
    """

    kind: ClassVar[str] = "compress"
    model: str
    recipe: Recipe
    name: str
    output: str = ""

    def __post_init__(self) -> None:
        _check_model(self.model, "model")
        if not _NAME.fullmatch(self.name) or self.name.endswith(".partial"):
            raise UserError(
                f"{self.name[:80]!r} cannot be the name of a model.",
                where="name",
                remedy="Use 1 to 64 letters, digits, points, dashes or underscores.",
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "recipe": self.recipe.to_json(),
            "name": self.name,
            "output": self.output,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = _fields(values, ("model", "recipe", "name", "output"))
        recipe = fields.pop("recipe", None)
        if not isinstance(recipe, dict):
            raise UserError("there is no recipe.", where="request")
        return _build(cls, recipe=Recipe.from_json(cast(dict[str, Any], recipe)), **fields)


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
        _check_model(self.model, "model")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {"kind": self.kind, "model": self.model, **_sampling(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        return _build(cls, **_fields(values, ("model", *_SAMPLING)))


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
        _check_model(self.model, "model")
        if not 1 <= len(self.variants) <= MAX_VARIANTS:
            raise UserError(
                f"{len(self.variants)} models were chosen to compare with.",
                where="variants",
                remedy=f"Choose 1 to {MAX_VARIANTS}.",
            )
        for variant in self.variants:
            _check_model(variant, "variants")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "variants": list(self.variants),
            **_sampling(self),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = _fields(values, ("model", "variants", *_SAMPLING))
        variants = fields.pop("variants", ())
        if not isinstance(variants, list | tuple):
            raise UserError(f"{variants!r} is not a list of models.", where="variants")
        return _build(cls, variants=tuple(cast(list[Any], variants)), **fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectRequest:
    """Record activations of one layer and the cross-attention of one step.

    Attributes:
        model: the reference.
        variant: a compressed model to record beside it, or None.
        layer: full name of a linear or convolution layer of the denoiser.
        step: the step whose activations are kept, from 0.
    """

    kind: ClassVar[str] = "inspect"
    model: str
    variant: str | None = None
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    layer: str
    step: int = 0

    def __post_init__(self) -> None:
        _check_model(self.model, "model")
        if self.variant is not None:
            _check_model(self.variant, "variant")
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)
        if not isinstance(cast(object, self.layer), str) or not self.layer:
            raise UserError("no layer is chosen.", where="layer", remedy="Choose one of the list.")
        _check_whole(self.step, "step", 0, self.steps - 1)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {
            "kind": self.kind,
            "model": self.model,
            "variant": self.variant,
            **_sampling(self),
            "layer": self.layer,
            "step": self.step,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        return _build(cls, **_fields(values, ("model", "variant", *_SAMPLING, "layer", "step")))


Request: TypeAlias = CompressRequest | GenerateRequest | CompareRequest | InspectRequest
_KINDS: Mapping[str, type[Request]] = {
    kind.kind: kind for kind in (CompressRequest, GenerateRequest, CompareRequest, InspectRequest)
}
KINDS: tuple[str, ...] = tuple(_KINDS)
_SAMPLING = ("prompt", "seed", "steps", "guidance")


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Returns the request that `values` describes.

    Raises:
        UserError: an unknown kind or key (the nearest is named), a missing or a bad value.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"unknown kind of job {kind!r}.",
            where="request",
            remedy=nearest(str(kind), KINDS, "kind"),
        )
    return _KINDS[kind].from_json(values)


def check_sampling(prompt: object, seed: object, steps: object, guidance: object) -> None:
    """Raises `UserError` for a prompt, seed, number of steps or guidance that cannot be drawn."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(
            "the prompt is empty.", where="prompt", remedy="Say what the picture should show."
        )
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"the prompt has {len(prompt):,} characters.",
            where="prompt",
            remedy=f"Use at most {MAX_PROMPT_CHARACTERS:,}; text encoders read about 77 tokens.",
        )
    if any(
        (ord(mark) < 32 and mark not in "\t\n\r") or 0xD800 <= ord(mark) <= 0xDFFF
        for mark in prompt
    ):
        raise UserError(
            "the prompt holds characters that are no text.", where="prompt", remedy="Type it again."
        )
    _check_whole(seed, "seed", 0, MAX_SEED, "0 to 2^63 - 1")
    _check_whole(steps, "steps", 1, MAX_STEPS)
    number = math.nan if isinstance(guidance, bool) else guidance
    if not isinstance(number, int | float) or not 0 <= number <= MAX_GUIDANCE:
        raise UserError(
            f"{guidance!r} is out of range.", where="guidance", remedy=f"Use 0 to {MAX_GUIDANCE:g}."
        )


def _check_whole(value: object, where: str, low: int, high: int, allowed: str = "") -> None:
    remedy = f"Use {allowed or f'{low} to {high}'}."
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{value!r} is not a whole number.", where=where, remedy=remedy)
    if not low <= value <= high:
        raise UserError(f"{value} is out of range.", where=where, remedy=remedy)


def _check_model(model: object, where: str) -> None:
    if not isinstance(model, str) or not model.strip() or "\0" in model:
        raise UserError(
            "no model is chosen.", where=where, remedy='Use "demo", a folder or a hub id.'
        )


def _sampling(request: GenerateRequest | CompareRequest | InspectRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in _SAMPLING}


def _fields(values: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    for key in values:
        if key != "kind" and key not in known:
            raise UserError(
                f'unknown key "{key}".', where="request", remedy=nearest(key, known, "key")
            )
    return {key: values[key] for key in known if key in values}


R = Any


def _build(kind: Any, **fields: Any) -> R:
    try:
        return kind(**fields)
    except TypeError as error:  # a required field is missing
        raise UserError(f"{error}.", where="request", remedy="Name every field.") from error
