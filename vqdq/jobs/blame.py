"""Blame: which layers of a compressed model cost this picture most, and what mending them takes.

Both directions are measured on calls recorded from the reference (`vqdq.models.blame`). What was
measured lies in the run's folder, so a run that was stopped goes on from there. Then several sets
of layers are repaired together and measured again: those are the offers.

Measured on the demo model in 3 bits, models loaded, one core: 20 of 129 layers both ways at 6 steps
and 8 sets of repairs take 12 s (1.5 s to record, 3.3 s to estimate all layers, 4.3 s to measure,
3.0 s for the repairs). Its 5 worst layers in 8 bits add 0.47 MB and 7.9 dB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqdq.errors import UserError
from vqdq.jobs.blame_result import BlameResult, Offer, layer_rows
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import BlameRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Recipe, resolve

if TYPE_CHECKING:
    from vqdq.models.blame_report import BlameReport
    from vqdq.models.repair import Repaired
    from vqdq.models.repair_ways import Repair
    from vqdq.recipe import Plan

REPORT = "blame.npz"
COUNTS = (1, 3, 5, 10)
_FINE = 256  # cells of a side where a prediction has tokens
SMALL_PRICE = 0.05  # of the file: what a repair may add and still be the one to propose


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A set of repairs to offer; see `repair_ways.choose`."""

    layers: int | None = None
    bits: int | None = None
    budget_bytes: int | None = None


def execute(
    request: BlameRequest,
    folder: Path,
    *,
    report: Report = silent,
    cache: WarmPipelines,
    wanted: Sequence[Wanted] = (),
) -> BlameResult:
    """Returns the ranking and the offers, after writing the numbers to `blame.npz` in `folder`.

    Args:
        wanted: sets of repairs to offer before the usual ones.

    Raises:
        UserError: the variant is not compressed, is of another model or equals the reference; a
            model that cannot be opened; a full disk.
    """
    from vqdq.models import blame, repair, repair_ways  # heavy: diffusers
    from vqdq.models.blame_report import REGION, WHOLE
    from vqdq.models.denoisers import denoiser
    from vqdq.models.pipelines import component
    from vqdq.models.trajectory import record

    start = time.perf_counter()
    reference = cache.get(request.model, report=report).pipeline
    warm = cache.get(request.variant, report=report)
    module = denoiser(reference)[1]
    recipe = recipe_of(denoiser(warm.pipeline)[1], request.variant)
    drawn = record(
        reference,
        [request.prompt],
        steps=request.steps,
        guidance=request.guidance,
        seed=request.seed,
        batch_size=1,
        report=report,
    )
    mask = mask_of(request.region, tuple(drawn.latents.shape))
    with disk_faults(folder):
        found = blame.blame(
            reference,
            warm.pipeline,
            drawn,
            calls=request.calls,
            worst=request.worst or None,
            mask=mask,
            keep=folder / REPORT,
            report=report,
        )
    area = REGION if request.region else WHOLE
    plan = resolve(recipe, component(reference))
    ways = repair_ways.repairs(found, plan, module, area=area)

    def measured(made: Repaired, report: Report) -> Repaired:
        return repair.measured(
            made, reference, warm.pipeline, drawn, calls=request.calls, mask=mask, report=report
        )

    offers = _offers(wanted, ways, found, plan, area, measured, report)
    return BlameResult(
        model=request.model,
        variant=request.variant,
        label=warm.label,
        prompt=request.prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        region=list(request.region),
        steps_measured=sorted(set(found.steps)),
        before_db=found.sqnr_db(),
        region_db=found.sqnr_db(REGION) if request.region else None,
        variant_bytes=plan.predicted_bytes,
        measured=int(found.measured.sum()),
        layers=layer_rows(found, plan, ways),
        offers=offers,
        relearns=recipe.calibration is not None or recipe.finetune is not None,
        report=REPORT,
        seconds=time.perf_counter() - start,
    )


def recipe_of(module: Any, variant: str) -> Recipe:
    """Returns the recipe that a compressed denoiser carries.

    Raises:
        UserError: it is not compressed.
    """
    config = getattr(getattr(module, "config", None), "quantization_config", None)
    values = getattr(config, "recipe", None)
    if not values:
        raise UserError(
            "has no compressed layer, so there is none to blame.",
            where=variant,
            remedy="Choose a model that was compressed here.",
        )
    return Recipe.from_json(values, where=variant)


def mask_of(region: Sequence[float], latents: tuple[int, ...]) -> torch.Tensor | None:
    """Returns how much of each place of the picture lies in the region, [h, w]; None without one.

    Args:
        region: left, top, right, bottom as shares of the picture.
        latents: their shape; tokens are those of a square picture.
    """
    if not region:
        return None
    left, top, right, bottom = region
    rows, columns = latents[2:] if len(latents) == 4 else (_FINE, _FINE)
    return torch.outer(_covered(top, bottom, rows), _covered(left, right, columns))


def _covered(start: float, end: float, count: int) -> torch.Tensor:
    """The part of each of `count` equal cells of 0 ... 1 that lies between `start` and `end`."""
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    inside = edges[1:].clamp(max=end) - edges[:-1].clamp(min=start)
    return (inside.clamp(min=0) * count).clamp(max=1).float()


def usual(ways: Mapping[str, Sequence[Repair]]) -> tuple[Wanted, ...]:
    """Returns the sets that are always offered: some layers in each number of bits there is."""
    known = {way.bits for of_layer in ways.values() for way in of_layer}
    return tuple(
        Wanted(layers=count, bits=bits) for bits in (8, 16, 0) if bits in known for count in COUNTS
    )


def _offers(
    wanted: Sequence[Wanted],
    ways: Mapping[str, Sequence[Repair]],
    found: BlameReport,
    plan: Plan,
    area: int,
    measured: Callable[[Repaired, Report], Repaired],
    report: Report,
) -> list[Offer]:
    """Returns the sets of repairs that differ, measured, those that help at all proposed first.

    Raises:
        UserError: nothing fits into a set that was wanted.
    """
    from vqdq.models import repair, repair_ways

    sets: dict[frozenset[tuple[str, str, int]], tuple[Wanted, Repaired]] = {}
    for number, want in enumerate((*wanted, *usual(ways))):
        picked = repair_ways.choose(
            ways, budget_bytes=want.budget_bytes, layers=want.layers, bits=want.bits
        )
        if not picked and number < len(wanted):
            raise UserError(
                "no repair fits.", where="repair", remedy="Allow more layers or more bytes."
            )
        key = frozenset((way.name, way.kind, way.bits) for way in picked)
        if picked and key not in sets:
            sets[key] = want, repair.together(found, plan, picked, area=area)
    offers: list[Offer] = []
    for number, (want, made) in enumerate(sets.values()):
        part = _part(report, number, len(sets))
        offers.append(_offer(want, measured(made, part)))
    cheap = [each for each in offers if each["added_bytes"] <= SMALL_PRICE * plan.predicted_bytes]
    best = max(cheap or offers, key=lambda each: each["gain_db"], default=None)
    if best is not None and best["gain_db"] > 0:
        best["proposed"] = True
    return offers


def _part(report: Report, number: int, count: int) -> Report:
    """One bar for all sets: the calls of one as a part of all of them."""

    def reported(event: Event) -> None:
        if event.stage != "repair":  # encoding takes no time worth a bar
            event = replace(event, done=0, total=0)
        total = event.total * count
        report(replace(event, stage="repair", done=event.total * number + event.done, total=total))

    return reported


def _offer(want: Wanted, made: Repaired) -> Offer:
    assert made.measured_db is not None
    assert made.everywhere_db is not None
    return Offer(
        sentence=made.sentence,
        layers=[way.name for way in made.repairs],
        bits=want.bits,
        budget_bytes=want.budget_bytes,
        added_bytes=made.added_bytes,
        total_bytes=made.plan.predicted_bytes,
        before_db=made.before_db,
        after_db=made.measured_db,
        gain_db=made.gain_db,
        predicted_gain_db=made.predicted_db - made.before_db,
        whole_db=made.everywhere_db,
        recipe=made.recipe.to_json(),
        proposed=False,
    )
