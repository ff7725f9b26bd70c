"""From blame to a recipe: keep these layers finer, for so many bytes more and so many dB.

What each repair removes is measured one layer at a time; what several remove together is predicted,
and then measured with all of them in place, because errors of layers are not independent. What is
added to the file is known exactly before anything is encoded.

Measured on the demo model in 4 bits by plain rounding (9.6 dB, 6 calls): 5 layers in 16 bits add
1.63 MB and 6.8 dB; half a megabyte spent on the best 12 layers in 8 bits gains 7.2 dB, two
megabytes on 28 layers gain 11.3 dB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.inputs import LayerInput
from vqdq.layers.matrix import to_matrix
from vqdq.layers.quantized import QuantizedLayer, pack
from vqdq.metrics.trajectory import decibel
from vqdq.models.blame import halved
from vqdq.models.blame_report import WHOLE, BlameReport
from vqdq.models.denoisers import denoiser
from vqdq.models.encoding import encode_layer
from vqdq.models.memo import exchanged
from vqdq.models.pipelines import component
from vqdq.models.region import Judge
from vqdq.models.repair_ways import Repair, choose, repairs
from vqdq.models.sensitivity import spread_calls
from vqdq.models.trajectory import Trajectories
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan, PlannedLayer, Recipe, resolve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """What a choice of repairs comes to.

    Attributes:
        recipe: an ordinary one, its first rules those of the repairs; `plan`: what it does.
        repairs: those chosen, the most valuable for its bytes first.
        added_bytes: to the weight file, exactly.
        area: what the decibels are of: the whole picture, or the region.
        before_db: guided SQNR of the noise prediction of the variant, over the calls measured.
        predicted_db: with the repairs, their shares added up.
        measured_db: with the repairs in place, on the same calls; None before `measured`.
        everywhere_db: as `measured_db`, of the whole picture whatever the area.
    """

    recipe: Recipe
    plan: Plan
    repairs: tuple[Repair, ...]
    added_bytes: int
    before_db: float
    predicted_db: float
    measured_db: float | None = None
    everywhere_db: float | None = None
    area: int = WHOLE

    @property
    def gain_db(self) -> float:
        """What is won: measured where it is known, else predicted."""
        after = self.predicted_db if self.measured_db is None else self.measured_db
        return after - self.before_db

    @property
    def sentence(self) -> str:
        """ "Keep 3 layers at 8 bits: +0.52 MB, +1.9 dB" and how that is known."""
        many = "1 layer" if len(self.repairs) == 1 else f"{len(self.repairs)} layers"
        bits = sorted({repair.bits for repair in self.repairs if repair.bits})
        inputs = sum(repair.kind == "input" for repair in self.repairs)
        at = f" at {' or '.join(map(str, bits))} bits" if bits else ""
        but = f" ({inputs} by the input alone)" if inputs else ""
        known = "predicted" if self.measured_db is None else "measured"
        size = f"{self.added_bytes / 1e6:+.2f} MB"
        where = "" if self.area == WHOLE else " in the region"
        return f"Keep {many}{at}{but}: {size}, {self.gain_db:+.1f} dB{where} ({known})."


def repair(
    found: BlameReport,
    reference: DiffusionPipeline,
    recipe: Recipe,
    *,
    budget_bytes: int | None = None,
    layers: int | None = None,
    bits: int | None = None,
    offers: Sequence[int] = (8, 4),
    area: int = WHOLE,
) -> Repaired:
    """Returns the best repairs within a budget, and the recipe that makes them.

    Args:
        found: of `blame`, with this reference; `recipe`: the variant's own.
        budget_bytes, layers, bits: see `choose`; offers, area: see `repairs`.

    Raises:
        UserError: see `choose` and `repairs`; nothing that could be done helps.
    """
    plan = resolve(recipe, component(reference))
    ways = repairs(found, plan, denoiser(reference)[1], bits=offers, area=area)
    picked = choose(ways, budget_bytes=budget_bytes, layers=layers, bits=bits)
    if not picked:
        raise UserError(
            "no repair fits.",
            where="repair",
            remedy="Allow more bytes, or measure on more calls: none may have helped.",
        )
    return together(found, plan, picked, area=area)


def together(
    found: BlameReport, plan: Plan, picked: Sequence[Repair], *, area: int = WHOLE
) -> Repaired:
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
    before = found.sqnr_db(area)
    return Repaired(
        recipe=recipe,
        plan=after,
        repairs=tuple(picked),
        added_bytes=after.predicted_bytes - plan.predicted_bytes,
        before_db=before,
        predicted_db=before + decibel(1.0, left_over(found, picked, area)),
        area=area,
    )


def left_over(found: BlameReport, picked: Sequence[Repair], area: int = WHOLE) -> float:
    """Returns the share of the variant's error that should be left, PREDICTED.

    Let errors δ of layers add up: E = ‖Σδ‖². Of each layer a = ‖δ‖² and c = ⟨δ, Σ others⟩ are known
    (E − E_repaired = 2c + a). What layers R leave is Σ_R a and the products within R; of each c as
    much is taken to be within R as R has of Σ‖δ‖. Of a repaired layer the part of its share that
    its repair does not remove is left.
    """
    known = found.measured
    share = np.where(known, found.share(area), 0.0)
    alone = np.where(known, found.alone_share(area), 0.0)
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
    mask: torch.Tensor | None = None,
    report: Report = silent,
) -> Repaired:
    """Returns `made` with what it comes to when all repairs are in place; models stay as they are.

    Weights are encoded as the recipe's seed has them, from the weight alone: a recipe that is
    calibrated or learns does at least as well.

    Args:
        trajectories, calls, mask: those of `blame`, or the numbers do not compare.
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
    judge = Judge.of(trajectories, chosen[0], mask)
    signal, error = np.zeros(judge.areas), np.zeros(judge.areas)
    before = [given.enabled for given in inputs]
    try:
        for given in inputs:
            given.enabled = False
        with torch.no_grad(), exchanged(packed, layers):
            for done, call in enumerate(chosen):
                report(Event(stage="repair", done=done, total=len(chosen)))
                signal += judge.energies(call.output, call)
                error += judge.error(packed, call)
    finally:
        for given, enabled in zip(inputs, before, strict=True):
            given.enabled = enabled
    report(Event(stage="repair", done=len(chosen), total=len(chosen)))
    found = [decibel(float(top), float(low)) for top, low in zip(signal, error, strict=True)]
    return replace(made, measured_db=found[made.area], everywhere_db=found[WHOLE])


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
