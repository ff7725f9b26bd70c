"""Draw one picture; the same function serves the page and the command line."""

from __future__ import annotations

from pathlib import Path

from vqdq.jobs.draw import draw
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.results import GenerateResult
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Report, silent


def execute(
    request: GenerateRequest,
    folder: Path,
    *,
    report: Report = silent,
    cache: WarmPipelines,
    name: str = "picture.png",
) -> GenerateResult:
    """Returns what was drawn, after writing `name` into `folder`.

    Raises:
        UserError: the model cannot be opened or the picture cannot be written.
    """
    warm = cache.get(request.model, setting=request.setting, device=request.device, report=report)
    drawn = draw(warm, request, folder / name, report=report)
    return GenerateResult(
        **drawn.picture,
        model=request.model,
        prompt=request.prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        notice=drawn.notice,
    )
