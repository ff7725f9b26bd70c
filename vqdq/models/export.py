"""A compressed folder decoded into an ordinary one, for programs that do not know ours.

One tensor is in memory at a time. What is quantized besides weights (inputs, attention) is not part
of an ordinary folder: it computes in 16 bits again, and the person is told.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vqdq.codecs.base import Packed
from vqdq.durable import publish, write_text
from vqdq.errors import UserError
from vqdq.layers.inputs import PREFIX, SMOOTHING, fold_smoothing
from vqdq.layers.matrix import from_matrix
from vqdq.models.checkpoint import WEIGHTS, half, packed_config
from vqdq.models.copying import component_bytes, copy_components
from vqdq.models.denoisers import skeleton
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.partial import refuse_existing
from vqdq.models.sources import Source, locate
from vqdq.models.space import full_disk
from vqdq.models.weights import WeightFile, write_weights
from vqdq.progress import Event, Report, silent
from vqdq.recipe import METADATA
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        output: the folder.
        bytes: of the denoiser's weight file; decoded: how many layers were decoded for it.
        left_out: what an ordinary folder cannot say, one sentence each.
    """

    output: Path
    bytes: int
    decoded: int
    left_out: tuple[str, ...]


def export_folder(folder: str | Path, output: str | Path, *, report: Report = silent) -> Exported:
    """Writes the decoded model as an ordinary diffusers folder in float16.

    The folder appears by one rename, complete and read back, or not at all.

    Args:
        report: stage "decode", one unit a tensor; may raise `Cancelled`.

    Raises:
        UserError: no compressed folder, a damaged one, an output that exists, or a full disk.
    """
    target = Path(output).expanduser().absolute()
    refuse_existing(target)
    source = locate(folder)
    config = packed_config(source)
    stored = {key: file for file in source.weights() for key in file.tensors}
    plain = {key: value for key, value in source.config.items() if key != "quantization_config"}
    model = skeleton(plain)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    read = _Reader(config, stored, model)
    specs = [
        TensorSpec(name=name, dtype=read.dtype(name), shape=tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
    ]
    done = 0

    def told(spec: TensorSpec) -> torch.Tensor:
        nonlocal done
        report(Event(stage="decode", done=done, total=len(specs), message=spec.name))
        done += 1
        return read(spec.name)

    needed = sum(spec.num_bytes for spec in specs) + component_bytes(source)
    try:
        with full_disk(target, needed):
            place = part / source.denoiser
            place.mkdir(parents=True)
            size = write_weights(place / WEIGHTS, specs, METADATA, told)
            write_text(place / "config.json", json.dumps(plain, indent=2, sort_keys=True) + "\n")
            copy_components(source, part)
            write_text(part / "README.md", _card(source))
            publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    report(Event(stage="decode", done=len(specs), total=len(specs)))
    return Exported(
        output=target, bytes=size, decoded=len(config.layers), left_out=_left_out(config)
    )


class _Reader:
    """Gives the tensors of the ordinary model by their names."""

    def __init__(
        self, config: VqdqConfig, stored: Mapping[str, WeightFile], model: torch.nn.Module
    ) -> None:
        self._packed, self._inputs = config.expected(), config.inputs()
        self._stored, self._model = stored, model

    def dtype(self, name: str) -> torch.dtype:
        """Returns float16, or what a tensor without fractions has."""
        if name in self._stored and not self._stored[name].tensors[name].dtype.is_floating_point:
            return self._stored[name].tensors[name].dtype
        return torch.float16

    def __call__(self, name: str) -> torch.Tensor:
        layer, _, key = name.rpartition(".")
        if key == "weight" and layer in self._packed:
            return self._decoded(layer)
        return half(self._read(name), name)

    def _read(self, name: str) -> torch.Tensor:
        if name not in self._stored:
            raise UserError(
                "is not in the file.", where=name, remedy="The folder is incomplete: copy it again."
            )
        return self._stored[name].read(name)

    def _decoded(self, layer: str) -> torch.Tensor:
        ghost = self._packed[layer]
        tensors = {
            key: self._stored[f"{layer}.{key}"].read(f"{layer}.{key}") for key in ghost.tensors
        }
        packed = Packed(codec=ghost.codec, params=ghost.params, shape=ghost.shape, tensors=tensors)
        matrix = packed.decode()
        if layer in self._inputs and self._inputs[layer][0].smooths:
            matrix = fold_smoothing(matrix, self._read(f"{layer}.{PREFIX}{SMOOTHING}"))
        return half(from_matrix(matrix, self._model.get_submodule(layer)), layer)


def _left_out(config: VqdqConfig) -> tuple[str, ...]:
    found: list[str] = []
    if config.inputs():
        found.append(f"the inputs of {len(config.inputs())} layers are not quantized any more")
    if config.attention is not None:
        found.append("attention is not quantized any more")
    return tuple(found)


def _card(source: Source) -> str:
    return (
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"
        f"# {source.name}, decoded\n\n"
        "Weights of a model that was compressed with vqdq, decoded to float16: as large as the"
        " original, with the values of the compressed one.\n"
    )
