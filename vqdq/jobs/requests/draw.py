"""Requests for pictures: one, or the same one from several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vqdq.errors import UserError
from vqdq.jobs.requests.checks import (
    SAMPLING,
    build,
    check_device,
    check_model,
    check_sampling,
    fields_of,
    names_in,
    sampling,
)
from vqdq.layers.residency import ModeSetting, checked

_MODE = ("mode", "cache_bytes", "offload", "device")
MAX_VARIANTS = 8
MAX_PROMPTS = 50
MAX_SEEDS = 8
MAX_SETS = 100  # a set: one prompt and seed, drawn by every model


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """Draw one picture. `prompt, seed, steps, guidance` decide it together with the model.

    `mode`, `cache_bytes` and `offload` (see `vqdq.layers.residency.set_mode_`) decide memory and
    speed alone; `device` is where it is drawn, "cpu" or "cuda".
    """

    kind: ClassVar[str] = "generate"
    model: str
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    mode: str = "resident"
    cache_bytes: int | None = None
    offload: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        _check_running(self)
        check_sampling(self.prompt, self.seed, self.steps, self.guidance)

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        return f"{self.prompt} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values."""
        return {"kind": self.kind, "model": self.model, **sampling(self), **_mode(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        return build(cls, **fields_of(values, ("model", *SAMPLING, *_MODE)))

    @property
    def setting(self) -> ModeSetting:
        """How the model keeps its decoded weights."""
        return checked(self.mode, self.cache_bytes, self.offload)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareRequest:
    """Draw the same picture with a reference and its variants, from one initial latent.

    Attributes:
        model: the reference.
        variants: compressed models: a name in the workspace, a folder or a hub id; at least one.
        prompts, seeds: of a batch: every prompt with every seed; `prompt` and `seed` are their
            first. Empty for one set of pictures.
        floor: measure the reference against itself, too: drawn again, and with 16-bit rounding.
        clip: a folder with a CLIP model of transformers that rates pictures by their prompt, or "".
        lpips: measure LPIPS, with the package of that name.
        mode, cache_bytes, offload: how the variants keep their weights; pictures do not depend on
            it.
        device: "cpu" or "cuda", where all of them are drawn.
    """

    kind: ClassVar[str] = "compare"
    model: str
    variants: tuple[str, ...]
    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    floor: bool = False
    clip: str = ""
    lpips: bool = False
    mode: str = "resident"
    cache_bytes: int | None = None
    offload: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_model(self.model, "model")
        _check_running(self)
        models = "models were chosen to compare with"
        _check_count(len(self.variants), models, "variants", MAX_VARIANTS, 1)
        for variant in self.variants:
            check_model(variant, "variants")
        for prompt in self.prompts or (self.prompt,):
            for seed in self.seeds or (self.seed,):
                check_sampling(prompt, seed, self.steps, self.guidance)
        _check_count(len(self.prompts), "prompts", "prompts", MAX_PROMPTS)
        _check_count(len(self.seeds), "seeds", "seeds", MAX_SEEDS)
        _check_count(len(self.sets), "pairs of a prompt and a seed", "prompts", MAX_SETS)
        if self.sets[0] != (self.prompt, self.seed):
            raise UserError("prompt and seed are not the first of the batch.", where="prompts")

    @classmethod
    def batch(cls, *, prompts: tuple[str, ...], seeds: tuple[int, ...], **fields: Any) -> Self:
        """Returns the request for every prompt with every seed; one of each is no batch.

        Raises:
            UserError: no prompt, no seed, or a bad value.
        """
        for name, values in (("prompts", prompts), ("seeds", seeds)):
            if not values:
                raise UserError(f"there are no {name}.", where=name, remedy="Name at least one.")
        alone = len(prompts) == len(seeds) == 1
        more = {} if alone else {"prompts": prompts, "seeds": seeds}
        return cls(prompt=prompts[0], seed=seeds[0], **more, **fields)

    @property
    def sets(self) -> tuple[tuple[str, int], ...]:
        """Prompt and seed of each set of pictures, in the order they are drawn."""
        return tuple(
            (prompt, seed)
            for prompt in self.prompts or (self.prompt,)
            for seed in self.seeds or (self.seed,)
        )

    @property
    def setting(self) -> ModeSetting:
        """How the variants keep their decoded weights."""
        return checked(self.mode, self.cache_bytes, self.offload)

    @property
    def is_batch(self) -> bool:
        """True for more than one set."""
        return len(self.sets) > 1

    @property
    def title(self) -> str:
        """What is asked, in a few words."""
        if self.is_batch:
            return f"{len(self.sets)} sets · {self.prompt}"
        return f"{self.prompt} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the request as JSON values; what is as usual is left out."""
        more = {
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "floor": self.floor,
            "clip": self.clip,
            "lpips": self.lpips,
        }
        return {
            "kind": self.kind,
            "model": self.model,
            "variants": list(self.variants),
            **sampling(self),
            **{name: value for name, value in more.items() if value},
            **_mode(self),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the request in `values`."""
        more = ("prompts", "seeds", "floor", "clip", "lpips", *_MODE)
        fields = fields_of(values, ("model", "variants", *SAMPLING, *more))
        lists = {name: names_in(fields, name) for name in ("variants", "prompts", "seeds")}
        return build(cls, **lists, **fields)


def _mode(request: GenerateRequest | CompareRequest) -> dict[str, Any]:
    """Returns how it is run as JSON values; what is as usual is left out."""
    usual = {"mode": "resident", "cache_bytes": None, "offload": False, "device": "cpu"}
    return {name: value for name in _MODE if (value := getattr(request, name)) != usual[name]}


def _check_running(request: GenerateRequest | CompareRequest) -> None:
    """Raises `UserError` for a mode or a device that cannot be."""
    if type(request.offload) is not bool:
        raise UserError(
            f"{request.offload!r} is neither true nor false.", where="offload", remedy="Use true."
        )
    checked(request.mode, request.cache_bytes, request.offload)
    check_device(request.device)


def _check_count(count: int, noun: str, where: str, most: int, least: int = 0) -> None:
    """Raises `UserError` unless `least` <= `count` <= `most`."""
    if not least <= count <= most:
        remedy = f"Choose {least} to {most}." if least else f"Use at most {most}."
        raise UserError(f"{count} {noun}.", where=where, remedy=remedy)
