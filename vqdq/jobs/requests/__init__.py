"""What can be asked of the worker: frozen requests that validate themselves and travel as JSON.

A request holds everything that decides its result, so that a run can be rebuilt from its
folder. The page, the command line and Python callers build the same objects; a bad value is
refused here, before any work starts. A new kind of job is one file here and one in `vqdq.jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

from vqdq.errors import UserError
from vqdq.jobs.requests.blame import BlameRequest
from vqdq.jobs.requests.blind import BlindRequest
from vqdq.jobs.requests.checks import MAX_PROMPT_CHARACTERS, check_sampling
from vqdq.jobs.requests.compress import CompressRequest, PlanRequest
from vqdq.jobs.requests.draw import CompareRequest, GenerateRequest
from vqdq.jobs.requests.grid import Axis, GridRequest
from vqdq.jobs.requests.inspect import InspectRequest
from vqdq.params import nearest

__all__ = [
    "KINDS",
    "MAX_PROMPT_CHARACTERS",
    "Axis",
    "BlameRequest",
    "BlindRequest",
    "CompareRequest",
    "CompressRequest",
    "GenerateRequest",
    "GridRequest",
    "InspectRequest",
    "PlanRequest",
    "Request",
    "check_sampling",
    "request_from_json",
]

Request: TypeAlias = (
    CompressRequest
    | PlanRequest
    | GenerateRequest
    | CompareRequest
    | InspectRequest
    | BlameRequest
    | GridRequest
    | BlindRequest
)
_KINDS: Mapping[str, type[Request]] = {kind.kind: kind for kind in get_args(Request)}
KINDS: tuple[str, ...] = tuple(_KINDS)


def request_from_json(values: Mapping[str, Any]) -> Request:
    """Returns the request that `values` describes.

    Raises:
        UserError: an unknown kind or key (the nearest is named), a missing or a bad value.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"unknown kind of job {kind!r}.",
            where="request",
            remedy=nearest(str(kind), KINDS, "kind"),
        )
    return _KINDS[kind].from_json(values)
