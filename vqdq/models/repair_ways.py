"""What could be done about each layer, its price in bytes, and the best choice of it.

What each way removes is the layer's share of the error, measured one layer at a time; what several
remove together is `vqdq.models.repair`.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from vqdq import allocation, codecs
from vqdq.allocation import Option
from vqdq.errors import UserError
from vqdq.models.blame_report import WHOLE, BlameReport, Floats
from vqdq.models.distortion import relative_error
from vqdq.params import Params
from vqdq.recipe import Plan, PlannedLayer
from vqdq.rules import Rule

Kind = Literal["input", "weight", "whole"]
_METHOD = "uniform"
_WORTH = 0.5  # share of the weight's error that a finer rounding may leave


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """One way to give a layer more.

    Attributes:
        name: of the layer.
        kind: "input": its input stays as it comes, the weight as the recipe has it; "weight": its
            weight is rounded to `bits` instead and its input stays as it comes; "whole": both in
            16 bits.
        bits: of the weight; 0 for "input".
        params: settings of the weight's method, for "weight".
        added_bytes: to what is stored for the layer; negative where it takes less.
        removed: share of the variant's squared error that it should remove beside other repairs
            (`BlameReport.share`).
        estimated: `removed` is not measured alone but follows from the errors of the weight: what
            rounding to `bits` leaves of it, to first order.
    """

    name: str
    kind: Kind
    bits: int
    params: Params | None
    added_bytes: int
    removed: float
    estimated: bool

    def rule(self, planned: PlannedLayer) -> Rule:
        """Returns what a recipe says of it."""
        pattern = glob.escape(self.name)
        if self.kind == "input":
            return Rule(pattern=pattern, method=planned.method, params=planned.params)
        method = _METHOD if self.kind == "weight" else None
        return Rule(pattern=pattern, method=method, params=self.params)


def repairs(
    found: BlameReport,
    plan: Plan,
    reference: nn.Module,
    *,
    bits: Sequence[int] = (8, 4),
    area: int = WHOLE,
) -> dict[str, tuple[Repair, ...]]:
    """Returns what could be done about each measured layer, and its price in bytes.

    Args:
        plan: of the variant's own recipe; `reference`: the full-precision denoiser.
        bits: finer roundings to offer beside 16 bits, 2 to 8; one that would not halve the error
            of the weight is left out, as is one that the layer is too small for.
        area: where the error is to be removed.

    Raises:
        UserError: the plan is not of the variant that was measured.
    """
    planned = {item.layer.name: item for item in plan.quantized}
    shares, inputs = found.share(area), input_share(found, area)
    ways: dict[str, tuple[Repair, ...]] = {}
    for place in np.flatnonzero(found.measured):
        name = found.names[place]
        if name not in planned or _stored(planned[name]) != found.bytes[place]:
            raise UserError(
                "the recipe stores this layer in another way than the variant that was measured.",
                where=name,
                remedy="Use the variant's own recipe.",
            )
        own = planned[name]
        whole, alone = float(shares[place]), float(inputs[place])
        offers = [_repair(own, "whole", 16, None, 2 * own.layer.shape.count, whole)]
        if own.activation is not None:
            offers.append(_repair(own, "input", 0, None, own.storage.total_bytes, alone))
        weight = whole - alone
        layer = reference.get_submodule(name)
        for count in bits:
            codec = codecs.create(_METHOD, bits=count)
            try:
                codec.check(own.layer.shape)
            except UserError:
                continue
            before = float(found.relative_error[place])
            left = relative_error(layer, codec) / before if before > 0 else 1.0
            if left < _WORTH:
                size = codec.storage(own.layer.shape).total_bytes
                rest = whole - max(weight, 0.0) * left
                offers.append(_repair(own, "weight", count, codec.params, size, rest))
        ways[name] = tuple(offers)
    return ways


def input_share(found: BlameReport, area: int = WHOLE) -> Floats:
    """Returns the part of each layer's share that its rounded input has; 0 where it has none.

    As much of the share as the input's repair removes of what the whole repair removes.
    """
    whole, alone = found.removed(area), found.input_removed(area)
    part = np.divide(alone, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.nan_to_num(found.share(area) * np.clip(np.nan_to_num(part), 0, 1))


def choose(
    ways: Mapping[str, Sequence[Repair]],
    *,
    budget_bytes: int | None = None,
    layers: int | None = None,
    bits: int | None = None,
) -> tuple[Repair, ...]:
    """Returns the repairs that remove the most error, the most valuable for its bytes first.

    Args:
        budget_bytes: what they may add together; the best choice within it (`vqdq.allocation`).
        layers: how many layers are repaired, those that gain most. Either or both.
        bits: only repairs with this many bits of the weight, 16 for the whole layer; 0 only inputs.

    Raises:
        UserError: neither is given, or one is negative.
    """
    if budget_bytes is None and layers is None:
        raise UserError("nothing limits the repairs.", where="repair", remedy="Say how many.")
    if (budget_bytes or 0) < 0 or (layers or 0) < 0:
        raise UserError("is below 0.", where="repair", remedy="Use 0 or more.")
    offers = {
        name: [way for way in of_layer if way.removed > 0 and bits in (None, way.bits)]
        for name, of_layer in ways.items()
    }
    if layers is not None:
        gain = {name: max((w.removed for w in o), default=0.0) for name, o in offers.items()}
        best = sorted((name for name in gain if gain[name] > 0), key=lambda name: -gain[name])
        offers = {name: offers[name] for name in best[:layers]}
    if budget_bytes is None:
        picked = [max(of_layer, key=lambda way: way.removed) for of_layer in offers.values()]
        return tuple(sorted(picked, key=_value))
    # Sizes are counted from the smallest: a repair may take less than the layer as it is.
    top = sum(max((way.removed for way in of_layer), default=0.0) for of_layer in offers.values())
    options: dict[str, list[Option]] = {}
    free = 0
    for name, of_layer in offers.items():
        if of_layer:
            low = min(0, *(way.added_bytes for way in of_layer))
            free -= low
            most = max(way.removed for way in of_layer)
            options[name] = [Option(bytes=-low, loss=most / top)] + [
                Option(bytes=way.added_bytes - low, loss=(most - way.removed) / top)
                for way in of_layer
            ]
    chosen = allocation.allocate(options, budget_bytes + free)
    picked = [offers[name][index - 1] for name, index in chosen.items() if index]
    return tuple(sorted(picked, key=_value))


def _repair(
    own: PlannedLayer, kind: Kind, bits: int, params: Params | None, size: int, removed: float
) -> Repair:
    return Repair(
        name=own.layer.name,
        kind=kind,
        bits=bits,
        params=params,
        added_bytes=size - _stored(own),
        removed=removed,
        estimated=kind == "weight",
    )


def _stored(own: PlannedLayer) -> int:
    return own.storage.total_bytes + sum(spec.num_bytes for spec in own.inputs)


def _value(way: Repair) -> tuple[float, str]:
    """Sorts by the error removed for each byte, and the free ones first."""
    return -way.removed / max(way.added_bytes, 1), way.name
