"""From blame to a recipe: keep these layers finer, for so many bytes more and so many dB.

What each repair removes is measured one layer at a time; what several remove together is predicted,
and then measured with all of them in place, because errors of layers are not independent. What is
added to the file is known exactly before anything is encoded.

Measured on the demo model in 4 bits by plain rounding (9.6 dB, 6 calls): 5 layers in 16 bits add
1.63 MB and 6.8 dB; half a megabyte spent on the best 12 layers in 8 bits gains 7.2 dB, two
megabytes on 28 layers gain 11.3 dB.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from vqdq import allocation, codecs
from vqdq.allocation import Option
from vqdq.errors import UserError
from vqdq.layers.inputs import LayerInput
from vqdq.layers.matrix import to_matrix
from vqdq.layers.quantized import QuantizedLayer, pack
from vqdq.metrics.trajectory import decibel, energy
from vqdq.models.blame import halved
from vqdq.models.blame_report import BlameReport, Floats
from vqdq.models.denoisers import denoiser
from vqdq.models.distortion import relative_error
from vqdq.models.encoding import encode_layer
from vqdq.models.memo import exchanged
from vqdq.models.pipelines import component
from vqdq.models.sensitivity import spread_calls
from vqdq.models.trajectory import Trajectories, replay
from vqdq.params import Params
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan, PlannedLayer, Recipe, resolve
from vqdq.rules import Rule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """What a choice of repairs comes to.

    Attributes:
        recipe: an ordinary one, its first rules those of the repairs; `plan`: what it does.
        repairs: those chosen, the most valuable for its bytes first.
        added_bytes: to the weight file, exactly.
        before_db: guided SQNR of the noise prediction of the variant, over the calls measured.
        predicted_db: with the repairs, their shares added up.
        measured_db: with the repairs in place, on the same calls; None before `measured`.
    """

    recipe: Recipe
    plan: Plan
    repairs: tuple[Repair, ...]
    added_bytes: int
    before_db: float
    predicted_db: float
    measured_db: float | None = None

    @property
    def gain_db(self) -> float:
        """What is won: measured where it is known, else predicted."""
        after = self.predicted_db if self.measured_db is None else self.measured_db
        return after - self.before_db

    @property
    def sentence(self) -> str:
        """ "Keep 3 layers finer: +0.52 MB, +1.9 dB" and how that is known."""
        many = "1 layer" if len(self.repairs) == 1 else f"{len(self.repairs)} layers"
        bits = sorted({repair.bits for repair in self.repairs if repair.bits})
        inputs = sum(repair.kind == "input" for repair in self.repairs)
        at = f" at {' or '.join(map(str, bits))} bits" if bits else ""
        but = f" ({inputs} by the input alone)" if inputs else ""
        known = "predicted" if self.measured_db is None else "measured"
        size = f"{self.added_bytes / 1e6:+.2f} MB"
        return f"Keep {many}{at}{but}: {size}, {self.gain_db:+.1f} dB ({known})."


def repairs(
    found: BlameReport,
    plan: Plan,
    reference: nn.Module,
    *,
    bits: Sequence[int] = (8, 4),
) -> dict[str, tuple[Repair, ...]]:
    """Returns what could be done about each measured layer, and its price in bytes.

    Args:
        plan: of the variant's own recipe; `reference`: the full-precision denoiser.
        bits: finer roundings to offer beside 16 bits, 2 to 8; one that would not halve the error
            of the weight is left out, as is one that the layer is too small for.

    Raises:
        UserError: the plan is not of the variant that was measured.
    """
    planned = {item.layer.name: item for item in plan.quantized}
    shares, inputs = found.share(), input_share(found)
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


def input_share(found: BlameReport) -> Floats:
    """Returns the part of each layer's share that its rounded input has; 0 where it has none.

    As much of the share as the input's repair removes of what the whole repair removes.
    """
    whole, alone = found.removed(), found.input_removed()
    part = np.divide(alone, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.nan_to_num(found.share() * np.clip(np.nan_to_num(part), 0, 1))


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


def repair(
    found: BlameReport,
    reference: DiffusionPipeline,
    recipe: Recipe,
    *,
    budget_bytes: int | None = None,
    layers: int | None = None,
    bits: int | None = None,
    offers: Sequence[int] = (8, 4),
) -> Repaired:
    """Returns the best repairs within a budget, and the recipe that makes them.

    Args:
        found: of `blame`, with this reference; `recipe`: the variant's own.
        budget_bytes, layers, bits: see `choose`; offers: see `repairs`.

    Raises:
        UserError: see `choose` and `repairs`; nothing that could be done helps.
    """
    plan = resolve(recipe, component(reference))
    ways = repairs(found, plan, denoiser(reference)[1], bits=offers)
    picked = choose(ways, budget_bytes=budget_bytes, layers=layers, bits=bits)
    if not picked:
        raise UserError(
            "no repair fits.",
            where="repair",
            remedy="Allow more bytes, or measure on more calls: none may have helped.",
        )
    return together(found, plan, picked)


def together(found: BlameReport, plan: Plan, picked: Sequence[Repair]) -> Repaired:
    """Returns what the repairs come to, not measured together yet."""
    by_name = {item.layer.name: item for item in plan.quantized}
    many = "1 layer" if len(picked) == 1 else f"{len(picked)} layers"
    recipe = replace(
        plan.recipe,
        name=f"{plan.recipe.name}-repaired",
        title=f"{plan.recipe.title or plan.recipe.name}, {many} finer",
        rules=(*(way.rule(by_name[way.name]) for way in picked), *plan.recipe.rules),
    )
    after = resolve(recipe, plan.component)
    before = found.sqnr_db()
    return Repaired(
        recipe=recipe,
        plan=after,
        repairs=tuple(picked),
        added_bytes=after.predicted_bytes - plan.predicted_bytes,
        before_db=before,
        predicted_db=before + decibel(1.0, left_over(found, picked)),
    )


def left_over(found: BlameReport, picked: Sequence[Repair]) -> float:
    """Returns the share of the variant's error that should be left, PREDICTED.

    Let errors δ of layers add up: E = ‖Σδ‖². Of each layer a = ‖δ‖² and c = ⟨δ, Σ others⟩ are known
    (E − E_repaired = 2c + a). What layers R leave is Σ_R a and the products within R; of each c as
    much is taken to be within R as R has of Σ‖δ‖. Of a repaired layer the part of its share that
    its repair does not remove is left.
    """
    known = found.measured
    share = np.where(known, found.share(), 0.0)
    alone = np.where(known, found.alone_share(), 0.0)
    kept = np.where(known, 1.0, 0.0)  # of each layer's error
    places = {name: place for place, name in enumerate(found.names)}
    for way in picked:
        place = places[way.name]
        rest = 1 - way.removed / share[place] if share[place] > 0 else 0.0
        kept[place] = min(1.0, max(0.0, rest))
    size = np.sqrt(alone)
    within = float((kept * size).sum() / size.sum())
    power = float((kept * alone).sum())
    products = within * float((kept * (share - alone)).sum())
    left = power + max(products, -power / 2)
    total = float(share.sum())
    if known.all():
        return left / total if total > 0 else left
    return max(0.0, 1 - total) + left  # and what the layers that were not measured do


def measured(
    made: Repaired,
    reference: DiffusionPipeline,
    variant: DiffusionPipeline,
    trajectories: Trajectories,
    *,
    calls: int = 6,
    report: Report = silent,
) -> Repaired:
    """Returns `made` with what it comes to when all repairs are in place; models stay as they are.

    Weights are encoded as the recipe's seed has them, from the weight alone: a recipe that is
    calibrated or learns does at least as well.

    Args:
        trajectories, calls: those of `blame`, or the numbers do not compare.
        report: stage "repair", one unit a call; may raise `Cancelled`.
    """
    dense, packed = denoiser(reference)[1], denoiser(variant)[1]
    chosen = spread_calls(trajectories, calls)
    plans = {item.layer.name: item for item in made.plan.layers}
    layers: dict[str, nn.Module] = {}
    inputs = [_input(packed, way.name) for way in made.repairs if way.kind == "input"]
    for done, way in enumerate(made.repairs):
        report(Event(stage="encode", done=done, total=len(made.repairs), message=way.name))
        if way.kind == "whole":
            layers[way.name] = halved(dense.get_submodule(way.name), way.name)
        elif way.kind == "weight":
            layers[way.name] = _encoded(dense, plans[way.name], made.recipe.seed)
    signal = error = 0.0
    before = [given.enabled for given in inputs]
    try:
        for given in inputs:
            given.enabled = False
        with torch.no_grad(), exchanged(packed, layers):
            for done, call in enumerate(chosen):
                report(Event(stage="repair", done=done, total=len(chosen)))
                found = energy(replay(packed, call), call, trajectories.guidance)
                signal, error = signal + found.guided_signal, error + found.guided_error
    finally:
        for given, enabled in zip(inputs, before, strict=True):
            given.enabled = enabled
    report(Event(stage="repair", done=len(chosen), total=len(chosen)))
    return replace(made, measured_db=decibel(signal, error))


def _input(packed: nn.Module, name: str) -> LayerInput:
    layer = packed.get_submodule(name)
    assert isinstance(layer, QuantizedLayer), name
    assert layer.input is not None, name
    return layer.input


def _encoded(dense: nn.Module, planned: PlannedLayer, seed: int) -> nn.Module:
    layer = dense.get_submodule(planned.layer.name)
    weight = layer.get_parameter("weight").detach()
    done = encode_layer(to_matrix(weight), planned, seed, silent)
    return pack(halved(layer, planned.layer.name), done.packed).to(weight.device)


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
