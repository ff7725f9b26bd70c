"""What the worker's process runs: one request to its job, with pipelines and kernels kept warm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import vqdq.kernels
from vqdq.errors import UserError
from vqdq.jobs import compare, compress, generate, inspect, plan
from vqdq.jobs.requests import (
    CompareRequest,
    CompressRequest,
    GenerateRequest,
    PlanRequest,
    Request,
)
from vqdq.jobs.store import Workspace
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Report


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
        match request:
            case CompressRequest():
                found = compress.execute(request, folder, report=report, cache=self._cache)
            case PlanRequest():
                found = plan.execute(request, folder, report=report, cache=self._cache)
            case GenerateRequest():
                found = generate.execute(request, folder, report=report, cache=self._cache)
            case CompareRequest():
                found = compare.execute(request, folder, report=report, cache=self._cache)
            case _:
                found = inspect.execute(request, folder, report=report, cache=self._cache)
        return cast(Mapping[str, Any], found)

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
