"""The components that are not compressed: copied, but nothing that could run on opening."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any

from vqdq.durable import atomic, write_text
from vqdq.errors import UserError
from vqdq.models.links import require_inside
from vqdq.models.sources import Source, is_plain
from vqdq.models.weights import unreadable

_KINDS = (".json", ".txt", ".model", ".safetensors", ".jinja", ".vocab", ".spm")
_LICENCES = ("license", "licence", "notice")


def component_bytes(source: Source, without: Collection[str] = ()) -> int:
    """Returns how many bytes `copy_components` will write."""
    return sum(path.stat().st_size for path, _ in _files(source, without))


def copy_components(source: Source, target: Path, without: Collection[str] = ()) -> None:
    """Copies everything but the denoiser and the card into `target`, byte for byte.

    Pickles and other programs are left behind. Two things change, so that the folder opens and
    runs without further arguments: where a component exists only in the fp16 variant, its files
    lose that word; and a text encoder's config asks for float32, because transformers would
    otherwise compute in the dtype that is stored while diffusers computes in float32, and the two
    cannot be mixed.

    Args:
        without: components that are written otherwise; their weights are left out, their config and
            whatever else they have is copied.

    Raises:
        UserError: a component without safetensors weights, or a file that cannot be read.
    """
    for path, name in _files(source, without):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if name.endswith(".index.json") and ".fp16" in path.name:
                write_text(place, _renamed_index(path))
            elif path.name == "config.json" and _library(source, name) == "transformers":
                write_text(place, _computed_in_float32(path))
            else:
                with path.open("rb") as file, atomic(place) as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
        except PermissionError as error:
            raise unreadable(path, error) from error


def _files(source: Source, without: Collection[str]) -> Generator[tuple[Path, str], None, None]:
    """Yields each file to copy with its name in the target."""
    yield source.folder / "model_index.json", "model_index.json"
    for path in sorted(source.folder.iterdir()):
        if path.is_file() and path.stem.lower() in _LICENCES:
            require_inside(path, source.folder)
            yield path, path.name
    for name, value in source.index.items():
        folder = source.folder / name
        if (
            not is_plain(name)
            or not isinstance(value, list)
            or name == source.denoiser
            or not folder.is_dir()
        ):
            continue
        files = [item for item in sorted(folder.iterdir()) if item.is_file()]
        weights = [item for item in files if item.suffix == ".safetensors"]
        plain = any(".fp16" not in item.name for item in weights)
        if not weights and any(item.suffix in (".bin", ".pt", ".ckpt") for item in files):
            raise UserError(
                "has only pickled weights, which can run any program when they are opened.",
                where=str(folder),
                remedy="Use a version of the model with safetensors weights.",
            )
        for item in files:
            halved = ".fp16" in item.name
            if name in without and (item.suffix == ".safetensors" or ".index." in item.name):
                continue
            if item.suffix != ".safetensors":
                require_inside(item, source.folder)
            if item.suffix in _KINDS and not (halved and plain) and not _index_of_pickle(item):
                yield item, f"{name}/{item.name.replace('.fp16', '')}"


def _library(source: Source, name: str) -> object:
    component: Any = source.index.get(name.partition("/")[0])
    return component[0] if isinstance(component, list) else None


def _computed_in_float32(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    values = json.loads(text)
    if "torch_dtype" in values:
        values["dtype"] = values.pop("torch_dtype")
    if values.get("dtype") == "float32":
        return text
    return json.dumps({**values, "dtype": "float32"}, indent=2, sort_keys=True) + "\n"


def _index_of_pickle(path: Path) -> bool:
    return ".bin.index" in path.name


def _renamed_index(path: Path) -> str:
    values = json.loads(path.read_text(encoding="utf-8"))
    names = values["weight_map"]
    values["weight_map"] = {key: name.replace(".fp16", "") for key, name in names.items()}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
