"""One way to draw with a model on a card: what it takes in each phase of a picture, and its words.

A picture goes through three phases: the text encoders read the prompt, the denoiser draws, the
autoencoder decodes; the one that takes most must fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqdq.models.inventory import Part
from vqdq.models.modes import ModeEstimate, mode_estimates
from vqdq.recipe import Plan

VAE = "vae"
STEPS = 30  # of a picture, for what a mode costs
_READS = 2  # of the prompt: what shall be in the picture, and what shall not
_SMALL = 1e9  # bytes in all, below which amounts are told in MB
_HOW = {"resident": "kept decoded", "hybrid": "partly kept decoded", "": ""}
_TRANSFER = 10e9  # bytes a second from main memory to a card; assumed, not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Something that takes memory."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOption:
    """A way to draw with a model on a card; its memory is ESTIMATED.

    Attributes:
        recipe: a preset, or "" for the model as it is; `quality`: what to expect, in words.
        also: wishes for other components, as `vqdq.also` takes them.
        mode: how packed weights are kept; "" without any. `cache_bytes`: of "hybrid", else None.
        how: the same in words.
        one_at_a_time: each component is on the card only while it works
            (`enable_model_cpu_offload`).
        bits: true bits per weight of each component.
        file_bytes: of the weight files that the recipe writes, by component; exact.
        amounts: what takes the memory where it is at its highest; `phase`: "drawing", "decoding" or
            "reading the prompt".
        card_bytes, resolution: what was asked.
        seconds: ESTIMATED, what the mode and moving components add to a picture.
        reasons: why it is this way, in sentences.
    """

    recipe: str
    quality: str
    also: tuple[str, ...]
    mode: str
    cache_bytes: int | None
    how: str
    one_at_a_time: bool
    bits: dict[str, float]
    file_bytes: dict[str, int]
    amounts: tuple[Amount, ...]
    phase: str
    card_bytes: int
    resolution: int
    seconds: float
    reasons: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """All amounts together."""
        return sum(amount.bytes for amount in self.amounts)

    @property
    def fits(self) -> bool:
        """True when the card holds it."""
        return self.total_bytes <= self.card_bytes

    @property
    def others(self) -> str:
        """What is compressed beside the denoiser, in words: "text encoders", "" for nothing."""
        words = ["decoder" if wish.startswith(VAE) else "text encoders" for wish in self.also]
        return " and ".join(words)

    @property
    def title(self) -> str:
        """What it is, in a few words: "trellis-3bit, decoded as it runs"."""
        words = [self.recipe or "16 bits", self.others and f"{self.others} too", self.how]
        if self.one_at_a_time:
            words.append("one component at a time")
        return ", ".join(filter(None, words))

    @property
    def sum(self) -> str:
        """The amounts as a sum: "1.0 GB weights + … = 4.7 of 8 GB, estimated"."""
        unit, name = (1e9, "GB") if self.total_bytes >= _SMALL else (1e6, "MB")
        parts = " + ".join(f"{item.bytes / unit:.1f} {name} {item.name}" for item in self.amounts)
        whole = f"{self.total_bytes / unit:.1f}"
        if self.card_bytes >= _SMALL > self.total_bytes:
            return f"{parts} = {whole} MB of {self.card_bytes / 1e9:g} GB, estimated"
        return f"{parts} = {whole} of {self.card_bytes / unit:g} {name}, estimated"

    def to_json(self) -> dict[str, Any]:
        """Returns the option as JSON values."""
        return {
            "recipe": self.recipe,
            "also": list(self.also),
            "quality": self.quality,
            "mode": self.mode,
            "cache_bytes": self.cache_bytes,
            "one_at_a_time": self.one_at_a_time,
            "bits_per_weight": dict(self.bits),
            "file_bytes": dict(self.file_bytes),
            "phase": self.phase,
            "amounts": {item.name: item.bytes for item in self.amounts},
            "estimated_bytes": self.total_bytes,
            "card_bytes": self.card_bytes,
            "resolution": self.resolution,
            "estimated_seconds": self.seconds,
            "fits": self.fits,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the denoiser's weights are kept: what they take while it draws, and afterwards."""

    mode: str
    cache_bytes: int | None
    how: str
    drawing: int
    resting: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What the components beside the denoiser take.

    Attributes:
        also: the wishes after which some of them are packed.
        encoders: weights of all text encoders; `reading`: the most that exists beside them while a
            layer of one decodes; `largest`: of one text encoder alone, that included.
        vae: weights of the autoencoder; `decoding`: as `reading`.
        seconds: ESTIMATED, what decoding their weights adds to a picture.
        plans: of those that are packed, by component.
    """

    also: tuple[str, ...]
    encoders: int
    reading: int
    largest: int
    vae: int
    decoding: int
    seconds: float
    plans: Mapping[str, Plan]

    @property
    def resting(self) -> int:
        """All their weights, while none of them works."""
        return self.encoders + self.vae


def as_it_is(part: Part) -> Way:
    """Returns the way of a denoiser that is not compressed."""
    whole = part.half_bytes
    return Way(mode="", cache_bytes=None, how="", drawing=whole, resting=whole, seconds=0.0)


def kept_way(estimate: ModeEstimate, *, streamed_others: bool = False) -> Way:
    """Returns the way of a mode.

    Args:
        streamed_others: other components are packed, and stay so only in "hybrid" and "streaming":
            "resident" becomes a cache for everything.
    """
    whole = streamed_others and estimate.mode == "resident"
    return Way(
        mode="hybrid" if whole else estimate.mode,
        cache_bytes=estimate.held_bytes if whole else estimate.cache_bytes,
        how=_HOW.get(estimate.mode, "decoded as it runs"),
        drawing=estimate.weight_bytes,
        resting=estimate.stored_bytes + estimate.held_bytes,
        seconds=STEPS * estimate.decode_seconds,
    )


def beside(parts: Sequence[Part], also: tuple[str, ...], plans: Mapping[str, Plan]) -> Beside:
    """Returns what components take: packed and decoded at each use where they have a plan, else in
    16 bits.
    """
    weights = {part.name: part.half_bytes for part in parts}
    transient = dict.fromkeys(weights, 0)
    seconds = 0.0
    for name, plan in plans.items():
        modes = mode_estimates(plan, dtype=torch.float16, device="cuda")
        streamed = next(each for each in modes if each.mode == "streaming")
        weights[name], transient[name] = streamed.stored_bytes, streamed.transient_bytes
        seconds += streamed.decode_seconds * (1 if name == VAE else _READS)
    encoders = [name for name in weights if name != VAE]
    return Beside(
        also=also,
        encoders=sum(weights[name] for name in encoders),
        reading=max((transient[name] for name in encoders), default=0),
        largest=max((weights[name] + transient[name] for name in encoders), default=0),
        vae=weights.get(VAE, 0),
        decoding=transient.get(VAE, 0),
        seconds=seconds,
        plans=plans,
    )


def option(
    recipe: str,
    plans: Mapping[str, Plan],
    quality: str,
    way: Way,
    rest: Beside,
    working: tuple[int, int],
    card: int,
    resolution: int,
    bits: dict[str, float],
    *,
    alone: bool,
) -> FitOption:
    """Returns a way as an option, without its reasons.

    Args:
        plans: of every component that is packed; working: memory of drawing and of decoding;
            bits: of the components that are not packed.
        alone: each component is on the card only while it works.
    """
    if alone:
        phases = {
            "drawing": [("weights", way.drawing), ("working memory", working[0])],
            "decoding": [("autoencoder", rest.vae + rest.decoding), ("working memory", working[1])],
            "reading the prompt": [("text encoder", rest.largest)],
        }
    else:
        encoders, vae = ("text encoders", rest.encoders), ("autoencoder", rest.vae)
        phases = {
            "drawing": [("weights", way.drawing), encoders, vae, ("working memory", working[0])],
            "decoding": [
                ("weights", way.resting), encoders, vae,
                ("working memory", working[1] + rest.decoding),
            ],
            "reading the prompt": [
                ("weights", way.resting), encoders, vae, ("working memory", rest.reading),
            ],
        }  # fmt: skip
    phase, amounts = max(phases.items(), key=lambda item: sum(size for _, size in item[1]))
    moved = rest.resting + way.resting if alone else 0
    packed = {name: plan.model_bits_per_weight for name, plan in plans.items()}
    return FitOption(
        recipe=recipe,
        quality=quality,
        also=rest.also,
        mode=way.mode,
        cache_bytes=way.cache_bytes,
        how=way.how,
        one_at_a_time=alone,
        bits=bits | packed,
        file_bytes={name: plan.predicted_bytes for name, plan in plans.items()},
        amounts=tuple(Amount(name=name, bytes=size) for name, size in amounts if size),
        phase=phase,
        card_bytes=card,
        resolution=resolution,
        seconds=way.seconds + rest.seconds + moved / _TRANSFER,
        reasons=(),
    )


def with_reasons(
    chosen: FitOption, considered: Sequence[FitOption], saved: tuple[int, int], plain: str
) -> FitOption:
    """The option with why nothing faster was taken, and what its way costs.

    Args:
        considered: the options of the same recipe and the same wishes, the fastest first.
        saved: bytes of what the wishes are about, in 16 bits and packed.
        plain: what would be without them, a sentence.
    """
    reasons = [f"{chosen.quality}."]
    if chosen.also:
        before, after = saved
        noun = "Text encoders" if len(chosen.also) == 1 else "Text encoders and decoder"
        noun = "The decoder" if chosen.others == "decoder" else noun
        verb = "takes" if chosen.others == "decoder" else "take"
        unit, name = (1e9, "GB") if before >= _SMALL else (1e6, "MB")
        amount = f"{after / unit:.1f} {name} instead of {before / unit:.1f} {name}"
        reasons.append(f"{noun} {verb} {amount}. {plain}")
    faster = considered[: considered.index(chosen)]
    kept = next((each for each in faster if each.one_at_a_time == chosen.one_at_a_time), None)
    decoded = chosen.how not in ("", _HOW["resident"])
    if decoded:
        held = "Each layer"
        if chosen.cache_bytes is not None:
            reasons.append(f"{size(chosen.cache_bytes)} of its weights stay decoded.")
            held = "The rest"
        why = "" if kept is None else f": all kept decoded, it would take {size(kept.total_bytes)}"
        reasons.append(f"{held} is decoded each time it is used{why}.")
    if chosen.one_at_a_time:
        together = min(each.total_bytes for each in considered if not each.one_at_a_time)
        reasons.append(
            f"With all components on the card it would take {size(together)}, so each one"
            " waits in main memory until it works."
        )
    if chosen.seconds >= 1:
        reasons.append(
            f"That adds about {chosen.seconds:.0f} s to a picture of {STEPS} steps, estimated."
        )
    return replace(chosen, reasons=tuple(reasons))


def size(count: float) -> str:
    """Returns bytes for people, in GB or MB of powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= _SMALL else f"{count / 1e6:.1f} MB"
