"""What a report is made from: the folder of a run, or one that `vqdq compare` or `grid` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.jobs.requests import request_from_json
from vqdq.jobs.run import RunRecord, read_json


def open_run(folder: Path) -> RunRecord:
    """Returns the run whose files lie in `folder`.

    Raises:
        UserError: there is none, or it did not finish.
    """
    if not folder.is_dir():
        raise UserError(
            "there is no such folder.", where=str(folder), remedy="Name a run, or its folder."
        )
    content = read_json(folder / "run.json")
    result = read_json(folder / "result.json")
    if content is None:
        content, result = _of_command(folder)
    if content is None or not isinstance(content.get("request"), dict):
        raise UserError(
            "holds no run.",
            where=str(folder),
            remedy="Name the folder of a run, or one that vqdq compare or vqdq grid wrote.",
        )
    request = request_from_json(cast(dict[str, Any], content["request"]))
    if result is None:
        raise UserError("has no result yet.", where=str(folder), remedy="Let it finish first.")
    stamp = (folder / "result.json").stat().st_mtime if content.get("id") else 0.0
    return RunRecord(
        id=str(content.get("id") or folder.name),
        kind=request.kind,
        state=str(content.get("state") or "done"),
        request=request,
        created=float(content.get("created") or 0.0),
        started=content.get("started"),
        finished=content.get("finished") or stamp,
        stage="",
        done=0,
        total=0,
        message="",
        preview=None,
        eta_seconds=None,
        seconds=float(result.get("seconds") or 0.0),
        cancelling=False,
        error=None,
        folder=folder,
        result=result,
        name=str(content.get("name") or ""),
    )


def _of_command(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Request and result as the command line keeps them: one file."""
    for name in ("report.json", "grid.json"):
        values = read_json(folder / name)
        if values is not None:
            return {"request": values.get("request")}, values
    return None, None
