"""Unfinished work of a compression: each finished layer in its own file, for a run to go on.

`<output>.partial/` holds `state.json` (what is being made, of what), `layers/<n>.safetensors`,
`components/<name>/layers/…` of the components beside the denoiser, `smoothing`, `learnt` and
`inputs.safetensors` where the recipe asks for them, and, at the very end, `final/`, which one
rename turns into the output. A lock keeps two processes apart.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import torch

from vqdq.codecs.base import Packed
from vqdq.durable import sync_folder, write_text
from vqdq.errors import UserError
from vqdq.models.checkpoint import dump
from vqdq.models.encoding import EncodedLayer
from vqdq.models.weights import WeightFile, open_weights, write_weights
from vqdq.recipe import PlannedLayer
from vqdq.tensors import TensorSpec

FULL = (errno.ENOSPC, errno.EDQUOT)
BIAS = "bias"
LEARNT, SMOOTHING, INPUTS = "learnt", "smoothing", "inputs"  # files that hold many layers


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedLayer:
    """A layer on disk: its tensors, and what was measured when it was encoded.

    Attributes:
        weights: the packed tensors, and "bias" when it was corrected (`has_bias`).
        error_db, output_error_db, seconds: see `vqdq.models.encoding.EncodedLayer`.
    """

    weights: WeightFile
    has_bias: bool
    error_db: float | None
    output_error_db: float | None
    seconds: float

    def packed(self, planned: PlannedLayer) -> Packed:
        """Returns the packed weight, read from the disk."""
        assert planned.method is not None
        assert planned.params is not None
        names = [spec.name for spec in planned.storage.tensors]
        return Packed(
            codec=planned.method,
            params=planned.params,
            shape=planned.layer.shape,
            tensors={name: self.weights.read(name) for name in names},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """The folder of unfinished work."""

    folder: Path

    @property
    def final(self) -> Path:
        """Where the finished folder is put together."""
        return self.folder / "final"

    def part(self, name: str) -> Partial:
        """Returns where the work on a component beside the denoiser is kept."""
        folder = self.folder / "components" / name
        (folder / "layers").mkdir(parents=True, exist_ok=True)
        return Partial(folder=folder)

    def finished(self, number: int, planned: PlannedLayer) -> FinishedLayer | None:
        """Returns the layer if an earlier run finished it; a file that does not fit is removed."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            file = open_weights(path)
        except UserError:
            path.unlink()
            return None
        found = dict(file.tensors)
        bias = found.pop(BIAS, None)
        wanted = {spec.name: spec for spec in planned.storage.tensors}
        if found != wanted or file.metadata.get("layer") != planned.layer.name:
            path.unlink()
            return None
        return FinishedLayer(
            weights=file,
            has_bias=bias is not None,
            error_db=_decibels(file.metadata["error_db"]),
            output_error_db=_decibels(file.metadata["output_error_db"]),
            seconds=float(file.metadata["seconds"]),
        )

    def keep(self, number: int, name: str, layer: EncodedLayer) -> None:
        """Writes a finished layer, whole or not at all."""
        tensors = dict(layer.packed.tensors)
        if layer.bias is not None:
            tensors[BIAS] = layer.bias
        specs = [TensorSpec.of(key, tensor) for key, tensor in tensors.items()]
        measured = {
            "layer": name,
            "error_db": repr(layer.error_db),
            "output_error_db": repr(layer.output_error_db),
            "seconds": repr(layer.seconds),
        }

        def read(spec: TensorSpec) -> torch.Tensor:
            return tensors[spec.name]

        write_weights(self._path(number), specs, measured, read)

    def adopt(self, number: int, file: Path) -> None:
        """Takes over a layer that was finished elsewhere: a file that `keep` wrote."""
        target = self._path(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)

    def adopt_file(self, name: str, file: Path) -> None:
        """Takes over a file that `keep_file` wrote elsewhere."""
        shutil.copyfile(file, self.folder / f"{name}.safetensors")

    def kept(self, number: int) -> Path:
        """Returns the file of a layer that `keep` wrote."""
        return self._path(number)

    @property
    def learning(self) -> Path:
        """Where fine-tuning keeps its own state."""
        return self.folder / "learning"

    def keep_file(
        self, name: str, tensors: Mapping[str, torch.Tensor], measured: Mapping[str, str]
    ) -> WeightFile:
        """Writes what one stage made for all layers, whole or not at all, and opens it.

        Args:
            name: `LEARNT`, `SMOOTHING` or `INPUTS`.
        """
        specs = [TensorSpec.of(key, tensor) for key, tensor in tensors.items()]
        path = self.folder / f"{name}.safetensors"
        write_weights(path, specs, measured, lambda spec: tensors[spec.name])
        return open_weights(path)

    def kept_file(self, name: str) -> WeightFile | None:
        """Returns what an earlier run made of that stage to the end, or None."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            return open_weights(path)
        except UserError:
            path.unlink()
            return None

    def publish(self, output: Path) -> None:
        """Turns `final` into the output by one rename and removes the rest.

        Raises:
            UserError: something took the output's name meanwhile; the work is kept.
        """
        refuse_existing(output)
        self.final.rename(output)
        sync_folder(output.parent)
        shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / "layers" / f"{number:05d}.safetensors"


def _decibels(text: str) -> float | None:
    return None if text == "None" else float(text)


@contextmanager
def open_partial(output: Path, state: Mapping[str, str]) -> Generator[Partial, None, None]:
    """Lends the folder of unfinished work for `output`, new or left by a run of the same work.

    Args:
        state: what decides the bytes (recipe digest, fingerprint of the source, versions).

    Raises:
        UserError: the output exists, another process works on it, or the folder holds other work.
    """
    refuse_existing(output)
    folder = partial_folder(output)
    try:
        (folder / "layers").mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(
            f"cannot be created: {error.strerror}.",
            where=str(folder),
            remedy="Choose an output folder that you may write to.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "another process is working on it.",
                where=str(output),
                remedy="Wait for it, or choose another output folder.",
            ) from error
        partial = Partial(folder=folder)
        _check_state(partial, state)
        shutil.rmtree(partial.final, ignore_errors=True)
        yield partial


def partial_folder(output: Path) -> Path:
    """Returns where unfinished work for `output` is kept."""
    return output.with_name(f"{output.name}.partial")


def refuse_existing(output: Path) -> None:
    """Raises `UserError` when something already has the output's name: nothing is overwritten."""
    if output.exists() or output.is_symlink():
        raise UserError(
            "already exists; nothing was changed.",
            where=str(output),
            remedy="Remove it or choose another output folder.",
        )


def version() -> str:
    """Returns the program's version: another one may encode other bytes, so work is not mixed."""
    try:
        return metadata.version("vqdq")
    except metadata.PackageNotFoundError:
        return "unknown"


def fingerprint(files: tuple[WeightFile, ...], config: Mapping[str, object]) -> str:
    """Returns a digest of a config and of the name, size, time and header of each weight file."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for file in files:
        facts = file.path.stat()
        digest.update(f"{file.path.name} {facts.st_size} {facts.st_mtime_ns}".encode())
        digest.update(file.header)
    return digest.hexdigest()


def _check_state(partial: Partial, state: Mapping[str, str]) -> None:
    path = partial.folder / "state.json"
    if not path.exists():
        write_text(path, dump(state))
        return
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != dict(state):
        known = cast(dict[str, str], found) if isinstance(found, dict) else {}
        what = next((key for key in state if known.get(key) != state[key]), "state")
        raise UserError(
            f"holds unfinished work with another {what.replace('_', ' ')}.",
            where=str(partial.folder),
            remedy="Remove that folder to start anew, or choose another output folder.",
        )
