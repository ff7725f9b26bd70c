"""Which recipe fits a graphics card: predicted from configs and headers, best quality first.

The bytes of weights are exact (the plan's, in each execution mode); what the activations take is
counted without weights (`footprint`) and an estimate. Beside the denoiser the text encoders and the
autoencoder's decoder can be packed too, which is offered where it buys something: a model that fits
only then, or with all components on the card, or with more of its weights kept decoded. A recipe
that fits in no other way is offered with its packed weights left in main memory.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from functools import cached_property

import torch

from vqdq.also import DECODER, TEXT_ENCODERS, also, pattern_of
from vqdq.errors import UserError
from vqdq.models.fit_options import (
    VAE,
    Beside,
    FitOption,
    Way,
    as_it_is,
    beside,
    kept_way,
    option,
)
from vqdq.models.fit_reasons import size, with_reasons
from vqdq.models.footprint import check_resolution, decoding_bytes, drawing_bytes, vae_scale
from vqdq.models.inventory import Inventory, Part
from vqdq.models.modes import ModeEstimate, mode_estimates
from vqdq.models.sources import presets_folder
from vqdq.recipe import Plan, Recipe, load_recipe, resolve
from vqdq.rules import Rule

TIERS = (
    ("", "16 bits, as it is"),
    ("rtn-8bit", "Nearest to 16 bits"),
    ("trellis-4bit", "Hard to tell from 16 bits"),
    ("trellis-3bit", "Close to 16 bits"),
    ("trellis-2bit", "Changes can be seen"),
)
"""Recipes by falling quality, and what to expect of each; "" compresses nothing."""

CARDS = (
    ("6 GB · GTX 1660, RTX 2060", 6),
    ("8 GB · RTX 3060 Ti, RTX 4060", 8),
    ("10 GB · RTX 3080", 10),
    ("11 GB · GTX 1080 Ti, RTX 2080 Ti", 11),
    ("12 GB · RTX 3060, RTX 4070", 12),
    ("16 GB · RTX 4080, RTX 5080", 16),
    ("24 GB · RTX 3090, RTX 4090", 24),
    ("32 GB · RTX 5090", 32),
    ("48 GB · RTX A6000, L40S", 48),
    ("80 GB · A100, H100", 80),
)
"""Common cards and their memory in GB of 10^9 bytes: what they have beyond it the driver takes."""

_CARD = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|MB)?\b", re.IGNORECASE)
_MOST = 1e6
_LEAST_CACHE = 0.15  # of all decoded weights: less is not worth a mode
_FILLED = 0.9  # of the card: a cache leaves the allocator some room
_PACKED_OTHERS = "trellis-4bit"  # what to expect of packed text encoders: as of this tier
_MODES = ("resident", "hybrid", "streaming")


def present_card() -> tuple[str, int] | None:
    """Returns the name and the memory in bytes of this computer's card, or None without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(0), int(torch.cuda.get_device_properties(0).total_memory)


def card_bytes(text: str) -> int:
    """Returns the bytes of "8 GB", "600MB" or "8 GB · RTX 4060"; of the card that is here for "".

    Raises:
        UserError: no size, or there is no card here.
    """
    words = text.strip()
    if not words:
        present = present_card()
        if present is None:
            raise UserError(
                "there is no graphics card here.", where="card", remedy="Name its memory: 8GB."
            )
        return present[1]
    match = _CARD.match(words)
    if match is None or not 0 < float(match[1]) < _MOST:
        raise UserError(
            f"{words[:40]!r} is no memory of a card.", where="card", remedy="Write 8GB, or 600MB."
        )
    return round(float(match[1]) * (1e6 if (match[2] or "").upper() == "MB" else 1e9))


def fit(inventory: Inventory, card: int, resolution: int) -> tuple[FitOption, ...]:
    """Returns the ways that are predicted to fit, by falling quality.

    Of each recipe one way with the denoiser alone compressed, and one with other components too
    where that is better in something else than quality: the first in this order that fits, packed
    weights on the card before those left in main memory, all components on the card before one at a
    time, kept decoded before decoded as it runs. When nothing fits, the one that takes the least is
    returned, and its `fits` is False.

    Args:
        card: bytes of its memory that programs may use.
        resolution: side of a square picture in pixels.

    Raises:
        UserError: a resolution that gives no whole latents, or a model that is compressed already.
    """
    counted = _Counted(inventory, resolution)
    return tuple(_fitting(counted, card)) or (_least(counted, card),)


def fit_each(inventory: Inventory, cards: Sequence[int], resolution: int) -> tuple[FitOption, ...]:
    """Returns for each card the first that `fit` returns; what cards share is counted once."""
    counted = _Counted(inventory, resolution)
    return tuple(next(_fitting(counted, card), None) or _least(counted, card) for card in cards)


def _fitting(counted: _Counted, card: int) -> Generator[FitOption, None, None]:
    for name, quality in TIERS:
        alone = counted.options(name, quality, card, counted.plain)
        first = next((each for each in alone if each.fits), None)
        ways = [] if first is None else [with_reasons(first, alone, (0, 0), "")]
        if first is None or _rank(first) != (False, False, 0):  # else there is nothing to gain
            more = _with_others(counted, name, quality, card, alone, first)
            ways += [] if more is None else [more]
        yield from sorted(ways, key=lambda each: each.offload)


def _with_others(
    counted: _Counted,
    name: str,
    quality: str,
    card: int,
    alone: Sequence[FitOption],
    first: FitOption | None,
) -> FitOption | None:
    """The first way with other components packed that fits and is better than `first`; one that
    leaves packed weights in main memory only where none does without.
    """
    best: FitOption | None = None
    for rest in counted.packed if name else ():
        packed = counted.options(name, quality, card, rest)
        found = next((each for each in packed if each.fits), None)
        if found is None or (first is not None and _rank(found) >= _rank(first)):
            continue
        if best is None or not found.offload:
            saved = (counted.before(rest), counted.after(rest))
            best = with_reasons(found, packed, saved, _without(alone, first))
        if not best.offload:
            break
    return best


def _without(alone: Sequence[FitOption], first: FitOption | None) -> str:
    """What would be without packed components beside the denoiser."""
    if first is None:
        return f"Without that it would take {size(min(each.total_bytes for each in alone))}."
    words = [
        f"with {first.how}" if first.offload else first.how,
        "one component at a time" if first.one_at_a_time else "",
    ]
    return f"Without that it would fit only {', '.join(filter(None, words))}."


def _rank(found: FitOption) -> tuple[bool, bool, int]:
    """How much a way costs in time, coarsely: packed weights on the card first, then all components
    on it, then what stays decoded.
    """
    mode = "resident" if found.how == "kept decoded" else found.mode
    stays = _MODES.index(mode) if mode in _MODES else 0
    return found.offload, found.one_at_a_time, stays


def _least(counted: _Counted, card: int) -> FitOption:
    every = [
        each
        for name, quality in TIERS
        for rest in (counted.plain, *(counted.packed if name else ()))
        for each in counted.options(name, quality, card, rest)
    ]
    return min(every, key=lambda each: each.total_bytes)


class _Counted:
    """What is the same for every card: the working memory, what the other components take, and a
    plan of each recipe, made when one is asked for.
    """

    def __init__(self, inventory: Inventory, resolution: int) -> None:
        denoiser = inventory.parts[0]
        if denoiser.quantized:
            raise UserError(
                "is compressed already.",
                where=inventory.reference,
                remedy="Choose the model it was made from.",
            )
        vae = inventory.part(VAE)
        scale = (vae_scale(vae.config) if vae is not None else None) or 8
        check_resolution(resolution, scale)
        decoding = 0 if vae is None else decoding_bytes(vae.class_config, resolution)
        drawing = drawing_bytes(denoiser.class_config, resolution // scale, resolution)
        self.inventory, self.resolution = inventory, resolution
        self.working = (drawing, decoding)
        self.others: tuple[Part, ...] = inventory.parts[1:]
        self.plain: Beside = beside(self.others, (), {})
        self._plans: dict[str, Plan | None] = {}
        self._modes: dict[tuple[str, bool], Mapping[str, ModeEstimate]] = {}
        self._beside: dict[tuple[str, ...], Beside] = {}

    @cached_property
    def packed(self) -> tuple[Beside, ...]:
        """The other components with the text encoders packed, then with the decoder too."""
        found: list[Beside] = []
        wishes: tuple[str, ...] = ()
        plans: dict[str, Plan] = {}
        for wish in (TEXT_ENCODERS, DECODER):
            more = self._packed(wish)
            if more:
                wishes, plans = (*wishes, wish), plans | more
                found.append(beside(self.others, wishes, plans))
        return tuple(found)

    def before(self, rest: Beside) -> int:
        """Bytes in 16 bits of the components that are packed in `rest`."""
        return sum(part.half_bytes for part in self.others if part.name in rest.plans)

    def after(self, rest: Beside) -> int:
        """Bytes of the same components, packed."""
        names = rest.plans.keys()
        kept = sum(part.half_bytes for part in self.others if part.name not in names)
        return rest.resting - kept

    def options(self, name: str, quality: str, card: int, rest: Beside) -> list[FitOption]:
        """Returns the options of a recipe, the fastest first; none where a layer of this model is
        too small for it.
        """
        plan = self._plan(name)
        if name and plan is None:
            return []
        known = dict(TIERS)
        order = list(known)
        if rest.also and order.index(name) < order.index(_PACKED_OTHERS):
            quality = known[_PACKED_OTHERS]
        denoiser = {} if plan is None else {self.inventory.denoiser: plan}
        bits = {part.name: 16.0 for part in self.inventory.parts}
        ways = [
            (alone, rest, way)
            for alone in (False, True)
            for way in self._ways(name, plan, rest, card, alone=alone)
        ]
        if plan is not None:
            waiting = self._waiting(rest), kept_way(self._estimates(name, plan, True)["streaming"])
            ways += [(alone, *waiting) for alone in (False, True)]
        return [
            option(
                name, {**denoiser, **rest.plans}, quality, way, others, self.working, card,
                self.resolution, bits, alone=alone,
            )
            for alone, others, way in ways
        ]  # fmt: skip

    def _ways(
        self, name: str, plan: Plan | None, rest: Beside, card: int, *, alone: bool
    ) -> Generator[Way, None, None]:
        """Yields the ways to keep the denoiser's weights, the fastest first."""
        if plan is None:
            yield as_it_is(self.inventory.parts[0])
            return
        known = self._estimates(name, plan)
        resident, streaming = known["resident"], known["streaming"]
        yield kept_way(resident, streamed_others=bool(rest.also))
        streamed = kept_way(streaming)
        working = max(self.working[1] + rest.decoding, rest.reading)
        taken = max(streamed.drawing + self.working[0], 0 if alone else streamed.resting + working)
        room = round(_FILLED * card) - (0 if alone else rest.resting) - taken
        if _LEAST_CACHE * resident.held_bytes < room < resident.held_bytes:
            modes = mode_estimates(plan, dtype=torch.float16, device="cuda", cache_bytes=room)
            yield kept_way(next(each for each in modes if each.mode == "hybrid"))
        yield streamed

    def _estimates(
        self, name: str, plan: Plan, offload: bool = False
    ) -> Mapping[str, ModeEstimate]:
        """The estimates of a recipe's plan by mode, made once."""
        if (name, offload) not in self._modes:
            found = mode_estimates(plan, dtype=torch.float16, device="cuda", offload=offload)
            self._modes[name, offload] = {each.mode: each for each in found}
        return self._modes[name, offload]

    def _waiting(self, rest: Beside) -> Beside:
        """The same components with what is packed of them in main memory; made once."""
        if rest.also not in self._beside:
            self._beside[rest.also] = beside(self.others, rest.also, rest.plans, offload=True)
        return self._beside[rest.also]

    def _plan(self, name: str) -> Plan | None:
        if not name:
            return None
        if name not in self._plans:
            recipe: Recipe = load_recipe(name, presets_folder())
            try:
                self._plans[name] = resolve(recipe, self.inventory.component)
            except UserError:
                self._plans[name] = None  # a layer is too small for its method
        return self._plans[name]

    def _packed(self, wish: str) -> dict[str, Plan]:
        """The plans of the components that a wish is about; none where one cannot be packed."""
        recipe = also(Recipe(name=pattern_of(wish), rules=(Rule(pattern="*"),)), [wish])
        found: dict[str, Plan] = {}
        for part in self.others:
            own = recipe.of_component(part.name)
            if own is None:
                continue
            if part.quantized or part.name not in self.inventory.openers:
                return {}
            try:
                found[part.name] = resolve(own, self.inventory.openers[part.name]())
            except UserError:
                return {}
        return found
