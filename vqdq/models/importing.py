"""A single-file checkpoint as a diffusers folder: its own weights, and from a base what it lacks.

A single file has no tokenizer, no configs and often no text encoder. A base, a folder or a hub id
of the same family, gives those; of its weights only the components that the file does not hold are
used. The built-in configs of a published family (`builtin`) are a base without tokenizers and
weights: what neither has is missing then, and said. Each component appears by one rename, so an
interrupted import goes on with the next one.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqdq.durable import atomic, write_text
from vqdq.errors import UserError
from vqdq.models import single_file, tracing
from vqdq.models.builtin import NAME as BUILT_IN
from vqdq.models.component_files import text_files, weight_files
from vqdq.models.denoisers import skeleton
from vqdq.models.links import require_inside
from vqdq.models.single_file import SingleFile, Tensors
from vqdq.models.texts import read_object
from vqdq.models.weights import unreadable, write_weights
from vqdq.progress import Event, Report
from vqdq.recipe import METADATA
from vqdq.tensors import TensorSpec, safetensors_bytes

FACTS = "import.json"
INDEX = "model_index.json"
_ANOTHER = "Name another base with --base."
_WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What completes a single file.

    Attributes:
        name: for people; `revision`: the commit of a hub id, else "".
        folder: holds `model_index.json` and the configs, not necessarily weights.
        index: the values of `model_index.json`.
        denoiser: name of the denoiser's component.
        config: the values of the denoiser's `config.json`.
        fetch: returns the folder with the weights of the components that it is given.
        built_in: it has configs alone; what lacks in it and in the file is left out.
    """

    name: str
    revision: str
    folder: Path
    index: Mapping[str, Any]
    denoiser: str
    config: Mapping[str, Any]
    fetch: Callable[[Collection[str], Report], Path]
    built_in: bool = False


def key_of(file: SingleFile) -> str:
    """Returns what tells a file from others: a digest of its header, size and time."""
    facts = file.path.stat()
    digest = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    digest.update(file.weights.header)
    return digest.hexdigest()[:16]


def imports_folder() -> Path:
    """Returns where imports are kept: in the assets of the hub's cache (HF_HOME moves it)."""
    from huggingface_hub import cached_assets_path, constants

    return cached_assets_path(
        "vqdq", namespace="imports", subfolder="models", assets_dir=constants.HF_ASSETS_CACHE
    )


def kept_imports(file: SingleFile) -> list[Path]:
    """Returns the finished imports of a file, whatever completed them: those in which nothing is
    missing, where there are such.
    """
    stem = glob.escape(f"{file.path.stem[:60]}-{key_of(file)}-")
    found = [path.parent for path in sorted(imports_folder().glob(f"{stem}*/{FACTS}"))]
    whole = [folder for folder in found if read_object(folder / FACTS).get("base") != BUILT_IN]
    return whole or found


def import_folder(file: SingleFile, base: Base) -> Path:
    """Returns where the import of a file with a base is kept, finished or not."""
    return imports_folder() / f"{file.path.stem[:60]}-{key_of(file)}-{_digest(base)}"


def write_import(file: SingleFile, base: Base, target: Path, report: Report) -> None:
    """Writes the folder, component by component; what is there already is left as it is.

    Memory is that of the largest tensor. The facts file, written last, says that it is whole.

    Args:
        report: stage "import", in bytes; may raise `Cancelled`.

    Raises:
        UserError: file and base do not fit, a base without what is missing, or a full disk.
    """
    parts = parts_of(file, base)
    names = [name for name, value in base.index.items() if is_component(value)]
    folder = base.fetch([name for name in names if name not in parts], report)
    sizes = {name: safetensors_bytes(single_file.specs_of(parts[name]), METADATA) for name in parts}
    total, done = sum(sizes.values()), 0
    target.mkdir(parents=True, exist_ok=True)
    with _full_disk(target, total), _alone(target, report):
        for name in names:
            lacking = base.built_in and not (folder / name).is_dir()
            if not lacking and not (target / name).is_dir():
                part = target / f".{name}.{os.getpid()}.part"
                try:
                    part.mkdir()
                    _copy(base, folder, name, part, weights=name not in parts)
                    if name in parts:
                        _write(file, base, name, parts[name], part, (done, total), report)
                    part.rename(target / name)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
            done += sizes.get(name, 0)
        write_text(target / INDEX, json.dumps(base.index, indent=2) + "\n")
        facts = {
            "file": file.path.name,
            "family": file.family,
            "components": sorted(parts),
            "base": base.name,
            "base_revision": base.revision,
        }
        write_text(target / FACTS, json.dumps(facts, indent=2) + "\n")
    report(Event(stage="import", done=total, total=total, message=file.path.name))


def parts_of(file: SingleFile, base: Base) -> dict[str, Tensors]:
    """Returns the components that the file holds, by name, traced.

    Raises:
        UserError: file and base do not fit.
    """
    where = f"{base.name}/{base.denoiser}/config.json"
    ghost = skeleton(base.config, where=where)
    config = {**dict(getattr(ghost, "config", {})), **base.config}
    parts = {base.denoiser: single_file.converted_denoiser(file, ghost, config, where)}
    if is_component(base.index.get("vae")):
        where = f"{base.name}/vae/config.json"
        config = _config(base.folder / "vae" / "config.json")
        ghost = skeleton(config, where=where)
        full = {**dict(getattr(ghost, "config", {})), **config}
        if (vae := single_file.converted_vae(file, ghost, full, where)) is not None:
            parts["vae"] = vae
    ghosts = {
        name: _text_encoder(base, name)
        for name, value in base.index.items()
        if name.startswith("text_encoder") and is_component(value)
    }
    return parts | single_file.converted_text_encoders(file, ghosts, f"{base.name}'s")


def _text_encoder(base: Base, name: str) -> nn.Module:
    """Returns a text encoder of the base on the meta device."""
    import transformers

    where = base.folder / name / "config.json"
    kind: Any = getattr(transformers, str(base.index[name][1]), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise UserError(
            f"the class {base.index[name][1]!r} is not part of transformers.",
            where=str(where),
            remedy="Name a base that diffusers itself can load.",
        )
    config: Any = kind.config_class
    with torch.device("meta"):
        made: nn.Module = kind(config.from_dict(_config(where)))
    return made


def _write(
    file: SingleFile,
    base: Base,
    name: str,
    tensors: Tensors,
    part: Path,
    progress: tuple[int, int],
    report: Report,
) -> None:
    done, total = progress

    def read(spec: TensorSpec) -> torch.Tensor:
        nonlocal done
        message = f"{name}: {spec.name}"
        report(Event(stage="import", done=min(done, total), total=total, message=message))
        done += spec.num_bytes
        return tracing.made(tensors[spec.name], file.weights.read)

    stem = _WEIGHTS.get(str(base.index[name][0]), "diffusion_pytorch_model")
    write_weights(part / f"{stem}.safetensors", single_file.specs_of(tensors), METADATA, read)
    values = _config(part / "config.json")
    values.pop("quantization_config", None)  # the base's own weights are not used
    write_text(part / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")


def _copy(base: Base, folder: Path, name: str, part: Path, *, weights: bool) -> None:
    """Copies the texts of a component, and its weights if they are needed (linked if possible)."""
    source = folder / name
    try:
        names = sorted(item.name for item in source.iterdir() if item.is_file())
        for text in text_files(names):
            require_inside(source / text, folder)
            words = (source / text).read_text(encoding="utf-8")
            if ".index." in text:
                text, words = text.replace(".fp16", ""), words.replace(".fp16", "")
                if not weights:
                    continue
            write_text(part / text, words)
        chosen = weight_files(names, name, base.name) if weights else []
        for weight in chosen:
            place = part / weight.replace(".fp16", "")
            try:
                os.link((source / weight).resolve(), place)
            except OSError:  # another disk, or one without links
                with (source / weight).open("rb") as old, atomic(place) as new:
                    shutil.copyfileobj(old, new, 1 << 20)
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise unreadable(source, error) from error
    except UnicodeDecodeError as error:
        raise UserError("is not text.", where=str(source), remedy=_ANOTHER) from error
    if weights and not chosen and not base.built_in and _is_model(base.index[name]):
        raise UserError(
            f"has no weights for {name}, and the checkpoint has none either.",
            where=base.name,
            remedy=_ANOTHER,
        )


def _is_model(value: list[Any]) -> bool:
    """True for a component of diffusers or transformers that has weights."""
    library = importlib.import_module(value[0]) if value[0] in _WEIGHTS else None
    kind = getattr(library, str(value[1]), None)
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def is_component(value: object) -> bool:
    """True for an entry of `model_index.json` that names a library and a class."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, str) for x in value)


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, remedy=_ANOTHER)
    except OSError as error:
        raise unreadable(path, error) from error


def _digest(base: Base) -> str:
    """Returns what tells a base from another, and from itself after a change."""
    digest = hashlib.sha256(f"{base.name} {base.revision}".encode())
    for path in [] if base.revision else sorted(base.folder.glob("*/*")):
        facts = path.stat()
        words = f"{path.parent.name}/{path.name} {facts.st_size} {facts.st_mtime_ns}"
        digest.update(words.encode())
    return digest.hexdigest()[:8]


@contextmanager
def _alone(target: Path, report: Report) -> Generator[None, None, None]:
    """Keeps other processes from the same import; waits for one that is at it."""
    path = target / ".lock"
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(Event(stage="import", message="another process imports this file"))
                time.sleep(0.2)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _full_disk(target: Path, needed: int) -> Generator[None, None, None]:
    """Says in plain words that the disk is full, before anything is written where that is known."""
    remedy = "Free space and start again: finished components are kept."
    there = next(folder for folder in target.parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"the disk has {free:,} bytes free, the import takes {needed:,}.",
            where=str(target),
            remedy=remedy,
        )
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full; the import takes {needed:,} bytes.",
            where=str(target),
            remedy=remedy,
        ) from error
