"""From pictures to units of work: what each needs, what is there already, what is left to do.

Only what a missing picture needs is planned, from the pictures back: its model, the model's layers,
their statistics, the calls that those are taken from; each once, however many recipes share it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqdq.calibration import RangeParams
from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.grid_cells import Drawer, Picture
from vqdq.jobs.sweep_addresses import Addresses, Made, Wish, uses_hessian
from vqdq.jobs.sweep_units import Unit, packed
from vqdq.recipe import PlannedLayer

_LONGEST = 30.0  # seconds of a unit: what a death costs, and how long a cancel may wait
_WORTH = 10.0  # times that a unit takes longer than opening its model, at least if there is work
_DECODE_SECONDS = 0.15  # of a picture of 128 pixels, with its measures
_PICTURE_BYTES = 0.35 * 3  # a pixel, as PNG; see `grid_cost`


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPlan:
    """What a sweep does.

    Attributes:
        wishes: every picture, in the asked order, but those of `problems`.
        units: what is left, in the order in which units are started.
        total, done: different results of each kind, and how many are there.
        seconds: estimated work that is left, one unit after the other.
        store_bytes: estimated bytes of what will be added to the folder.
        problems: why a recipe does not fit a model, by the drawer's key.
        models: the address of each model that a recipe makes, by the drawer's key.
    """

    wishes: tuple[Wish, ...]
    units: tuple[Unit, ...]
    total: Mapping[str, int]
    done: Mapping[str, int]
    seconds: float
    store_bytes: int
    problems: Mapping[str, UserError]
    models: Mapping[str, str]


@dataclass(kw_only=True, slots=True)
class Planner:
    """Plans one sweep.

    Args:
        addresses: of its results.
        known: names of results that are there.
        device: "cpu" or "cuda"; decides where a model runs.
        gpu_share: of a card, for units that run a model; 0 for the CPU.
        workers: how many units run at a time; decides how large a unit is.
    """

    addresses: Addresses
    known: Collection[str]
    device: str = "cpu"
    gpu_share: float = 0.0
    workers: int = 1
    _units: list[Unit] = field(default_factory=list[Unit])
    _planned: set[str] = field(default_factory=set[str])

    def plan(self, pictures: Sequence[Picture]) -> SweepPlan:
        """Returns the plan of these pictures.

        Raises:
            UserError: a model cannot be opened, or a prompt file cannot be read.
        """
        drawers = {picture.drawer.key: picture.drawer for picture in pictures}
        found = self.addresses
        for drawer in drawers.values():
            found.open(drawer)
        wishes = found.wishes([p for p in pictures if p.drawer.key not in found.problems])
        missing = [w for w in wishes if not all(map(self._has, filter(None, (w.image, w.score))))]
        work = sum(self._draw_seconds(wish) for wish in missing)
        needed = [
            (made, drawers[key])
            for key, made in found.made.items()
            if not self._has(made.name)
            and any(w.picture.drawer.key == key and not self._has(w.image) for w in missing)
        ]
        work += sum(sum(costs.stages(made.plan, 0).values()) for made, _ in needed)
        share = work / (8 * max(1, self.workers))
        target = min(_LONGEST, max(1.0, share))
        for made, drawer in needed:
            self._statistics(made, drawer)
        for made, drawer in needed:
            self._encode(made, drawer, target)
        for made, drawer in needed:
            self._assemble(made, drawer)
        for key, drawer in drawers.items():
            opening = _WORTH * found.model_of(drawer).open_seconds
            mine = [w for w in missing if w.picture.drawer.key == key]
            self._draw(drawer, mine, max(target, min(opening, share)))
        every = dict.fromkeys(
            [name for wish in wishes for name in (wish.image, wish.score) if name]
            + [made.name for made in found.made.values() if self._has(made.name)]
            + [made.name for made, _ in needed]
            + [name for made, _ in needed for name in made.layers.values()]
        )
        return SweepPlan(
            wishes=tuple(wishes),
            units=tuple(self._units),
            total=_counted(every),
            done=_counted(name for name in every if self._has(name)),
            seconds=sum(unit.seconds for unit in self._units),
            store_bytes=self._bytes(missing, [made for made, _ in needed]),
            problems=found.problems,
            models={key: made.name for key, made in found.made.items()},
        )

    def _has(self, name: str) -> bool:
        return name in self.known

    # Units ----------------------------------------------------------------------------------

    def _add(
        self,
        kind: str,
        makes: Sequence[str],
        needs: Collection[str],
        seconds: float,
        work: Mapping[str, Any],
    ) -> None:
        self._planned.update(makes)
        on_card = kind in ("record", "statistics", "draw")
        self._units.append(
            Unit(
                number=len(self._units),
                kind=kind,
                makes=tuple(makes),
                needs=frozenset(name for name in needs if name and not self._has(name)),
                seconds=seconds,
                work={**work, "device": self.device if on_card else "cpu"},
                gpu_share=self.gpu_share if on_card else 0.0,
            )
        )

    def _left(self, name: str) -> bool:
        return bool(name) and not self._has(name) and name not in self._planned

    def _statistics(self, made: Made, drawer: Drawer) -> None:
        """Calls by prompts, then statistics by layers: summing them by prompts would be other sums.

        Only where a layer that needs them is missing.
        """
        if all(self._has(name) for name in made.layers.values()):
            return
        work = self._work(drawer)
        if self._left(made.smoothing):
            ranges = made.recipe.ranges or RangeParams()
            seconds = sum(costs.ranges_seconds(made.plan, ranges, 0, drawn=False).values())
            recipe = made.recipe.to_json()
            self._add("smoothing", [made.smoothing], [], seconds, {**work, "recipe": recipe})
        calibration = made.recipe.calibration
        if calibration is None:
            return
        parts = {name: part for name, part in made.parts.items() if self._left(name)}
        if not parts:
            return
        seconds = costs.calibrate_seconds(made.plan, calibration, 0)
        work |= {"params": calibration.to_json()}
        for start, name in made.records.items():
            if self._left(name):
                each = (
                    seconds["record"] / len(made.records)
                    + self.addresses.model_of(drawer).open_seconds
                )
                self._add("record", [name], [], each, {**work, "start": start})
        for name, part in parts.items():
            each = (seconds["record"] + seconds["calibrate"]) / len(
                made.parts
            ) + self.addresses.model_of(drawer).open_seconds
            more = {"records": made.records, "layers": part}
            self._add("statistics", [name], made.records.values(), each, {**work, **more})

    def _encode(self, made: Made, drawer: Drawer, target: float) -> None:
        left = [layer for layer in made.plan.quantized if self._left(made.layers[layer.layer.name])]
        weights = sum(layer.storage.num_weights for layer in made.plan.quantized)
        pace = costs.encode_seconds(made.plan) / max(1, weights)

        def seconds(layer: PlannedLayer) -> float:
            return pace * layer.storage.num_weights

        for chunk in packed(left, seconds, target):
            names = {layer.layer.name: made.layers[layer.layer.name] for layer in chunk}
            parts = list(made.parts) if any(uses_hessian(layer) for layer in chunk) else []
            self._add(
                "encode",
                list(names.values()),
                [*parts, made.smoothing],
                sum(map(seconds, chunk)),
                {
                    **self._work(drawer),
                    "recipe": made.recipe.to_json(),
                    "layers": names,
                    "statistics": parts,
                    "smoothing": made.smoothing,
                },
            )

    def _assemble(self, made: Made, drawer: Drawer) -> None:
        stages = costs.stages(made.plan, 0)
        more = {**self._work(drawer), "recipe": made.recipe.to_json(), "layers": made.layers}
        self._add(
            "model",
            [made.name],
            [*made.layers.values(), made.smoothing],
            self.addresses.model_of(drawer).open_seconds
            + sum(v for k, v in stages.items() if k in ("finetune", "ranges")),
            {**more, "smoothing": made.smoothing},
        )

    def _draw(self, drawer: Drawer, wishes: Sequence[Wish], target: float) -> None:
        made = self.addresses.made.get(drawer.key)
        for chunk in packed(wishes, self._draw_seconds, target):
            undrawn = any(not self._has(wish.image) for wish in chunk)
            needs = [wish.reference for wish in chunk]
            needs += [made.name] if made is not None and undrawn else []
            label = "" if made is None else made.recipe.name
            self._add(
                "draw",
                [
                    name
                    for wish in chunk
                    for name in (wish.image, wish.score)
                    if name and not self._has(name)
                ],
                needs,
                self.addresses.model_of(drawer).open_seconds + sum(map(self._draw_seconds, chunk)),
                {
                    **self._work(drawer),
                    "made": None if made is None else made.name,
                    "recipe": label,
                    "metrics": self.addresses.metrics,
                    "pictures": [
                        {
                            "image": wish.image,
                            "score": wish.score,
                            "reference": wish.reference,
                            "prompt": wish.picture.prompt,
                            "seed": wish.picture.seed,
                            "steps": wish.picture.steps,
                            "guidance": wish.picture.guidance,
                        }
                        for wish in chunk
                    ],
                },
            )

    def _work(self, drawer: Drawer) -> dict[str, Any]:
        """What every unit says: the model, and how a worker knows that it has the same one."""
        model = self.addresses.model_of(drawer)
        return {"model": model.reference, "name": model.name, "digest": model.digest}

    def _draw_seconds(self, wish: Wish) -> float:
        picture = wish.picture
        model = self.addresses.model_of(picture.drawer)
        calls = picture.steps * (2 if picture.guidance > 1 else 1)
        return calls * model.call_seconds + _DECODE_SECONDS * (model.pixels / 128) ** 2

    def _bytes(self, wishes: Sequence[Wish], needed: Sequence[Made]) -> int:
        """Layers and models, statistics, calls, pictures: each once."""
        total, seen = 0.0, set[str]()
        for made in needed:
            total += made.plan.predicted_bytes
            for layer in made.plan.quantized:
                name = made.layers[layer.layer.name]
                total += layer.storage.total_bytes if name not in seen else 0
                seen.add(name)
            if any(name not in seen and not self._has(name) for name in made.parts):
                seen.update(made.parts)
                total += 4 * sum(n.layer.shape.in_features**2 for n in made.plan.layers)
        for wish in wishes:
            model = self.addresses.model_of(wish.picture.drawer)
            total += _PICTURE_BYTES * model.pixels**2
        return round(total)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(name.partition("/")[0] for name in names))
