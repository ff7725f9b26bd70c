"""A single file, opened: what completes it is found, and the import is made, or found again."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from vqdq.durable import publish
from vqdq.errors import UserError
from vqdq.models.builtin import NAME, configs_folder
from vqdq.models.denoisers import DENOISERS
from vqdq.models.download import download, is_hub_id
from vqdq.models.importing import (
    FACTS,
    INDEX,
    Base,
    import_folder,
    is_component,
    kept_imports,
    parts_of,
    write_import,
)
from vqdq.models.single_file import SingleFile, open_single_file
from vqdq.models.sources import DEMO, demo_folder
from vqdq.models.texts import read_object
from vqdq.models.weights import unreadable
from vqdq.places import expanded
from vqdq.progress import Report, silent


def imported(path: Path, base: str, report: Report) -> tuple[Path, str]:
    """Returns the folder of a single file, and what completed it; imports it when it is not there.

    Args:
        base: a folder or a hub id; "" takes the import that exists, else the family's hub id, else
            the built-in configs.

    Raises:
        UserError: a fault of the file, no base, or one that does not fit.
    """
    file = open_single_file(path)
    kept = [] if base else kept_imports(file)
    if len(kept) == 1:
        return kept[0], completed_by(kept[0])
    chosen = _base(file, base, report)
    folder = import_folder(file, chosen)
    if not (folder / FACTS).is_file():
        write_import(file, chosen, folder, report)
    return folder, completed_by(folder)


def import_file(
    path: str | Path, output: str | Path, *, base: str | Path | None = None, report: Report = silent
) -> Path:
    """Writes a single file as a diffusers folder of its own; returns the folder.

    The folder appears by one rename; what an interrupted run finished is kept beside it.

    Raises:
        UserError: the output exists, a fault of the file, no base, or one that does not fit.
    """
    target = expanded(output).absolute()
    if target.exists() or target.is_symlink():
        raise UserError(
            "already exists; nothing was changed.",
            where=str(target),
            remedy="Remove it or choose another output folder.",
        )
    file = open_single_file(expanded(path).absolute())
    chosen = _base(file, "" if base is None else str(base), report)
    kept = import_folder(file, chosen)
    part = target.with_name(f"{target.name}.partial-{kept.name[-25:]}")
    write_import(file, chosen, part, report)
    publish(part, target)
    return target


def completed_by(folder: Path) -> str:
    """Returns what completed an imported folder."""
    facts = read_object(folder / FACTS)
    revision = facts.get("base_revision")
    return f"{facts.get('base')}@{revision}" if revision else str(facts.get("base"))


def _base(file: SingleFile, given: str, report: Report) -> Base:
    reference = given or file.hub_id
    local = demo_folder() if reference == DEMO else expanded(reference)
    revision = ""
    name = reference
    if is_hub_id(reference) and not (given and os.path.exists(local)):
        try:
            snapshot = download(reference, weights_of=(), report=report)
        except UserError as error:
            if given:
                raise
            built_in, why = _built_in(file)
            if built_in is None:
                raise _incomplete(file, why) from error
            return built_in
        local, name, revision = snapshot.folder, snapshot.name, snapshot.revision

        def fetch(weights_of: Collection[str], told: Report) -> Path:
            pinned = f"{name}@{revision}"
            return download(pinned, weights_of=weights_of, report=told).folder

    else:
        local = local.absolute()
        name = str(local)

        def fetch(weights_of: Collection[str], told: Report) -> Path:
            del weights_of, told
            return local

    return _checked(local, name, revision, fetch)


def _built_in(file: SingleFile) -> tuple[Base | None, str]:
    """Returns the built-in configs as a base, or None and why they are none for this file."""
    folder = configs_folder(file.family, file.weights.tensors)
    if folder is None:
        return None, f"no configs of {file.family} are built in"

    def fetch(weights_of: Collection[str], told: Report) -> Path:
        del weights_of, told
        return folder

    base = replace(_checked(folder, NAME, "", fetch), built_in=True)
    try:
        parts_of(file, base)
    except UserError as error:
        return None, f"the built-in configs are of another size ({error.what.rstrip('.')})"
    return base, ""


def _checked(
    local: Path, name: str, revision: str, fetch: Callable[[Collection[str], Report], Path]
) -> Base:
    """Returns a folder as a base.

    Raises:
        UserError: it is no model, or a fault of its texts.
    """
    remedy = "Name the folder of a diffusers pipeline of the same family, or a hub id, with --base."
    try:
        index = read_object(local / INDEX, remedy=remedy)
        denoiser = next((name for name in DENOISERS if is_component(index.get(name))), None)
        if denoiser is None:
            raise UserError("has no unet and no transformer.", where=name, remedy=remedy)
        config = read_object(local / denoiser / "config.json", remedy=remedy)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"is no diffusers model: there is no {os.path.relpath(str(error.filename), local)}.",
            where=name,
            remedy=remedy,
        ) from error
    except OSError as error:
        raise unreadable(local, error) from error
    return Base(
        name=name,
        revision=revision,
        folder=local,
        index=index,
        denoiser=denoiser,
        config=config,
        fetch=fetch,
    )


def _incomplete(file: SingleFile, why: str) -> UserError:
    """Returns what to say of a file that nothing completes.

    Args:
        why: the built-in configs do not, either.
    """
    return UserError(
        f"holds {', '.join(file.contents)} of a {file.family} model; tokenizers, scheduler and "
        f"configs are missing, {file.hub_id} is neither in the cache nor in reach, and {why}.",
        where=str(file.path),
        remedy=f"Type `vqdq import {file.path.name} --base FOLDER` with a diffusers folder of the "
        f"same family, or run `hf download {file.hub_id}` where there is a connection.",
    )
