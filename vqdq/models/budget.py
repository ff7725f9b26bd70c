"""From a target (average bits, bytes, a card) to a recipe with one setting for each layer.

The loss of a layer is what its error costs the noise prediction: its measured effect times the
relative error of its codec at that setting, times what error feedback leaves of it when the recipe
is calibrated. Losses of layers add up, because their errors are independent; the allocator finds
the least sum under the exact sizes, and what comes out is an ordinary recipe.
"""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from vqdq import allocation, codecs
from vqdq.allocation import Option
from vqdq.errors import UserError
from vqdq.metrics.trajectory import decibel
from vqdq.models.denoisers import denoiser
from vqdq.models.distortion import rate_setting, rates, relative_error
from vqdq.models.footprint import Footprint, footprint
from vqdq.models.pipelines import component, load
from vqdq.models.prompts import prompts_for
from vqdq.models.sensitivity import Sensitivity, measure
from vqdq.models.trajectory import Trajectories, record
from vqdq.params import Params
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan, PlannedLayer, Recipe, resolve
from vqdq.rules import Rule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_PROMPTS, _STEPS, _GUIDANCE, _SEED = 16, 20, 3.0, 4_000_037
_FINE, _FINE_BITS = "uniform", 8
GUIDED_WEIGHT = 0.5  # both predictions count alike; fine-tuning's own default


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What the result may take.

    Attributes:
        kind: "average_bits": true bits per weight over the layers the recipe quantizes, everything
            stored for them counted; "bytes": of the denoiser's weight file; "card": memory of the
            whole pipeline while it draws, ESTIMATED.
        value: bits, bytes, or GB of the card (10^9 bytes: a "24 GB" card has 7 % more, which the
            driver takes).
        resolution: of the picture in pixels, for "card".
    """

    kind: Literal["average_bits", "bytes", "card"]
    value: float
    resolution: int = 0

    def __post_init__(self) -> None:
        low, high = {"average_bits": (0.0, 16.0), "bytes": (0, 1e15), "card": (0.0, 1e4)}[self.kind]
        if not low < self.value <= high:
            raise UserError(
                f"{self.value!r} is out of range.",
                where=f"target.{self.kind}",
                remedy=f"Use a number above {low:g}, at most {high:g}.",
            )
        if self.kind == "card" and self.resolution <= 0:
            raise UserError(
                "the picture's size is missing.",
                where="target.resolution",
                remedy="Say how many pixels a side it has.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocatedLayer:
    """One row of the table that is shown before anything runs.

    Attributes:
        name: of the layer; `weights`: how many.
        method, params: what it gets; None keeps it in 16 bits.
        bits_per_weight, bytes: exactly what is stored for it.
        effect: what a relative weight error of 1 would cost; see `sensitivity.Effect`.
        error: relative squared error that is expected, rows weighed by their effect.
        loss: effect · error (· what feedback leaves): its part of the prediction's relative error.
    """

    name: str
    weights: int
    method: str | None
    params: Params | None
    bits_per_weight: float
    bytes: int
    effect: float
    error: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Targeted:
    """A recipe that meets a target, and why it is the one.

    Attributes:
        recipe: concrete, one rule a layer.
        plan: what it does, exactly.
        table: one row for each layer that was allocated, in the order of the plan.
        predicted_bytes: of the denoiser's weight file, exactly.
        average_bits: true bits per weight over the allocated layers, those in 16 bits included.
        predicted_sqnr_db: of the noise prediction, raw and guided energies blended; ESTIMATED.
        footprint: for a "card" target, what the rest of the pipeline takes; ESTIMATED.
        sensitivity: what it was decided on, to be used again.
    """

    recipe: Recipe
    plan: Plan
    table: tuple[AllocatedLayer, ...]
    predicted_bytes: int
    average_bits: float
    predicted_sqnr_db: float
    footprint: Footprint | None
    sensitivity: Sensitivity


@dataclass(frozen=True, kw_only=True, slots=True)
class _Way:
    """An option of a layer with the expected relative error behind its loss."""

    option: Option
    error: float


def targeted(
    model: str | Path | DiffusionPipeline,
    recipe: Recipe,
    target: Target,
    *,
    sensitivity: Sensitivity | None = None,
    gains: Mapping[str, float] | None = None,
    guided_weight: float = GUIDED_WEIGHT,
    report: Report = silent,
) -> Targeted:
    """Returns `recipe` with a setting for each layer it quantizes, so that `target` is met.

    Every layer keeps its method and its other settings; its rate ("bits", "num_codebooks") is
    chosen from all that the method offers; the most fragile layers may be rounded to 8 bits or stay
    in 16. Layers that the recipe keeps stay kept.

    Args:
        model: a full-precision model; a name or a folder is loaded.
        sensitivity: a kept measurement; None records trajectories and measures.
        gains: share of its loss that error feedback leaves each layer (`feedback_gains`); absent
            ones are 1.
        guided_weight: 0 looks at the raw prediction alone, 1 at the guided one alone.
        report: stages "load", "record", "sensitivity", "distortion"; may raise `Cancelled`.

    Raises:
        UserError: the target cannot be met (the smallest possible size is said), or a fault of the
            model or the recipe.
    """
    named = model if isinstance(model, str | Path) else None
    pipeline = load(model, report=report) if isinstance(model, str | Path) else model
    module = denoiser(pipeline)[1]
    plan = resolve(recipe, component(pipeline))
    names = [planned.layer.name for planned in plan.quantized]
    room = footprint(pipeline, target.resolution) if target.kind == "card" else None
    if sensitivity is None:
        made = recorded(pipeline, named, report=report)
        sensitivity = measure(module, made, names, report=report)
    absent = [name for name in names if name not in sensitivity.effects]
    if absent:
        raise UserError(
            "its sensitivity was not measured.", where=absent[0], remedy="Measure this model again."
        )
    effects = {name: sensitivity.effects[name].blend(guided_weight) for name in names}
    ways: dict[str, list[_Way]] = {}
    for done, planned in enumerate(plan.quantized):
        name = planned.layer.name
        report(Event(stage="distortion", done=done, total=len(names), message=name))
        factor = effects[name] * (gains or {}).get(name, 1.0)
        rows = sensitivity.effects[name].rows
        ways[name] = _ways(module.get_submodule(name), planned, factor, rows)
    report(Event(stage="distortion", done=len(names), total=len(names)))
    chosen, final = _fitted(plan, ways, target, room)
    table = _table(plan, ways, chosen, effects)
    return Targeted(
        recipe=final.recipe,
        plan=final,
        table=table,
        predicted_bytes=final.predicted_bytes,
        average_bits=_average_bits(plan, sum(row.bytes for row in table)),
        predicted_sqnr_db=decibel(1.0, sum(row.loss for row in table)),
        footprint=room,
        sensitivity=sensitivity,
    )


def recorded(
    pipeline: DiffusionPipeline, model: str | Path | None = None, *, report: Report = silent
) -> Trajectories:
    """Returns trajectories to measure sensitivity on: 16 prompts of the model's training kind."""
    config: Any = pipeline.config
    reference = model or config.get("_name_or_path") or "unnamed"
    prompts = prompts_for(reference, _PROMPTS, seed=_SEED)
    return record(
        pipeline,
        prompts,
        steps=_STEPS,
        guidance=_GUIDANCE,
        seed=_SEED,
        batch_size=4,
        report=report,
    )


def _ways(
    layer: nn.Module, planned: PlannedLayer, factor: float, rows: Sequence[float]
) -> list[_Way]:
    """Returns what can be done with a layer: each rate its method offers for it, or 16 bits.

    Between the finest rate of a vector quantizer and 16 bits there is a gap, so a method that ends
    below 8 bits is joined by plain rounding to 8: a few fragile layers take it.
    """
    shape = planned.layer.shape
    method, params = planned.method, planned.params
    assert method is not None
    assert params is not None
    setting = rate_setting(type(params))
    values = () if setting is None else rates(setting)
    offers = [
        (method, params if setting is None else replace(params, **{setting.name: value}))
        for value in values or (0,)
    ]
    if max(values, default=0) < _FINE_BITS:
        offers.append((_FINE, codecs.create(_FINE, bits=_FINE_BITS).params))
    found: list[_Way] = []
    for name, offer in offers:
        codec = codecs.create(name, offer)
        try:
            codec.check(shape)
        except UserError:
            continue  # this layer is too small for this setting
        size = codec.storage(shape).total_bytes
        error = relative_error(layer, codec, rows)
        option = Option(bytes=size, loss=factor * error, method=name, params=offer)
        found.append(_Way(option=option, error=error))
    found.append(_Way(option=Option(bytes=2 * shape.count, loss=0.0), error=0.0))
    return found


def _fitted(
    plan: Plan, ways: Mapping[str, list[_Way]], target: Target, room: Footprint | None
) -> tuple[dict[str, int], Plan]:
    """Returns the choice and its plan: as large as the target allows, by the real file."""
    options = {name: [way.option for way in of_layer] for name, of_layer in ways.items()}
    weights = sum(planned.layer.shape.count for planned in plan.quantized)
    if target.kind == "average_bits":
        budget = int(target.value * weights / 8)
        try:
            chosen = allocation.allocate(options, budget)
        except UserError as error:
            least = 8 * allocation.smallest_bytes(options) / weights
            raise UserError(
                f"{target.value:g} bits a weight are too few: {least:.3f} is the least.",
                where="target",
                remedy=error.remedy,
            ) from error
        return chosen, _resolved(plan, ways, chosen)
    limit = int(target.value if room is None else target.value * 1e9 - room.total)
    # What is not allocated is kept tensors and the header, whose length depends on the choice.
    smallest = {name: _smallest(of_layer) for name, of_layer in options.items()}
    fixed = _fixed_bytes(_resolved(plan, ways, smallest), options, smallest)
    for _ in range(8):
        chosen = _allocated(options, limit, fixed, room)
        final = _resolved(plan, ways, chosen)
        if final.predicted_bytes <= limit:
            return chosen, final
        fixed = max(fixed + 1, _fixed_bytes(final, options, chosen))
    return smallest, _resolved(plan, ways, smallest)


def _smallest(options: list[Option]) -> int:
    return min(range(len(options)), key=lambda index: options[index].bytes)


def _fixed_bytes(plan: Plan, options: Mapping[str, list[Option]], chosen: Mapping[str, int]) -> int:
    return plan.predicted_bytes - allocation.total_bytes(options, chosen)


def _resolved(plan: Plan, ways: Mapping[str, list[_Way]], chosen: Mapping[str, int]) -> Plan:
    return resolve(_recipe(plan, ways, chosen), plan.component)


def _allocated(
    options: Mapping[str, list[Option]], limit: int, fixed: int, room: Footprint | None
) -> dict[str, int]:
    try:
        return allocation.allocate(options, limit - fixed)
    except UserError as error:
        least = allocation.smallest_bytes(options) + fixed
        if room is None:
            what = f"{limit:,} bytes are too few: the file takes at least {least:,}."
        else:
            what = (
                f"the card is too small: the denoiser takes at least {least:,} bytes, and beside "
                f"it an ESTIMATED {room.components:,} for the other components, "
                f"{room.activations:,} for activations and {room.largest_layer:,} for the layer "
                f"that is being decoded."
            )
        raise UserError(what, where="target", remedy=error.remedy) from error


def _recipe(plan: Plan, ways: Mapping[str, list[_Way]], chosen: Mapping[str, int]) -> Recipe:
    """Returns the rules that keep layers, then one for each allocated layer by its exact name.

    A keeping rule that would also match an allocated layer is left out: what no rule matches stays
    in 16 bits anyway.
    """
    picked = {name: ways[name][index].option for name, index in chosen.items()}
    kept = [
        rule
        for rule in plan.recipe.rules
        if rule.method is None
        and not any(fnmatch.fnmatchcase(name, rule.pattern) for name in picked)
    ]
    planned = {layer.layer.name: layer for layer in plan.layers}
    explicit = [
        Rule(
            pattern=glob.escape(name),
            method=option.method,
            params=option.params,
            activation=planned[name].activation if option.method else None,
            activation_params=planned[name].activation_params if option.method else None,
        )
        for name, option in picked.items()
    ]
    average = _average_bits(plan, sum(option.bytes for option in picked.values()))
    method = plan.quantized[0].method or ""
    return replace(
        plan.recipe,
        name=f"{method}-{average:.2f}bit",
        title=f"{codecs.get(method).title}, {average:.2f} bits on average",
        description="Bits for each layer by what its error costs the noise prediction, "
        "fragile layers rounded to 8 bits or kept in 16; "
        f"made from {plan.recipe.name}.",
        rules=(*kept, *explicit),
    )


def _average_bits(plan: Plan, size_bytes: int) -> float:
    return 8 * size_bytes / sum(planned.layer.shape.count for planned in plan.quantized)


def _table(
    plan: Plan,
    ways: Mapping[str, list[_Way]],
    chosen: Mapping[str, int],
    effects: Mapping[str, float],
) -> tuple[AllocatedLayer, ...]:
    rows: list[AllocatedLayer] = []
    for planned in plan.quantized:
        name, count = planned.layer.name, planned.layer.shape.count
        way = ways[name][chosen[name]]
        rows.append(
            AllocatedLayer(
                name=name,
                weights=count,
                method=way.option.method,
                params=way.option.params,
                bits_per_weight=8 * way.option.bytes / count,
                bytes=way.option.bytes,
                effect=effects[name],
                error=way.error,
                loss=way.option.loss,
            )
        )
    return tuple(rows)
