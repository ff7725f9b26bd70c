"""The pictures of a grid on a cluster: the units of a sweep, whose results become a grid's rows.

The results lie in the run's folder, so every computer of the cluster has to see the workspace.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs import sweep, sweep_run, sweep_table
from vqdq.jobs.cluster import RayEngine
from vqdq.jobs.grid_cells import Drawer, Picture
from vqdq.jobs.grid_records import GridRow
from vqdq.jobs.sweep_addresses import Wish
from vqdq.jobs.sweep_plan import SweepPlan
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import Engine
from vqdq.progress import Report

RESULTS = "results"
"""Folder of the results inside the run's."""
METRICS = ("psnr", "ssim")


def draw(
    pictures: Sequence[Picture],
    folder: Path,
    *,
    locate: Callable[[str], str],
    keep: Callable[[GridRow], None],
    failed: Callable[[Picture, UserError], None],
    report: Report,
    engine: Callable[[Store], Engine] | None = None,
) -> None:
    """Draws pictures of a grid, models made and all.

    Args:
        locate: from a model's name in the workspace to where it lies.
        keep: is given each row as it comes, its PNG in `folder`; `failed`: those without one.
        engine: another than a cluster that is there (RAY_ADDRESS) or started here.

    Raises:
        UserError: no cluster answers, or a model cannot be opened.
    """
    store = Store(str(folder / RESULTS))
    given = {picture.key: picture for picture in pictures}
    placed = [_placed(picture, locate) for picture in pictures]
    workers = (engine or RayEngine)(store)
    try:
        plan = sweep_run.planned(placed, workers, store, metrics=METRICS)
        arrivals = _Arrivals(plan, store, folder, given, keep)
        result = sweep.drive(plan, workers, report=report, arrived=arrivals.take)
    finally:
        workers.close()
    for wish in plan.wishes:
        if wish.image in arrivals.left or wish.score in arrivals.left:
            why = _why(wish, result, plan)
            failed(given[wish.picture.key], why)
    for picture in pictures:
        if picture.drawer.key in plan.problems:
            failed(picture, plan.problems[picture.drawer.key])


class _Arrivals:
    """Turns results into rows: a picture's when its comparison is there as well."""

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        folder: Path,
        given: dict[str, Picture],
        keep: Callable[[GridRow], None],
    ) -> None:
        self._store, self._folder, self._given, self._keep = store, folder, given, keep
        self._waiting = {
            wish.picture.key: (wish, {name for name in (wish.image, wish.score) if name})
            for wish in plan.wishes
        }
        self.left = {name for _, names in self._waiting.values() for name in names}
        self.take(sorted(self.left & store.known()))

    def take(self, names: Sequence[str]) -> None:
        """Takes names of results that are there now."""
        self.left -= set(names)
        for key, (wish, needs) in list(self._waiting.items()):
            if needs & self.left:
                continue
            del self._waiting[key]
            own = dataclasses.replace(wish, picture=self._given[key])
            row = sweep_table.grid_row(own, self._store, self._folder)
            if row is not None:
                self._keep(row)


def _placed(picture: Picture, locate: Callable[[str], str]) -> Picture:
    drawer = picture.drawer
    made = locate(drawer.made) if drawer.made else ""
    there = Drawer(key=drawer.key, model=locate(drawer.model), recipe=drawer.recipe, made=made)
    return dataclasses.replace(picture, drawer=there)


def _why(wish: Wish, result: sweep.SweepResult, plan: SweepPlan) -> UserError:
    """Its own fault, else that of the model it waits for, else the first of all."""
    model = plan.models.get(wish.picture.drawer.key, "")
    names = [wish.image, wish.score, model, *result.faults]
    fault = next(result.faults[name] for name in names if name in result.faults)
    return UserError(fault["what"], where=fault["where"], remedy=fault["remedy"])
