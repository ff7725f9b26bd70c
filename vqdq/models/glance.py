"""What a reference to a model seems to be, told while it is typed: no download, no weights.

A few names of one folder are looked at, nothing else, so that every key press may ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vqdq.models.download import INDEX, is_hub_id
from vqdq.models.sources import DEMO
from vqdq.places import expanded

Kind = Literal["empty", "demo", "folder", "file", "hub", "on the way", "fault"]
SUGGESTIONS = 8
_SINGLE = ".safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_ENTRIES = 2000  # of one folder that are looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class Glance:
    """What a reference is.

    Attributes:
        kind: "on the way" is a path that leads somewhere, but not to a model yet.
        words: one sentence about it.
        ready: it is worth trying to open it.
        remedy: what to do where it is not.
        suggestions: paths that go on from what was typed: folders, models and files.
    """

    kind: Kind
    words: str
    ready: bool = False
    remedy: str = ""
    suggestions: tuple[str, ...] = ()


def glance(text: str) -> Glance:
    """Returns what `text` is, from its form and one folder's names; never raises for bad input."""
    typed = text.strip()
    if not typed:
        return Glance(kind="empty", words="Nothing is downloaded before you press Open.")
    if typed == DEMO:
        return Glance(kind="demo", words="The model that comes with VQDQ.", ready=True)
    file, marked, base = typed.partition(f"{_SINGLE}@")
    if marked and base:
        seen = glance(f"{file}{_SINGLE}")
        return replace(seen, words=f"{seen.words} {base} completes it.") if seen.ready else seen
    try:
        path = expanded(typed)
        there = path.exists()
        if there:
            return _path(path)
        if is_hub_id(typed):
            return _hub(typed)
        return _going_on(path, typed)
    except PermissionError as error:
        return _denied(error, typed)
    except (OSError, ValueError):  # a name too long, a null byte
        return Glance(
            kind="fault", words="This is no path and no hub id.", remedy="Check what you typed."
        )


def _path(path: Path) -> Glance:
    if path.is_dir():
        if (path / INDEX).is_file():
            return Glance(kind="folder", words="A diffusers folder.", ready=True)
        inside = _suggestions(path, "")
        return Glance(
            kind="on the way",
            words=f"A folder without {INDEX}: no diffusers model.",
            remedy="Go on to the model's own folder." if inside else "Name another folder.",
            suggestions=inside,
        )
    if path.suffix.lower() in _PICKLES:
        return Glance(
            kind="fault",
            words="A pickled checkpoint can run any program when it is opened; it is refused.",
            remedy="Use its safetensors version.",
        )
    if path.suffix.lower() != _SINGLE:
        return Glance(
            kind="fault",
            words="This file is no model.",
            remedy="Name a .safetensors file or the folder of a model.",
        )
    if not os.access(path, os.R_OK):
        return _denied(PermissionError(str(path)), str(path))
    return Glance(
        kind="file",
        words="A single-file checkpoint. What it lacks comes from what follows an @, else from its"
        " family's folder on the hub; without either it can be compressed, but not draw.",
        ready=True,
    )


def _hub(typed: str) -> Glance:
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = typed.partition("@")
    found = try_to_load_from_cache(name, INDEX, revision=revision or None)
    cached = isinstance(found, str)
    return Glance(
        kind="hub",
        words="A hub id, in the cache of this computer."
        if cached
        else "A hub id. Opening it downloads its safetensors files.",
        ready=True,
    )


def _going_on(path: Path, typed: str) -> Glance:
    parent = path.parent
    if not parent.is_dir() or (not path.is_absolute() and os.sep not in typed):
        near = _suggestions(Path(), typed) if os.sep not in typed else ()
        return Glance(
            kind="on the way" if near else "fault",
            words="There is no such folder." if os.sep in typed else "Not a model's name yet.",
            remedy="Type a path, or a hub id such as owner/name.",
            suggestions=near,
        )
    found = _suggestions(parent, path.name)
    return Glance(
        kind="on the way" if found else "fault",
        words="" if found else f"There is nothing called {path.name} here.",
        remedy="" if found else "Check the path.",
        suggestions=found,
    )


def _suggestions(folder: Path, start: str) -> tuple[str, ...]:
    """Paths in a folder that go on from `start`: models first, then files, then other folders."""
    try:
        entries = sorted(_names(folder, start))
    except OSError:
        return ()
    ranked = sorted(entries, key=lambda item: (item[0], item[1].lower()))
    return tuple(str(folder / name) for _, name in ranked[:SUGGESTIONS])


def _names(folder: Path, start: str) -> Iterable[tuple[int, str]]:
    with os.scandir(folder) as found:
        for number, entry in enumerate(found):
            if number >= _ENTRIES:
                return
            if not entry.name.lower().startswith(start.lower()) or entry.name.startswith("."):
                continue
            if entry.is_dir():
                model = os.path.isfile(os.path.join(entry.path, INDEX))
                yield (0 if model else 2), entry.name
            elif entry.name.endswith(_SINGLE):
                yield 1, entry.name


def _denied(error: PermissionError, typed: str) -> Glance:
    return Glance(
        kind="fault",
        words=f"{error.filename or typed} may not be read.",
        remedy="Ask for permission, or copy the model elsewhere.",
    )
