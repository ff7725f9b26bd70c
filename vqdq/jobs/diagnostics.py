"""A bundle for who is asked for help: what is installed and what happened, and nothing private.

It holds no prompt, no name of a person, model or file, and no path: texts are not copied but picked
by a list of what is known to be harmless, and messages pass `log.scrub`.
"""

from __future__ import annotations

import io
import json
import re
import sqlite3
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vqdq.durable import write_bytes
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.log import FOLDER, scrub

MOST_RUNS, MOST_BYTES = 200, 400_000
_LINE_KEYS = ("time", "process", "event", "run", "kind", "state", "seconds", "code", "worker",
    "allowed")  # fmt: skip
_FRAME = re.compile(r'^\s*File ".*?((?:site-packages|vqdq)[/\\][^"]+)", line (\d+), in (\S+)')
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning))\b(.*)$")


def bundle(target: Path, workspace: Path, doctor: Mapping[str, Any]) -> Path:
    """Returns `target` after writing the zip file.

    Args:
        doctor: what `vqdq doctor --json` says.

    Raises:
        UserError: the file exists, or the disk refuses.
    """
    if target.exists():
        raise UserError(
            "already exists; nothing was changed.", where=str(target), remedy="Name a new file."
        )
    parts = {
        "doctor.json": _json(_harmless(doctor)),
        "runs.json": _json(_runs(workspace)),
        "worker.txt": "\n".join(_traces(_tail(workspace / "worker.log"))) + "\n",
    }
    for path in sorted((workspace / FOLDER).glob("*.jsonl*")):
        parts[f"log/{path.name}"] = "".join(_lines(_tail(path)))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    with disk_faults(target):
        write_bytes(target, made.getvalue())
    return target


def _json(values: object) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False)


def _harmless(value: Any) -> Any:
    """The same values with every text scrubbed."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {key: _harmless(each) for key, each in items if key != "workspace"}
    if isinstance(value, list | tuple):
        return [_harmless(each) for each in cast(list[Any], value)]
    return value


def _runs(workspace: Path) -> list[dict[str, Any]]:
    """Ids, kinds, states and times of the newest runs, and what went wrong in general words."""
    path = workspace / "index.sqlite"
    if not path.is_file():
        return []
    query = (
        "SELECT id, kind, state, created, started, finished, stage, done, total, error FROM runs"
        f" ORDER BY created DESC LIMIT {MOST_RUNS}"
    )
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            db.row_factory = sqlite3.Row
            rows = [dict(row) for row in db.execute(query)]
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        return [{"error": scrub(str(error))}]
    for row in rows:
        error = json.loads(row["error"]) if row["error"] else {}
        row["error"] = scrub(str(error.get("what", ""))) or None
    return rows


def _lines(text: str) -> list[str]:
    """Lines of the log with what is known to be harmless."""
    found: list[str] = []
    for line in text.splitlines():
        try:
            values: Any = json.loads(line)
        except (ValueError, RecursionError):  # cut at the beginning
            continue
        if isinstance(values, dict):
            entry = cast(dict[str, Any], values)
            kept = {key: entry[key] for key in _LINE_KEYS if key in entry}
            if "what" in entry:
                kept["what"] = scrub(str(entry["what"]))
            found.append(json.dumps(kept, ensure_ascii=False) + "\n")
    return found


def _traces(text: str) -> list[str]:
    """The places in the code and the kinds of errors of the worker's log, nothing else of it."""
    found: list[str] = []
    for line in text.splitlines():
        frame = _FRAME.match(line)
        if frame is not None:
            found.append(f"  {frame[1]}:{frame[2]} in {frame[3]}")
        elif (raised := _RAISED.match(line)) is not None:
            found.append(raised[1])
    return found


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - MOST_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
