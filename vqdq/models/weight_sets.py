"""The weight files of a component: one, or shards, checked against the index that names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.models.texts import read_object
from vqdq.models.weights import WeightFile, open_weights, pickled, unreadable

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_AGAIN = "The model is incomplete or damaged: copy or download it again."
_NAME = re.compile(r"[^/\\\0]+\.safetensors")


def weight_paths(folder: Path, stem: str = "diffusion_pytorch_model") -> list[Path]:
    """Returns the safetensors files of a component: plain before fp16, shards by their index.

    Args:
        stem: what its library calls them; "model" for transformers.

    Raises:
        UserError: there are none, or only pickles, or an index that cannot be one.
    """
    names = _names(folder)
    for suffix in ("", ".fp16"):
        single = f"{stem}{suffix}.safetensors"
        if single in names:
            return [folder / single]
        index = f"{stem}.safetensors.index{suffix}.json"
        if index in names:
            return [folder / name for name in sorted(set(_weight_map(folder / index).values()))]
    program = next((name for name in names if Path(name).suffix in PICKLES), None)
    if program is not None:
        raise pickled(folder / program)
    raise UserError(
        "there is no weight file.",
        where=str(folder),
        remedy=f"Expected {stem}.safetensors: copy the model again.",
    )


def open_component(folder: Path, stem: str = "diffusion_pytorch_model") -> tuple[WeightFile, ...]:
    """Returns the weight files of a component, headers checked, shards in order.

    Raises:
        UserError: pickled, missing or damaged weights, or shards that are not what their index
            says.
    """
    paths = weight_paths(folder, stem)
    files = tuple(open_weights(path) for path in paths)
    seen: dict[str, str] = {}
    for file in files:
        for key in file.tensors:
            if key in seen:
                raise UserError(
                    f"{key} is in two shards, {seen[key]} and {file.path.name}.",
                    where=str(folder),
                    remedy=_AGAIN,
                )
            seen[key] = file.path.name
    if f"{stem}.safetensors" in (path.name for path in paths):
        return files
    for suffix in ("", ".fp16"):
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if index.is_file() and not (folder / f"{stem}{suffix}.safetensors").is_file():
            _compare(index, _weight_map(index), seen)
            break
    return files


def _compare(index: Path, wanted: dict[str, str], seen: dict[str, str]) -> None:
    for key, name in wanted.items():
        if seen.get(key) != name:
            fact = f"it is in {seen[key]}" if key in seen else "it is in no shard"
            raise UserError(
                f"says that {key} is in {name}; {fact}.", where=str(index), remedy=_AGAIN
            )
    extra = next((key for key in seen if key not in wanted), None)
    if extra is not None:
        raise UserError(
            f"does not name {extra}, which is in {seen[extra]}.", where=str(index), remedy=_AGAIN
        )


def _weight_map(index: Path) -> dict[str, str]:
    """Returns key -> shard of an index; every shard is a plain name in the index's folder."""
    try:
        values = read_object(index)
    except OSError as error:
        raise unreadable(index, error) from error
    found: object = values.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError("has no weight_map.", where=str(index), remedy=_AGAIN)
    for key, name in cast(dict[str, Any], found).items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise UserError(
                f"says that {key[:200]} is in {str(name)[:200]!r}, which is no shard of this "
                "folder.",
                where=str(index),
                remedy="A shard is a .safetensors file beside its index: copy the model again.",
            )
    return cast(dict[str, str], found)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(item.name for item in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
