"""What the worker's process runs: one request to its job, with pipelines and kernels kept warm."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vqdq.kernels
from vqdq.errors import UserError
from vqdq.jobs import pace
from vqdq.jobs.requests import Request
from vqdq.jobs.store import Workspace
from vqdq.jobs.warm import WarmPipelines
from vqdq.params import Params
from vqdq.progress import Report
from vqdq.recipe import load_recipe

QUIET_SECONDS = 15.0  # after the last run, before this computer's pace is measured

_JOBS = {
    "compress": "vqdq.jobs.compress",
    "plan": "vqdq.jobs.plan",
    "generate": "vqdq.jobs.generate",
    "compare": "vqdq.jobs.compare",
    "inspect": "vqdq.jobs.inspect",
    "blame": "vqdq.jobs.blame",
    "grid": "vqdq.jobs.grid",
    "blind": "vqdq.jobs.pairs",
}
"""Kind of request -> the module whose `execute` does it; imported when first needed."""


class Engine:
    """Executes requests in the worker's process.

    Args:
        workspace: where names of compressed models are looked up.
        warm: models to load while idle.
    """

    def __init__(self, workspace: Workspace, warm: Sequence[str] = ()) -> None:
        self._locate = workspace.locate
        self._cache = WarmPipelines(workspace.locate)
        self._to_warm = list(warm)
        self._kernels_cold = True
        self._workspace = workspace.path
        self._to_measure: list[tuple[str, Params]] | None = None
        self._worked = time.monotonic()

    def execute(self, request: Request, folder: Path, *, report: Report) -> Mapping[str, Any]:
        """Returns the result of a request; see `vqdq.jobs.results`."""
        job = importlib.import_module(_JOBS[request.kind])
        try:
            return job.execute(request, folder, report=report, cache=self._cache)
        finally:
            self._worked = time.monotonic()

    def idle(self) -> bool:
        """Returns True after one step of preparation: a model loaded, or the kernels compiled."""
        if self._to_warm:
            model = self._to_warm.pop(0)
            try:
                self._cache.get(model)
            except UserError as error:  # the run that needs it will tell the person
                print(f"cannot warm {model}: {error}", flush=True)
            return True
        if self._kernels_cold:
            self._kernels_cold = False
            vqdq.kernels.warm()
            return True
        if time.monotonic() - self._worked < QUIET_SECONDS:
            return False  # somebody is at work here: measuring now would be in their way
        return self._measure()

    def _measure(self) -> bool:
        """Measures the pace of one method of the shipped recipes; False when all were measured."""
        from vqdq.models.sources import presets_folder

        if self._to_measure is None:
            folder = presets_folder()
            recipes = [load_recipe(path, folder) for path in sorted(folder.glob("*.json"))]
            self._to_measure = pace.wanted(recipes)
        if not self._to_measure:
            return False
        method, params = self._to_measure.pop(0)
        try:
            found = pace.measure(method, params, self._workspace)
            known = dict(pace.read(self._workspace).known)
            name = pace.key(method, params)
            if pace.SAVING not in known:
                known[pace.SAVING] = pace.measure_saving(self._workspace)
            if pace.CALL not in known:
                known |= pace.measure_running()
            known[name] = pace.faster(known.get(name), found)
            pace.keep(self._workspace, pace.Paces(known=known))
        except (UserError, OSError) as error:  # not installed, or no room on the disk
            print(f"cannot measure {method}: {error}", flush=True)
        return True
