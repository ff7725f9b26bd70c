"""What a compression leaves in its run's folder just before the model gets its name.

A model is published by one rename, but the run ends later: the model is opened to see how it is
computed, and the end is written. A process killed in between left a finished model and an
unfinished run. The note tells the two belong together, so that the run is resumed with this model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from vqdq.durable import sha256, write_text
from vqdq.jobs.requests import CompressRequest, Request
from vqdq.jobs.results import CompressResult
from vqdq.jobs.run import read_json
from vqdq.places import expanded

FILE = "made.json"


def keep(folder: Path, final: Path, result: CompressResult) -> None:
    """Writes the note, on the disk before the model has its name.

    Args:
        folder: of the run.
        final: the finished model under the name that it is made under.
        result: without the arithmetic, which is measured of the published model.
    """
    note = {"sums": _sums(final), "result": result}
    write_text(folder / FILE, json.dumps(note, ensure_ascii=False, allow_nan=False))


def kept(folder: Path, request: Request) -> CompressResult | None:
    """Returns what a run of `request` noted, if its model is the one that has the name now.

    It is told by its list of checksums, which names every byte: device and inode numbers change
    with a restart on some file systems, and with a copy of the workspace.
    """
    note = read_json(folder / FILE)
    if note is None or not isinstance(request, CompressRequest):
        return None
    result: object = note.get("result")
    if not isinstance(result, dict):
        return None
    values = cast(dict[str, Any], result)
    if not CompressResult.__required_keys__ <= values.keys():
        return None  # of an earlier version
    sums = _sums(expanded(request.output))
    return cast(CompressResult, values) if sums and sums == note.get("sums") else None


def _sums(model: Path) -> str:
    """The digest of a model's list of checksums; "" for what is no finished model."""
    from vqdq.models.checkpoint import SUMS  # heavy: diffusers

    path = model / SUMS
    return sha256(path) if path.is_file() else ""
