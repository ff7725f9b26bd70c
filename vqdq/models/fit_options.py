"""One way to draw with a model on a card: what it takes in each phase of a picture, and its words.

A picture goes through three phases: the text encoders read the prompt, the denoiser draws, the
autoencoder decodes; the one that takes most must fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vqdq.models.inventory import Part
from vqdq.models.modes import ModeEstimate, mode_estimates
from vqdq.recipe import Plan

VAE = "vae"
STEPS = 30  # of a picture, for what a mode costs
_READS = 2  # of the prompt: what shall be in the picture, and what shall not
SMALL = 1e9  # bytes in all, below which amounts are told in MB
HOW = {"resident": "kept decoded", "hybrid": "partly kept decoded", "": ""}
_WAITING = "packed weights in main memory"
_TRANSFER = 10e9  # bytes a second from main memory to a card; assumed, not measured
BUS = 25e9  # the same from pinned memory: PCIe 4.0 x16 in practice; assumed, not measured


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
        offload: packed weights stay in main memory, each layer comes over one ahead.
        how: the same in words.
        one_at_a_time: each component is on the card only while it works
            (`enable_model_cpu_offload`).
        bits: true bits per weight of each component.
        file_bytes: of the weight files that the recipe writes, by component; exact.
        amounts: what takes the memory where it is at its highest; `phase`: "drawing", "decoding" or
            "reading the prompt".
        card_bytes, resolution: what was asked.
        seconds: ESTIMATED, what the mode and moving components add to a picture, those of
            `transfer_seconds` included.
        reasons: why it is this way, in sentences.
        waiting_bytes: packed weights that stay in main memory; exact.
        transfer_seconds: ESTIMATED, how long they are on their way for one picture, at `BUS` bytes
            a second: packed bytes x calls / that. It is hidden where computing takes longer.
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
    offload: bool = False
    waiting_bytes: int = 0
    transfer_seconds: float = 0.0

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
        unit, name = (1e9, "GB") if self.total_bytes >= SMALL else (1e6, "MB")
        parts = " + ".join(f"{item.bytes / unit:.1f} {name} {item.name}" for item in self.amounts)
        return f"{parts} = {self.total}"

    @property
    def total(self) -> str:
        """All amounts beside the card: "4.7 of 8 GB, estimated"."""
        unit, name = (1e9, "GB") if self.total_bytes >= SMALL else (1e6, "MB")
        whole = f"{self.total_bytes / unit:.1f}"
        if self.card_bytes >= SMALL > self.total_bytes:
            return f"{whole} MB of {self.card_bytes / 1e9:g} GB, estimated"
        return f"{whole} of {self.card_bytes / unit:g} {name}, estimated"

    @property
    def opening(self) -> str:
        """The line of Python that opens the compressed folder this way; "" for 16 bits."""
        if not self.recipe:
            return ""
        cache = "" if self.cache_bytes is None else f", cache_bytes={self.cache_bytes}"
        words = f', mode="{self.mode}"{cache}{", offload=True" if self.offload else ""}'
        words = "" if self.mode == "resident" else words
        place = "torch.float16" if self.one_at_a_time else '"cuda", torch.float16'
        then = "; pipe.enable_model_cpu_offload()" if self.one_at_a_time else ""
        return f'pipe = vqdq.load("DIR"{words}).to({place}){then}'

    def to_json(self) -> dict[str, Any]:
        """Returns the option as JSON values."""
        return {
            "recipe": self.recipe,
            "also": list(self.also),
            "quality": self.quality,
            "mode": self.mode,
            "cache_bytes": self.cache_bytes,
            "offload": self.offload,
            "waiting_bytes": self.waiting_bytes,
            "one_at_a_time": self.one_at_a_time,
            "bits_per_weight": dict(self.bits),
            "file_bytes": dict(self.file_bytes),
            "phase": self.phase,
            "amounts": {item.name: item.bytes for item in self.amounts},
            "estimated_bytes": self.total_bytes,
            "card_bytes": self.card_bytes,
            "resolution": self.resolution,
            "estimated_seconds": self.seconds,
            "estimated_transfer_seconds": self.transfer_seconds,
            "assumed_bus_bytes_per_second": BUS,
            "opening": self.opening,
            "fits": self.fits,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the denoiser's weights are kept: what they take while it draws, and afterwards.

    Attributes:
        waiting: packed bytes that stay in main memory; moved: of them, what comes over the bus for
            one picture.
    """

    mode: str
    cache_bytes: int | None
    how: str
    drawing: int
    resting: int
    seconds: float
    waiting: int = 0
    moved: int = 0


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
        waiting, moved: as of `Way`.
    """

    also: tuple[str, ...]
    encoders: int
    reading: int
    largest: int
    vae: int
    decoding: int
    seconds: float
    plans: Mapping[str, Plan]
    waiting: int = 0
    moved: int = 0

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
        how=_WAITING if estimate.waiting_bytes else HOW.get(estimate.mode, "decoded as it runs"),
        drawing=estimate.weight_bytes,
        resting=estimate.stored_bytes + estimate.held_bytes + estimate.buffer_bytes,
        seconds=STEPS * estimate.decode_seconds,
        waiting=estimate.waiting_bytes,
        # what does not come at each call comes once
        moved=estimate.waiting_bytes + (STEPS - 1) * estimate.brought_bytes,
    )


def beside(
    parts: Sequence[Part],
    also: tuple[str, ...],
    plans: Mapping[str, Plan],
    *,
    offload: bool = False,
) -> Beside:
    """Returns what components take: packed and decoded at each use where they have a plan, else in
    16 bits.

    Args:
        offload: what is packed waits in main memory.
    """
    weights = {part.name: part.half_bytes for part in parts}
    transient = dict.fromkeys(weights, 0)
    seconds, waiting, moved = 0.0, 0, 0
    for name, plan in plans.items():
        modes = mode_estimates(plan, dtype=torch.float16, device="cuda", offload=offload)
        streamed = next(each for each in modes if each.mode == "streaming")
        weights[name] = streamed.stored_bytes + streamed.buffer_bytes
        transient[name] = streamed.transient_bytes - streamed.buffer_bytes
        uses = 1 if name == VAE else _READS
        seconds += streamed.decode_seconds * uses
        waiting += streamed.waiting_bytes
        moved += streamed.waiting_bytes * uses
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
        waiting=waiting,
        moved=moved,
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
    if way.waiting:
        phases = {
            phase: [
                ("weights and buffers" if name == "weights" else name, size) for name, size in items
            ]
            for phase, items in phases.items()
        }
    phase, amounts = max(phases.items(), key=lambda item: sum(size for _, size in item[1]))
    moved = rest.resting + way.resting if alone else 0
    transfer = (way.moved + rest.moved) / BUS
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
        seconds=way.seconds + rest.seconds + moved / _TRANSFER + transfer,
        reasons=(),
        offload=way.waiting > 0,
        waiting_bytes=way.waiting + rest.waiting,
        transfer_seconds=transfer,
    )
