"""Writing a report: HTML, CSV and JSON beside each other, each by one rename."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.durable import write_text
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import BlindRequest, CompareRequest, GridRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.votes import VoteStore
from vqdq.report import compared, gridded, voted
from vqdq.report.content import Content
from vqdq.report.document import Album, document
from vqdq.spreadsheet import cell

REPORTED = ("compare", "grid", "blind")
"""Kinds of runs that have a report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The files of a report, and how many pictures there was no room for."""

    html: Path
    csv: Path
    json: Path
    left_out: int


def write(
    run: RunRecord,
    target: Path,
    *,
    data: str = "",
    votes: VoteStore | None = None,
    budget: int | None = None,
) -> Written:
    """Returns the files of a run's report: `target` and, beside it, CSV and JSON.

    Args:
        target: the HTML file; data: what CSV and JSON are called, "" for the same name.
        votes: of the workspace, for a blind test.
        budget: bytes of pictures in the file.

    Raises:
        UserError: it has no report, is not finished, its test is not opened, or a full disk.
    """
    album = Album() if budget is None else Album(budget=budget)
    made = _content(run, votes, album)
    page = document(made.title, made.subtitle, made.sections, album=album)
    stem = target.with_name(data) if data else target.with_suffix("")
    table, values = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.json")
    told = json.dumps(_finite(made.values), indent=1, ensure_ascii=False, allow_nan=False)
    with disk_faults(target):
        write_text(table, made.table or to_csv(made.rows))
        write_text(values, told + "\n")
        write_text(target, page)
    return Written(html=target, csv=table, json=values, left_out=album.left_out)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as CSV; a text that a spreadsheet would compute is marked as text."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _content(run: RunRecord, votes: VoteStore | None, album: Album) -> Content:
    request = run.request
    if isinstance(request, CompareRequest):
        return compared.content(run, request, album)
    if isinstance(request, GridRequest):
        return gridded.content(run, request, album)
    if isinstance(request, BlindRequest) and votes is not None:
        return voted.content(run, request, votes, album)
    raise UserError(
        "has no report.",
        where=run.id,
        remedy="Comparisons, grids and blind tests of a workspace have one.",
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]  # pyright: ignore
    return value
