"""What can be asked of the worker: frozen requests that validate themselves and travel as JSON.

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
        calibration: folder of `vqdq calibrate` to use instead of running the model, or "".
    """

    kind: ClassVar[str] = "compress"
    model: str
    recipe: Recipe
    name: str
    output: str = ""
    calibration: str = ""

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
            "calibration": self.calibration,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        fields = _fields(values, ("model", "recipe", "name", "output", "calibration"))
        return _build(cls, recipe=_recipe(fields), **fields)


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
        _check_model(self.model, "model")
        given = [value for value in (self.bits, self.bytes, self.card_bytes) if value is not None]
        if len(given) != 1:
            raise UserError(
                f"{len(given)} targets are named.",
                where="target",
                remedy="Name one: bits, bytes or a card.",
            )
        if self.bits is not None:
            _check_number(self.bits, "bits", 1, 16)
        for value, where in ((self.bytes, "bytes"), (self.card_bytes, "card")):
            if value is not None:
                _check_whole(value, where, 1, 2**53, "a size like 8 MB")
        _check_whole(self.resolution, "resolution", 0, 2**16)

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
        fields = _fields(values, ("model", "recipe", *_TARGET, "sensitivity"))
        return _build(cls, recipe=_recipe(fields), **fields)


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


Request: TypeAlias = (
    CompressRequest | PlanRequest | GenerateRequest | CompareRequest | InspectRequest
)
_KINDS: Mapping[str, type[Request]] = {
    kind.kind: kind
    for kind in (CompressRequest, PlanRequest, GenerateRequest, CompareRequest, InspectRequest)
}
KINDS: tuple[str, ...] = tuple(_KINDS)
_TARGET = ("bits", "bytes", "card_bytes", "resolution")
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
    _check_number(guidance, "guidance", 0, MAX_GUIDANCE)


def _check_number(value: object, where: str, low: float, high: float) -> None:
    number = math.nan if isinstance(value, bool) else value
    if not isinstance(number, int | float) or not low <= number <= high:
        raise UserError(
            f"{value!r} is out of range.", where=where, remedy=f"Use {low:g} to {high:g}."
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


def _recipe(fields: dict[str, Any]) -> Recipe:
    """The recipe in `fields`, taken out of them."""
    recipe = fields.pop("recipe", None)
    if not isinstance(recipe, dict):
        raise UserError("there is no recipe.", where="request")
    return Recipe.from_json(cast(dict[str, Any], recipe))


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
