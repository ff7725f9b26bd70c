"""The floor: full precision against itself, so that a number can be held against nothing.

Twice. Drawn again in the same way: on one machine that should be equal in every bit. And drawn
with the denoiser's products rounded to 16 bits, which is how most people run such a model anyway:
what that alone changes is the smallest difference that can mean something.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vqdq.jobs import distance
from vqdq.jobs.draw import Drawn, draw
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.results import Distance, Floor
from vqdq.jobs.warm import Warm
from vqdq.progress import Event, Report

_KNOWN: WeakKeyDictionary[object, dict[GenerateRequest, Floor]] = WeakKeyDictionary()
"""Pipeline -> picture -> its floor; it leaves with the pipeline."""


def measure(
    warm: Warm,
    request: GenerateRequest,
    reference: Drawn,
    path: Path,
    reports: Sequence[Report],
) -> Floor:
    """Returns the floor of one picture of a model, or the one that is known of it.

    Args:
        reference: the picture as it was drawn; `path`: of a file that is written and removed.
        reports: of each drawing; two of them draw it a second time in the same way, too.
    """
    known = _KNOWN.get(warm.pipeline, {}).get(request)
    if known is not None and len(reports) <= 1 + (known["repeat"] is not None):
        return Floor(
            repeat=known["repeat"], rounding=known["rounding"], dtype=known["dtype"], seconds=0.0
        )
    from vqdq.models.denoisers import denoiser  # heavy: diffusers

    start = time.perf_counter()
    module = denoiser(warm.pipeline)[1]
    dtype = rounding_dtype(module)
    again = dataclasses.replace(warm, label=f"{warm.label} again")
    coarse = dataclasses.replace(warm, label=f"{warm.label} with 16-bit rounding")

    def against(drawn: Drawn) -> Distance:
        latents = reference.latents, drawn.latents
        return distance.between(reference.image, drawn.image, latents)[0]

    try:
        told = [_unseen(report) for report in reports]
        twin = draw(again, request, path, report=told[0]) if len(told) > 1 else None
        capture = rounded(module, dtype)
        other = draw(coarse, request, path, report=told[-1], capture=capture)
    finally:
        path.unlink(missing_ok=True)
    found = Floor(
        repeat=None if twin is None else against(twin),
        rounding=against(other),
        dtype=str(dtype).removeprefix("torch."),
        seconds=time.perf_counter() - start,
    )
    _KNOWN.setdefault(warm.pipeline, {})[request] = found
    return found


def _unseen(report: Report) -> Report:
    """Returns `report` without previews: the file is gone in a moment."""

    def told(event: Event) -> None:
        report(dataclasses.replace(event, preview=None))

    return told


def rounding_dtype(module: nn.Module) -> torch.dtype:
    """Returns another 16-bit type than the module computes in: float16 only for a bfloat16 one."""
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    return torch.float16 if first is not None and first.dtype == torch.bfloat16 else torch.bfloat16


@contextmanager
def rounded(module: nn.Module, dtype: torch.dtype) -> Generator[None]:
    """Lets `module` multiply in `dtype` (autocast) and answer in its own type; restores it."""
    first = next(module.parameters())
    forward, had = module.forward, "forward" in vars(module)

    def coarse(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(first.device.type, dtype=dtype):
            answer = forward(*args, **kwargs)
        if isinstance(answer, tuple):
            parts = cast(tuple[torch.Tensor, ...], answer)
            return tuple(part.to(first.dtype) for part in parts)
        answer.sample = answer.sample.to(first.dtype)
        return answer

    module.forward = coarse
    try:
        yield
    finally:
        if had:
            module.forward = forward
        else:
            del module.forward
