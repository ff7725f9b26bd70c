"""What a worker does with a unit: the same function in this process and on a cluster.

A unit fetches what it needs into a folder of its own, makes what is missing, and gives each result
to the store as soon as it is there, so that a unit that is done again does only the rest. A fault
of one picture does not keep the others from being drawn.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqdq.errors import Cancelled, UserError
from vqdq.jobs.faults import as_user_error
from vqdq.jobs.grid_records import Fault
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.scratch import Scratch
from vqdq.jobs.sweep_pack import pack, shared_files, unpack
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_units import Environment, Outcome, Unit, here, worker_name
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.progress import Report, silent
from vqdq.recipe import Recipe

_EXPECTED = (UserError, OSError, MemoryError, RuntimeError)
_KEPT_MODELS = 2  # made by recipes, open in each worker


def _unexpected(error: BaseException, unit: Unit) -> UserError:
    traceback.print_exception(error, file=sys.stderr)
    return UserError(
        f"{type(error).__name__}: {error}",
        where=f"{unit.kind} on {worker_name()}",
        remedy="This is a fault of the program; the worker's log has the details.",
    )


class Bench:
    """What a worker keeps between units: open pipelines.

    Args:
        store: where results come from and go to.
        environment: what the plan expects here.
    """

    def __init__(self, store: Store, environment: Environment) -> None:
        self.store = store
        self._environment = environment
        self._warm = WarmPipelines()
        self._scratch = Scratch()
        self._variants: OrderedDict[str, Warm] = OrderedDict()
        self._checked: set[tuple[str, str]] = set()

    def perform(self, unit: Unit, *, report: Report = silent) -> Outcome:
        """Returns how a unit ended; what went wrong is in it.

        Raises:
            Cancelled: `report` did.
        """
        started = time.perf_counter()
        made: list[str] = []
        found: list[str] = []
        faults: dict[str, Fault] = {}
        left = [name for name in unit.makes if self.store.receipt(name) is None]
        found += [name for name in unit.makes if name not in left]

        def keep(name: str, values: Mapping[str, Any], file: Path | None = None) -> None:
            if name in left:
                self.store.keep(name, {**values, "worker": worker_name()}, file)
                made.append(name)

        def failed(name: str, error: BaseException) -> None:
            known = as_user_error(error, unit.work["name"]) or _unexpected(error, unit)
            faults[name] = Fault(what=known.what, where=known.where, remedy=known.remedy)

        if left:
            try:
                with (
                    _threads(self._environment.threads),
                    self._scratch.place() as scratch,
                ):
                    self._check(unit)
                    task = _Task(self, unit.work, Path(scratch), left, keep, failed, report)
                    _WAYS[unit.kind](task)
            except Cancelled:
                raise
            except Exception as error:  # the boundary of a unit: told to the person, others go on
                for name in left:
                    if name not in made and name not in faults:
                        failed(name, error)
        return Outcome(
            number=unit.number,
            made=tuple(made),
            found=tuple(found),
            faults=faults,
            seconds=time.perf_counter() - started,
            worker=worker_name(),
        )

    def pipeline(self, work: Mapping[str, Any], report: Report) -> Warm:
        """Returns the model that a unit names, warm, on the unit's device."""
        warm = self._warm.get(work["model"], device=None, report=report)
        return self._placed(dataclasses.replace(warm, reference=work["name"]), work)

    def variant(self, work: Mapping[str, Any], report: Report) -> Warm:
        """Returns the model that a recipe made, unpacked from the store."""
        name = str(work["made"])
        if name not in self._variants:
            while len(self._variants) >= _KEPT_MODELS:
                self._variants.popitem(last=False)
            with self._scratch.place() as place:  # what is open needs no folder any more
                folder = unpack(self.store, name, work["model"], Path(place))
                warm = WarmPipelines().get(str(folder), device=None, report=report)
            self._variants[name] = dataclasses.replace(warm, reference=str(work["recipe"]))
        self._variants.move_to_end(name)
        return self._placed(self._variants[name], work)

    def _placed(self, warm: Warm, work: Mapping[str, Any]) -> Warm:
        if work.get("device") == "cuda":
            warm.pipeline.to("cuda")
        return warm

    def _check(self, unit: Unit) -> None:
        """Refuses to make results that would not be those that their addresses promise."""
        mine = here("cuda" if self._environment.device != "cpu" else "cpu", 0)
        mine = dataclasses.replace(mine, threads=self._environment.threads)
        wrong = self._environment.differs(mine)
        if wrong:
            raise UserError(
                f"this worker has {wrong}; its results would not be the same bit for bit.",
                where=worker_name(),
                remedy="Use workers of one kind, with the same versions.",
            )
        from vqdq.models.shards import content_digest  # heavy: diffusers

        pair = (unit.work["model"], unit.work["digest"])
        if pair not in self._checked and content_digest(pair[0]) != pair[1]:
            raise UserError(
                "is another model here than where the sweep was started.",
                where=f"{pair[0]} on {worker_name()}",
                remedy="Copy the same files to every computer, or use a shared folder.",
            )
        self._checked.add(pair)


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    """A unit under way."""

    bench: Bench
    work: Mapping[str, Any]
    scratch: Path
    left: Sequence[str]
    keep: Callable[..., None]
    failed: Callable[[str, BaseException], None]
    report: Report

    def recipe(self) -> Recipe:
        return Recipe.from_json(self.work["recipe"])

    def teacher(self) -> Any:
        from vqdq.models.teacher import Teacher  # heavy: diffusers

        pipeline = self.bench.pipeline(self.work, self.report).pipeline
        return Teacher(self.work["model"], pipeline=pipeline)

    def params(self) -> Any:
        from vqdq.calibration import CalibrationParams

        return CalibrationParams.from_json(self.work["params"])

    def fetched(self, name: str, file: str) -> Path:
        target = self.scratch / file
        target.parent.mkdir(parents=True, exist_ok=True)
        return self.bench.store.fetch(name, target)


def _record(task: _Task) -> None:
    from vqdq.models import shards  # heavy: diffusers

    start = int(task.work["start"])
    calls = task.scratch / "calls"
    path = shards.record_batch(task.teacher(), task.params(), start, calls, report=task.report)
    task.keep(task.left[0], {}, path)


def _statistics(task: _Task) -> None:
    """Each group's file is a result of its own, so that a layer's worker fetches only its own."""
    from vqdq.models import shards  # heavy: diffusers
    from vqdq.models.kept_calls import batch_file

    for start, name in task.work["records"].items():
        task.fetched(name, f"calls/{batch_file(int(start))}")
    calls, groups = task.scratch / "calls", task.scratch / "groups"
    groups.mkdir()
    layers = set(task.work["layers"])
    entries = shards.keep_part(
        task.teacher(), task.params(), layers, groups, calls=calls, report=task.report
    )
    name = task.left[0]
    for number, entry in enumerate(entries):
        part = name.replace("statistics/", "moments/") + f".{number}"
        if task.bench.store.receipt(part) is None:  # else a worker died after it
            task.bench.store.keep(part, {}, groups / entry["file"])
        entry["result"] = part
    task.keep(name, {"groups": entries})


def _smoothing(task: _Task) -> None:
    from vqdq.models import shards  # heavy: diffusers

    path = shards.smoothing_file(
        task.teacher(), task.work["model"], task.recipe(), task.scratch, report=task.report
    )
    task.keep(task.left[0], {}, path)


def _encode(task: _Task) -> None:
    from vqdq.models import shards  # heavy: diffusers

    work = task.work
    names = {layer: name for layer, name in work["layers"].items() if name in task.left}
    recipe = task.recipe()
    statistics = None
    if work["statistics"]:
        statistics = task.scratch / "statistics"
        statistics.mkdir()
        entries = [
            entry
            for part in work["statistics"]
            for entry in (task.bench.store.receipt(part) or {"groups": []})["groups"]
            if not names.keys().isdisjoint(entry["layers"])
        ]
        for number, entry in enumerate(entries):
            entry["file"] = f"{number:05d}.safetensors"
            task.fetched(entry["result"], f"statistics/{entry['file']}")
        assert recipe.calibration is not None
        shards.write_parts(statistics, recipe.calibration, entries)
    smoothing = task.fetched(work["smoothing"], "smoothing") if work["smoothing"] else None

    def kept(layer: str, path: Path) -> None:
        task.keep(names[layer], {"layer": layer}, path)

    shards.encode_layers(
        work["model"],
        recipe,
        names,
        task.scratch,
        calibration=statistics,
        smoothing=smoothing,
        report=task.report,
        kept=kept,
    )


def _model(task: _Task) -> None:
    from vqdq.models import shards  # heavy: diffusers

    work = task.work
    layers = {
        layer: task.fetched(name, f"layers/{number:05d}.safetensors")
        for number, (layer, name) in enumerate(work["layers"].items())
    }
    smoothing = task.fetched(work["smoothing"], "smoothing") if work["smoothing"] else None
    folder = task.scratch / "model"
    result = shards.assemble(
        work["model"], task.recipe(), layers, folder, smoothing=smoothing, report=task.report
    )
    path = task.scratch / "model.tar"
    shared = shared_files(folder, work["model"])
    pack(folder, path, leave=shared)
    facts = {
        "bytes_of_weights": result.measured_bytes,
        "bits_per_weight": result.bits_per_weight,
        "reference_bytes": result.plan.reference_bytes,
        "shared": list(shared),
    }
    task.keep(task.left[0], facts, path)


def _draw(task: _Task) -> None:
    work = task.work
    warm: Warm | None = None
    for asked in work["pictures"]:
        image = asked["image"]
        try:
            path = task.scratch / f"{image.partition('/')[2]}.png"
            if image in task.left:
                if warm is None:
                    opened = task.bench.variant if work["made"] else task.bench.pipeline
                    warm = opened(work, task.report)
                _picture(task, warm, asked, path)
            if asked["score"] in task.left:
                path = task.bench.store.fetch(image, path)
                _score(task, asked, path)
        except _EXPECTED as error:
            for name in (image, asked["score"]):
                if name in task.left and task.bench.store.receipt(name) is None:
                    task.failed(name, error)


def _picture(task: _Task, warm: Warm, asked: Mapping[str, Any], path: Path) -> None:
    from vqdq.jobs.draw import draw

    request = GenerateRequest(
        model=task.work["model"],
        prompt=asked["prompt"],
        seed=asked["seed"],
        steps=asked["steps"],
        guidance=asked["guidance"],
    )
    drawn = draw(warm, request, path, report=task.report)
    task.keep(asked["image"], {"picture": drawn.picture}, path)


def _score(task: _Task, asked: Mapping[str, Any], path: Path) -> None:
    from PIL import Image

    from vqdq.metrics import images
    from vqdq.metrics.flip import flip

    other = task.fetched(asked["reference"], "reference.png")
    with Image.open(path) as mine, Image.open(other) as reference:
        first, second = reference.convert("RGB"), mine.convert("RGB")
    found = images.compare(first, second).to_json()
    values: dict[str, Any] = {"identical": found["changed"] == 0}
    for name in task.work["metrics"]:
        value = flip(first, second).mean if name == "flip" else found[_JSON_NAMES[name]]
        values[name] = value
    task.keep(asked["score"], {"score": values})


_JSON_NAMES = {"psnr": "psnr_db", "ssim": "ssim"}
_WAYS: Mapping[str, Callable[[_Task], None]] = {
    "record": _record,
    "statistics": _statistics,
    "smoothing": _smoothing,
    "encode": _encode,
    "model": _model,
    "draw": _draw,
}


@contextmanager
def _threads(count: int) -> Generator[None]:
    """The given number of threads inside the block: sums are added up in the same order."""
    import numba
    import torch

    before, compiled = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, compiled))
    try:
        yield
    finally:
        torch.set_num_threads(before)
        numba.set_num_threads(compiled)
