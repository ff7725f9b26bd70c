"""The compressed models of a workspace: what the page offers as variants, found by looking at
the folders.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.run import RunRecord, read_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A compressed model, as its own `vqdq.json` describes it; None where that says nothing.

    Attributes:
        name: unique in the workspace; valid as `variant`.
        path: its diffusers folder.
        created: seconds since the epoch.
        run_id: the run that made it, or None when it was deleted.
        model: what it was made from.
        recipe: name of the recipe; `title`: its name for people.
        bits_per_weight: true bits over the quantized layers.
        measured_bytes, reference_bytes: weight file of the denoiser, compressed and in 16 bits.
    """

    name: str
    path: Path
    created: float
    run_id: str | None = None
    model: str | None = None
    recipe: str | None = None
    title: str | None = None
    bits_per_weight: float | None = None
    measured_bytes: int | None = None
    reference_bytes: int | None = None


def partial(output: Path) -> Path:
    """Returns the folder that holds the unfinished work of `output`."""
    return output.with_name(output.name + ".partial")


def entries(folder: Path, done: Sequence[RunRecord]) -> tuple[ModelEntry, ...]:
    """Returns the models in `folder`, newest first, with what their finished runs know."""
    found: list[ModelEntry] = []
    by_output = {
        Path(run.request.output): run
        for run in reversed(done)
        if isinstance(run.request, CompressRequest)
    }
    for path in folder.iterdir():
        index = path / "model_index.json"
        if not _NAME.fullmatch(path.name) or path.name.endswith(".partial") or not index.is_file():
            continue
        facts = read_json(path / "vqdq.json") or {}
        recipe = read_json(path / "recipe.json") or {}
        run = by_output.get(path)
        entry = ModelEntry(
            name=path.name,
            path=path,
            created=index.parent.stat().st_mtime,
            run_id=run.id if run is not None else None,
            model=facts.get("base_model") if run is None else _model_of(run),
            recipe=facts.get("recipe"),
            title=recipe.get("title") or facts.get("recipe"),
            bits_per_weight=facts.get("bits_per_weight"),
            measured_bytes=facts.get("weight_bytes"),
            reference_bytes=facts.get("reference_bytes"),
        )
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: (-entry.created, entry.name)))


def _model_of(run: RunRecord) -> str | None:
    return run.request.model if isinstance(run.request, CompressRequest) else None


def locate(folder: Path, reference: str) -> str:
    """Returns the path of the model called `reference` in `folder`, or `reference` itself."""
    if not _NAME.fullmatch(reference) or reference == "demo":
        return reference
    path = folder / reference
    return str(path) if (path / "model_index.json").is_file() else reference


def discard(folder: Path) -> None:
    """Removes a folder at once: renamed first, so that a killed process leaves no half of it."""
    if not folder.exists():
        return
    trash = folder.with_name(f".trash-{secrets.token_hex(4)}")
    folder.rename(trash)
    shutil.rmtree(trash)
