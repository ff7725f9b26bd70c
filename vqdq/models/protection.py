"""Keep-in-16-bit: the layers whose rounded inputs cost the most keep their inputs as they are.

Which those are is measured on the model itself, with its own weights rounded to 8 bits only, so the
answer is the same for every codec and is had before any slow encoding. Ideogram 4 keeps 8 % of its
layers this way (arXiv 2606.12280).

Measured on the demo model, noise prediction on held-out prompts: at 8 bits, "minmax" rises from
32.9 to 37.3 dB with 10 of 135 layers kept, at 6 bits "dgq" from 26.0 to 33.5 dB. Those ten layers
are large and do 40 % of the products; what takes 8 % of the products gives 28.6 dB at 6 bits.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.models.budget import GUIDED_WEIGHT, recorded
from vqdq.models.compressor import compress
from vqdq.models.denoisers import denoiser
from vqdq.models.fragility import InputCost, input_costs
from vqdq.models.pipelines import component, load
from vqdq.models.sensitivity import spread_calls
from vqdq.progress import Report, silent
from vqdq.recipe import Recipe, resolve
from vqdq.rules import Rule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_STAND_IN = "int8"
_CALLS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class FragileInput:
    """One row of the table, the most fragile first.

    Attributes:
        name: of the layer; `activation`, `bits`: of its input's quantizer.
        macs: products of one picture's pass through the layer.
        output_db: signal over error of the layer's own output, dB; inf when nothing is lost.
        cost: squared error of the noise prediction / its energy when this input alone is rounded,
            raw and guided alike; first order, ESTIMATED.
        kept: whether the input stays in 16 bits.
    """

    name: str
    activation: str
    bits: int
    macs: int
    output_db: float
    cost: float
    kept: bool


def protected(
    model: str | Path | DiffusionPipeline,
    recipe: Recipe,
    share: float = 0.08,
    *,
    of: Literal["layers", "macs"] = "layers",
    report: Report = silent,
) -> tuple[Recipe, tuple[FragileInput, ...]]:
    """Returns `recipe` with rules that keep the most fragile inputs in 16 bits, and every cost.

    The weights of those layers stay as the recipe has them.

    Args:
        model: a full-precision model; a name or a folder is loaded.
        share: of the layers with a quantized input, or of their products; rounded down.
        of: "layers" takes those that cost most; "macs" those that cost most a product, as many as
            fit.
        report: stages "load", "record", "ranges", "encode", "protect"; may raise `Cancelled`.

    Raises:
        UserError: the share is no share, the recipe quantizes no input, or a fault of the model.
    """
    if not 0 <= share <= 1:
        raise UserError(f"{share!r} is out of range.", where="share", remedy="Use 0 to 1.")
    named = model if isinstance(model, str | Path) else None
    pipeline = load(model, report=report) if isinstance(model, str | Path) else model
    plan = resolve(recipe, component(pipeline))
    if not plan.activated:
        raise UserError(
            "quantizes no input, so there is nothing to protect.",
            where="recipe",
            remedy='Give a rule an "activation".',
        )
    costs = _measured(pipeline, named, recipe, report)
    chosen = _chosen(
        {planned.layer.name: costs[planned.layer.name] for planned in plan.activated}, share, of
    )
    rows: list[FragileInput] = []
    rules: list[Rule] = []
    for planned in plan.activated:
        name = planned.layer.name
        quantizer = planned.quantizer()
        assert quantizer is not None
        rows.append(
            FragileInput(
                name=name,
                activation=quantizer.name,
                bits=quantizer.bits,
                macs=costs[name].macs,
                output_db=costs[name].output_db,
                cost=costs[name].blend(GUIDED_WEIGHT),
                kept=name in chosen,
            )
        )
        if name in chosen:
            rules.append(
                Rule(pattern=glob.escape(name), method=planned.method, params=planned.params)
            )
    rows.sort(key=lambda row: -row.cost)
    if not rules:
        return recipe, tuple(rows)
    text = "1 fragile input" if len(rules) == 1 else f"{len(rules)} fragile inputs"
    made = replace(
        recipe,
        name=f"{recipe.name}-protected",
        title=f"{recipe.title or recipe.name}, {text} in 16 bits",
        rules=(*rules, *recipe.rules),
    )
    resolve(made, plan.component)
    return made, tuple(rows)


def _measured(
    pipeline: DiffusionPipeline, named: str | Path | None, recipe: Recipe, report: Report
) -> dict[str, InputCost]:
    """Returns the cost of every input that `recipe` quantizes, its weights in 8 bits."""
    params = codecs.create(_STAND_IN).params
    rules = tuple(
        replace(rule, method=_STAND_IN, params=params) if rule.activation is not None else rule
        for rule in (_kept(rule) for rule in recipe.rules)
    )
    bare = replace(recipe, rules=rules, calibration=None, finetune=None, attention=None)
    stand_in = compress(pipeline, bare, report=report)
    made = recorded(pipeline, named, report=report)
    calls = spread_calls(made, _CALLS)
    return input_costs(denoiser(stand_in)[1], calls, made.guidance, report=report)


def _kept(rule: Rule) -> Rule:
    """Returns a rule without activation as one that only keeps its layers, which takes no time."""
    return rule if rule.activation is not None else Rule(pattern=rule.pattern)


def _chosen(costs: Mapping[str, InputCost], share: float, of: str) -> frozenset[str]:
    """Returns the layers to keep."""
    loss = {name: cost.blend(GUIDED_WEIGHT) for name, cost in costs.items()}
    if of == "layers":
        order = sorted(costs, key=lambda name: -loss[name])
        return frozenset(order[: int(share * len(order) + 1e-9)])
    room = share * sum(cost.macs for cost in costs.values())
    kept: set[str] = set()
    for name in sorted(costs, key=lambda name: -loss[name] / max(costs[name].macs, 1)):
        if costs[name].macs <= room:
            room -= costs[name].macs
            kept.add(name)
    return frozenset(kept)
