"""From what a person types ("demo", a folder, a hub id) to a checked folder on this disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.models.denoisers import DENOISERS
from vqdq.models.download import download, is_hub_id
from vqdq.models.texts import read_object
from vqdq.models.weight_sets import PICKLES, open_component, weight_paths
from vqdq.models.weights import WeightFile, open_weights, pickled, unreadable
from vqdq.places import expanded
from vqdq.progress import Report, silent

DEMO = "demo"
DEMO_TITLE = "Embedded demo model"
_WEIGHTS = (".safetensors", *PICKLES, ".msgpack", ".h5", ".onnx")
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A diffusers folder with the place of its denoiser.

    Attributes:
        reference: what the person typed.
        folder: the pipeline's folder.
        index: the values of `model_index.json`.
        denoiser: name of the denoiser's component ("unet" or "transformer").
        config: the values of the denoiser's `config.json`.
        variant: "fp16" when the denoiser exists only as a file of that variant, else None.
        hub_name: "owner/name" when the reference is a hub id, else "".
        revision: the commit that a hub id stood for, else "".
        file: the checkpoint that the folder was imported from, or None.
        completed_by: what gave the rest of such a folder ("owner/name@commit", a path), else "".
    """

    reference: str
    folder: Path
    index: dict[str, Any]
    denoiser: str
    config: dict[str, Any]
    variant: str | None
    hub_name: str = ""
    revision: str = ""
    file: Path | None = None
    completed_by: str = ""

    @property
    def title(self) -> str:
        """The model's name for people."""
        if self.reference == DEMO:
            return DEMO_TITLE
        return self.name

    @property
    def name(self) -> str:
        """How a card names the model: a hub id, "demo", or the last part of a path."""
        if self.reference == DEMO:
            return DEMO
        if self.hub_name:
            return self.hub_name
        if self.file is not None:
            return self.file.stem
        return self.folder.resolve().name

    @property
    def is_quantized(self) -> bool:
        """True when the denoiser is already compressed (by whatever program)."""
        return self.config.get("quantization_config") is not None

    @property
    def missing(self) -> tuple[str, ...]:
        """Components that the index names and the folder does not have, in the index's order.

        Of a text encoder, for one, the config can be there without weights. Without them the
        denoiser can be planned and compressed; nothing can be drawn.
        """
        return tuple(
            name
            for name, value in self.index.items()
            if is_plain(name) and _is_component(value) and not _is_whole(self.folder / name)
        )

    @property
    def to_draw(self) -> tuple[str, ...]:
        """What is missing to draw from a prompt: `missing`, and the text encoders and tokenizers
        where the index leaves every one empty.

        With those alone the model can be loaded, and drawn from embeddings.
        """
        return self.missing + empty_text(self.index, lambda value: not _is_component(value))

    @property
    def to_complete(self) -> str:
        """How to add what is missing to draw, a sentence."""
        words = ", ".join(f"{name}/" for name in self.to_draw)
        if self.file is None:
            index = "" if self.to_draw == self.missing else " and name them in its model_index.json"
            return f"Copy {words} of the model it was made from into {self.folder}{index}."
        return (
            f"Type `vqdq import {self.file.name} --base BASE` with a diffusers folder or a hub id"
            f" of the same family, or copy its {words} into what was written."
        )

    def weights(self) -> tuple[WeightFile, ...]:
        """Returns the denoiser's weight files, headers checked, shards in order.

        Raises:
            UserError: pickled, missing or damaged weights.
        """
        return open_component(self.folder / self.denoiser)

    def check(self) -> None:
        """Raises `UserError` for a damaged weight file of any component; reads headers only."""
        for name, value in self.index.items():
            if is_plain(name) and _is_component(value):
                for path in sorted((self.folder / name).glob("*.safetensors")):
                    open_weights(path)


def demo_folder() -> Path:
    """Returns the folder of the embedded demo model: `assets/demo` next to the package.

    Raises:
        UserError: the installation does not carry it.
    """
    folder = _REPOSITORY / "assets" / "demo"
    if not (folder / "model_index.json").is_file():
        raise UserError(
            "the embedded demo model is not installed.",
            where=DEMO,
            remedy="Run from a clone of the repository (`make demo-model` trains it again), "
            "or name a folder.",
        )
    return folder


def presets_folder() -> Path:
    """Returns the folder of the named recipes: `presets` next to the package."""
    return _REPOSITORY / "presets"


def locate(model: str | Path, *, base: str | Path | None = None, report: Report = silent) -> Source:
    """Returns the checked source of "demo", a folder, a single file or a hub id.

    A hub id may pin a revision, "owner/name@revision"; a file may name its base,
    "model.safetensors@BASE". Cheap for what is on this disk: a few texts and the names of headers.
    A hub id that is not in the cache is downloaded, and a file is imported once (`importing`).

    Args:
        base: what completes a single file: a folder or a hub id of the same family. Without it the
            import that is there already, else the family's own folder on the hub.
        report: stages "download" and "import", in bytes, as they are needed; may raise `Cancelled`.

    Raises:
        UserError: no such folder, no diffusers pipeline, no denoiser, pickled weights, or offline.
    """
    reference = str(model)
    file, given = _single(reference, base)
    hub_name = revision = completed_by = ""
    if reference == DEMO:
        folder = demo_folder()
    elif file is not None:
        from vqdq.models.opening import imported

        folder, completed_by = imported(file, given, report)
    else:
        folder = expanded(model)
        if is_hub_id(reference) and not _is_there(folder):
            snapshot = download(reference, report=report)
            folder, hub_name, revision = snapshot.folder, snapshot.name, snapshot.revision
    index = _read_json(folder / "model_index.json", folder)
    name = next((name for name in DENOISERS if _is_component(index.get(name))), None)
    if name is None:
        raise UserError(
            "the pipeline has no unet and no transformer.",
            where=str(folder / "model_index.json"),
            remedy="Use a text-to-image diffusion pipeline.",
        )
    config = _read_json(folder / name / "config.json", folder)
    paths = weight_paths(folder / name)
    variant = "fp16" if all(".fp16" in path.name for path in paths) else None
    return Source(
        reference=reference,
        folder=folder,
        index=index,
        denoiser=name,
        config=config,
        variant=variant,
        hub_name=hub_name,
        revision=revision,
        file=file,
        completed_by=completed_by,
    )


def _single(reference: str, base: str | Path | None) -> tuple[Path | None, str]:
    """Returns the single file that a reference names, or None, and what shall complete it."""
    given = "" if base is None else str(base)
    path = expanded(reference)
    head, at, tail = reference.partition(".safetensors@")
    named = expanded(f"{head}.safetensors")
    if at and not _is_there(path) and os.path.isfile(named):
        path, given = named, given or tail
    if path.suffix.lower() == ".safetensors" and os.path.isfile(path):
        return path.absolute(), given
    if given:
        raise UserError(
            "a base completes a single .safetensors file, and this is none.",
            where=reference,
            remedy="Leave --base out, or name the file.",
        )
    return None, ""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # what hinders us is said when the folder is opened


def empty_text(parts: Mapping[str, object], is_empty: Callable[[object], bool]) -> tuple[str, ...]:
    """Returns the text encoders, and the tokenizers, of a pipeline that has none but empty ones.

    Some empty ones mean nothing: Stable Diffusion 3 works without its third text encoder.
    """
    kinds = [[name for name in parts if name.startswith(k)] for k in ("text_encoder", "tokenizer")]
    return tuple(
        name for names in kinds for name in names if all(is_empty(parts[each]) for each in names)
    )


def is_plain(name: str) -> bool:
    """Returns True for a name that stays in its folder."""
    return "/" not in name and "\\" not in name and "\0" not in name and name not in ("", ".", "..")


def _is_component(value: object) -> bool:
    return isinstance(value, list) and bool(cast(list[Any], value)) and value[0] is not None


def _is_whole(folder: Path) -> bool:
    """True for a component's folder with what it needs: something, and weights beside a config."""
    try:
        if not (folder / "config.json").is_file():
            return folder.is_dir()
        return any(path.suffix in _WEIGHTS for path in folder.iterdir())
    except OSError:
        return True  # what hinders us is said when it is opened


def _read_json(path: Path, folder: Path) -> dict[str, Any]:
    remedy = "Name the folder of a diffusers pipeline (it holds model_index.json) or a hub id."
    try:
        if not folder.exists():
            raise UserError("does not exist.", where=str(folder), remedy=remedy)
        if not folder.is_dir():
            raise _no_folder(folder)
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        name = path.relative_to(folder)
        raise UserError(
            f"is no diffusers model: there is no {name}.", where=str(folder), remedy=remedy
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _no_folder(path: Path) -> UserError:
    if path.suffix.lower() in PICKLES:
        return pickled(path)
    if path.suffix.lower() == ".gguf":
        return UserError(
            "is a GGUF file: its weights are quantized already.",
            where=str(path),
            remedy="Start from the checkpoint in 16 or 32 bits that it was made of.",
        )
    return UserError(
        "is a file, not the folder of a model.",
        where=str(path),
        remedy="Name a diffusers folder, a .safetensors checkpoint or a hub id.",
    )
