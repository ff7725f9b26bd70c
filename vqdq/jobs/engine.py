"""What the worker's process runs: one request to its job, with pipelines and kernels kept warm."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vqdq.kernels
from vqdq.errors import UserError
from vqdq.jobs.requests import Request
from vqdq.jobs.store import Workspace
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Report

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

    def execute(self, request: Request, folder: Path, *, report: Report) -> Mapping[str, Any]:
        """Returns the result of a request; see `vqdq.jobs.results`."""
        job = importlib.import_module(_JOBS[request.kind])
        return job.execute(request, folder, report=report, cache=self._cache)

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
        return False
