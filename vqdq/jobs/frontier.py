"""Every compressed model as a point: what it costs against how good it is.

A pure function of what the store holds. Of each model all comparisons count that were drawn after
it was made, one for each prompt, seed, steps and guidance: the same picture twice is no second
sample. Quality is the median over them with its interval; shares (alignment, blind win rate) have
Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from vqdq.jobs import batch, grid_records
from vqdq.jobs.blind import BlindTest
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.requests import CompareRequest, GridRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.votes import VoteStore
from vqdq.metrics.medians import median_interval
from vqdq.metrics.proportions import Interval, wilson


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One axis of the plot.

    Attributes:
        name: key; `title`: for people; `unit`: "" for a plain number.
        more_is_better: which way is up.
    """

    name: str
    title: str
    unit: str = ""
    more_is_better: bool = True


COSTS = (
    Scale(name="size", title="Size", unit="MB", more_is_better=False),
    Scale(name="seconds", title="Time", unit="s", more_is_better=False),
    Scale(name="memory", title="Memory", unit="MB", more_is_better=False),
)
QUALITIES = (
    Scale(name="psnr", title="PSNR", unit="dB"),
    Scale(name="ssim", title="SSIM"),
    Scale(name="flip", title="FLIP", more_is_better=False),
    Scale(name="latent_cosine", title="Latent cosine"),
    Scale(name="alignment", title="Alignment", unit="%"),
    Scale(name="blind", title="Blind win rate", unit="%"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One picture of one model beside the reference's.

    Attributes:
        run: id of the comparison; `asked`: prompt, seed, steps, guidance.
        values: measures by name; `cost`: seconds and memory in the axes' units.
        passed: the judge's verdict, and `reference_passed` that on the reference; None without.
        images: file names in the run's folder, the reference's first.
    """

    model: str
    run: str
    finished: float
    asked: tuple[Any, ...]
    values: Mapping[str, float]
    cost: Mapping[str, float]
    passed: bool | None = None
    reference_passed: bool | None = None
    reference_cost: Mapping[str, float] | None = None
    images: tuple[str, str] = ("", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One model.

    Attributes:
        name: of the model in the workspace; "" for the reference.
        label: for people; `method`: decides its colour.
        cost: in the axis' unit; None where it was never measured.
        quality: None where it was never measured; `count`: over how many pictures (or pairs).
        on_front: no other model costs less and is better.
        runs: ids of the comparisons, newest first.
    """

    name: str
    label: str
    method: str
    cost: float | None
    quality: Interval | None
    count: int = 0
    on_front: bool = False
    runs: tuple[str, ...] = ()

    @property
    def placed(self) -> tuple[float, Interval]:
        """Cost and quality of a point that has both."""
        assert self.cost is not None, self.name
        assert self.quality is not None, self.name
        return self.cost, self.quality


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """All models on one pair of axes; the reference apart."""

    cost: Scale
    quality: Scale
    points: tuple[Point, ...]
    reference: Point | None

    @property
    def drawn(self) -> tuple[Point, ...]:
        """The points that have a place."""
        return tuple(p for p in self.points if p.cost is not None and p.quality is not None)


def scale(scales: Sequence[Scale], name: str) -> Scale:
    """Returns the scale of that name; the first one for a name that there is not."""
    return next((each for each in scales if each.name == name), scales[0])


def samples(runs: Sequence[RunRecord]) -> Iterator[Sample]:
    """Yields every measured picture in finished comparisons and grids."""
    for run in runs:
        if run.state != "done" or run.result is None:
            continue
        if isinstance(run.request, CompareRequest):
            yield from _compared(run, run.request, run.result)
        elif isinstance(run.request, GridRequest):
            yield from _gridded(run, request=run.request)


def blind_rates(store: VoteStore) -> dict[str, tuple[Interval, int]]:
    """Returns how often each model was preferred to the reference, and in how many decisive pairs.

    Only tests that were opened count, and of each its primary question; the newest wins.
    """
    found: dict[str, tuple[Interval, int]] = {}
    for digest, _ in store.tests():
        opened = store.revealed(digest)
        if opened is not None:
            for model, rate in _rates(store, digest, opened.time):
                found.setdefault(model, rate)
    return found


@lru_cache(maxsize=64)
def _rates(
    store: VoteStore, digest: str, opened: float
) -> tuple[tuple[str, tuple[Interval, int]], ...]:
    """Kept: an opened test takes no more votes, and its bootstrap takes a moment."""
    del opened
    test = BlindTest(store, digest)
    protocol = test.protocol
    reference = protocol.models[0]
    names = {entrant.name: entrant.reference for entrant in protocol.models}
    rates: list[tuple[str, tuple[Interval, int]]] = []
    for row in test.outcome().comparisons:
        if row.question != protocol.primary or row.first != reference.name:
            continue
        tally = row.preference.tally
        pairs = tally.wins + tally.losses
        if pairs:
            rates.append((names[row.second], (wilson(tally.losses, pairs), pairs)))
    return tuple(rates)


def frontier(
    models: Sequence[ModelEntry],
    found: Sequence[Sample],
    *,
    cost: Scale,
    quality: Scale,
    methods: Mapping[str, str] | None = None,
    blind: Mapping[str, tuple[Interval, int]] | None = None,
) -> Frontier:
    """Returns the points of `models` on two axes.

    Args:
        found: from `samples`; those of other models and of an earlier model of the name are left.
        methods: model -> codec; blind: model -> decisive win rate against the reference, and pairs.
    """
    points: list[Point] = []
    used: list[Sample] = []
    for model in models:
        mine = of_model(model, found)
        used += mine
        value, count = _quality(mine, quality, (blind or {}).get(model.name))
        points.append(
            Point(
                name=model.name,
                label=model.title or model.name,
                method=(methods or {}).get(model.name, ""),
                cost=_cost(mine, cost, model.measured_bytes),
                quality=value,
                count=count,
                runs=tuple(dict.fromkeys(s.run for s in mine)),
            )
        )
    return Frontier(
        cost=cost,
        quality=quality,
        points=with_front(points, quality),
        reference=_reference(models, used, cost, quality),
    )


def with_front(points: Sequence[Point], quality: Scale) -> tuple[Point, ...]:
    """Returns the points, each knowing whether another one costs less and is as good."""
    sign = 1 if quality.more_is_better else -1
    places = {
        point.name: (point.placed[0], sign * point.placed[1].value)
        for point in points
        if point.cost is not None and point.quality is not None
    }

    def beaten(name: str) -> bool:
        cost, value = places[name]
        return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in places.values())

    return tuple(
        replace(point, on_front=point.name in places and not beaten(point.name)) for point in points
    )


def of_model(model: ModelEntry, found: Sequence[Sample]) -> list[Sample]:
    """Returns the newest sample of each picture that was drawn after the model was made."""
    mine = (s for s in found if s.model == model.name and s.finished > model.created)
    kept: dict[tuple[Any, ...], Sample] = {}
    for sample in sorted(mine, key=lambda each: -each.finished):
        kept.setdefault(sample.asked, sample)
    return list(kept.values())


def _quality(
    found: Sequence[Sample], quality: Scale, blind: tuple[Interval, int] | None
) -> tuple[Interval | None, int]:
    if quality.name == "blind":
        return (None, 0) if blind is None else (_per_cent(blind[0]), blind[1])
    if quality.name == "alignment":
        judged = [s.passed for s in found if s.passed is not None]
        return (_per_cent(wilson(sum(judged), len(judged))), len(judged)) if judged else (None, 0)
    values = [s.values[quality.name] for s in found if quality.name in s.values]
    return (median_interval(values), len(values)) if values else (None, 0)


def _cost(found: Sequence[Sample], cost: Scale, measured_bytes: int | None) -> float | None:
    if cost.name == "size":
        return None if measured_bytes is None else measured_bytes / 1e6
    values = [s.cost[cost.name] for s in found if cost.name in s.cost]
    return median_interval(values).value if values else None


def _reference(
    models: Sequence[ModelEntry], used: Sequence[Sample], cost: Scale, quality: Scale
) -> Point | None:
    """The uncompressed model: a place on the cost axis, and its own share of fulfilled prompts."""
    sizes = [model.reference_bytes for model in models if model.reference_bytes]
    if cost.name == "size":
        value = sizes[0] / 1e6 if sizes else None
    else:
        values = [s.reference_cost[cost.name] for s in used if s.reference_cost]
        value = median_interval(values).value if values else None
    if value is None:
        return None
    judged = {s.asked: s.reference_passed for s in used if s.reference_passed is not None}
    share = None
    if quality.name == "alignment" and judged:
        share = _per_cent(wilson(sum(judged.values()), len(judged)))
    return Point(name="", label="FP16", method="", cost=value, quality=share, count=len(judged))


def _per_cent(share: Interval) -> Interval:
    return Interval(
        value=100 * share.value, low=100 * share.low, high=100 * share.high, level=share.level
    )


def _compared(
    run: RunRecord, request: CompareRequest, result: Mapping[str, Any]
) -> Iterator[Sample]:
    sets: list[Mapping[str, Any]] = [
        {"prompt": request.prompt, "seed": request.seed} | dict(result)
    ]
    if request.is_batch:
        sets = [dict(each) for each in batch.read(run.folder, request)]
    for each in sets:
        reference = each.get("reference")
        for row in each.get("variants") or ():
            if row is None or reference is None or "psnr" not in row:
                continue
            place = (each["prompt"], each["seed"], request.steps, request.guidance)
            yield sample(run, row, place, reference)


def _gridded(run: RunRecord, request: GridRequest) -> Iterator[Sample]:
    made = dict(request.made)
    rows = grid_records.read(run.folder).values()
    by_image = {row["image"]: row for row in rows if row["image"]}
    for row in rows:
        reference = by_image.get(row["reference"])
        if row["error"] is not None or reference is None or reference is row:
            continue
        asked = (row["prompt"], row["seed"], row["steps"], row["guidance"])
        name = made.get(row["drawer"].rpartition(" ")[2], row["drawer"])
        yield sample(run, {**row, "variant": name}, asked, reference)


def sample(
    run: RunRecord, row: Mapping[str, Any], asked: tuple[Any, ...], reference: Mapping[str, Any]
) -> Sample:
    """Returns one picture of a result beside its reference.

    Args:
        row: `ComparedPicture` or a row of a grid; asked: what makes it another sample.
    """
    values = {
        name: float(row[name])
        for name in ("ssim", "flip", "latent_cosine")
        if isinstance(row.get(name), int | float)
    }
    values["psnr"] = math.inf if row["psnr"] is None else float(row["psnr"])
    return Sample(
        model=str(row["variant"]),
        run=run.id,
        finished=run.finished or run.created,
        asked=asked,
        values=values,
        cost=_spent(row),
        passed=_passed(row),
        reference_passed=_passed(reference),
        reference_cost=_spent(reference),
        images=(str(reference.get("image") or ""), str(row.get("image") or "")),
    )


def _spent(row: Mapping[str, Any]) -> dict[str, float]:
    return {"seconds": float(row["seconds"]), "memory": float(row["peak_memory_bytes"]) / 1e6}


def _passed(row: Mapping[str, Any]) -> bool | None:
    verdict = row.get("verdict")
    return None if not verdict else bool(verdict["passed"])
