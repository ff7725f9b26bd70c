"""The models that were opened in a workspace, newest first; one small file that anybody can read.

An entry whose folder is gone stays listed and says so: the disk may only be unplugged.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from vqdq.jobs.faults import disk_faults
from vqdq.jobs.run import read_json, write_json

FILE = "recent-models.json"
MOST = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Recent:
    """A model that was opened.

    Attributes:
        model: as it was typed; `title`: for people.
        folder: where its files are, of a hub id too.
        parameters: of its denoiser.
        opened: seconds since the epoch.
    """

    model: str
    title: str
    folder: str
    parameters: int
    opened: float

    @property
    def missing(self) -> bool:
        """True when its files are not where they were."""
        return not os.path.exists(self.folder)


class Recents:
    """The list of one workspace; safe for threads."""

    def __init__(self, workspace: Path) -> None:
        self._path = workspace / FILE
        self._lock = threading.Lock()

    def entries(self) -> tuple[Recent, ...]:
        """Returns the models, newest first; nothing of a damaged file."""
        values: Any = (read_json(self._path) or {}).get("models", [])
        found: list[Recent] = []
        for value in cast(list[Any], values) if isinstance(values, list) else []:
            with contextlib.suppress(TypeError, KeyError, ValueError):
                found.append(_entry(value))
        return tuple(sorted(found, key=lambda entry: -entry.opened))

    def find(self, model: str) -> Recent | None:
        """Returns the entry of a model, or None."""
        return next((entry for entry in self.entries() if entry.model == model), None)

    def add(self, *, model: str, title: str, folder: str, parameters: int) -> None:
        """Puts a model first; the oldest leave."""
        new = Recent(
            model=model, title=title, folder=folder, parameters=parameters, opened=time.time()
        )
        with self._lock, disk_faults(self._path):
            others = [entry for entry in self.entries() if entry.model != model]
            kept = [asdict(entry) for entry in (new, *others)][:MOST]
            write_json(self._path, {"models": kept})

    def remove(self, model: str) -> None:
        """Takes a model off the list; its files stay."""
        with self._lock, disk_faults(self._path):
            kept = [asdict(entry) for entry in self.entries() if entry.model != model]
            write_json(self._path, {"models": kept})


def _entry(value: Mapping[str, Any]) -> Recent:
    return Recent(
        model=str(value["model"]),
        title=str(value["title"]),
        folder=str(value["folder"]),
        parameters=int(value["parameters"]),
        opened=float(value["opened"]),
    )
