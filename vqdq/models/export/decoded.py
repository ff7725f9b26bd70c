"""A component as an ordinary one: the names of its own class, decoded weights, 16 bits.

One tensor is in memory at a time, whether the component is compressed or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vqdq.codecs.base import Packed
from vqdq.errors import UserError
from vqdq.layers.inputs import PREFIX, SMOOTHING, fold_smoothing
from vqdq.layers.matrix import from_matrix
from vqdq.models.checkpoint import half
from vqdq.models.denoisers import skeleton
from vqdq.models.packed_config import Method, VqdqConfig
from vqdq.models.weights import WeightFile, open_weights, unreadable, write_weights
from vqdq.progress import Event, Report
from vqdq.recipe import METADATA, is_guard
from vqdq.tensors import TensorSpec

Read = Callable[[TensorSpec], torch.Tensor]


class Decoded:
    """The tensors of an ordinary component by their names.

    Attributes:
        config: the component's config without what says that it is compressed.
        packed: what that says, or None.
        specs: every tensor: float16, or what a tensor without fractions has.
        left_out: what an ordinary file cannot say, one sentence each.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the component in `folder`; reads headers only.

        Raises:
            UserError: no config, damaged weights, or compressed by another program.
        """
        try:
            values: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        except OSError as error:
            raise unreadable(folder / "config.json", error) from error
        self.config = {key: value for key, value in values.items() if key != "quantization_config"}
        self.packed = _packed(values.get("quantization_config"), folder)
        files = [open_weights(path) for path in sorted(folder.glob("*.safetensors"))]
        self._stored: dict[str, WeightFile] = {key: file for file in files for key in file.tensors}
        self._layers = {} if self.packed is None else self.packed.expected()
        self._inputs = {} if self.packed is None else self.packed.inputs()
        self._model = None if self.packed is None else _model(self.config)
        self._modules = {} if self._model is None else _modules(self._model, self._layers)
        self.specs = {spec.name: spec for spec in self._specs()}

    @property
    def decoded(self) -> int:
        """How many layers are decoded."""
        return len(self._layers)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What an ordinary file cannot say."""
        found: list[str] = []
        if self._inputs:
            found.append(f"the inputs of {len(self._inputs)} layers are not quantized any more")
        if self.packed is not None and self.packed.attention is not None:
            found.append("attention is not quantized any more")
        return tuple(found)

    def read(self, name: str) -> torch.Tensor:
        """Returns one tensor.

        Raises:
            UserError: it is not in the files, or holds values that float16 cannot.
        """
        layer, _, key = name.rpartition(".")
        if key == "weight" and layer in self._layers:
            return self._decoded(layer)
        return half(self._read(name), name)

    def _specs(self) -> list[TensorSpec]:
        if self._model is None or "_class_name" not in self.config:
            shapes = self._file_shapes()
        else:
            shapes = {key: tuple(value.shape) for key, value in self._model.state_dict().items()}
        return [
            TensorSpec(name=name, dtype=self._dtype(name), shape=shape)
            for name, shape in shapes.items()
        ]

    def _file_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names in the file, which are not those inside a text encoder."""
        inner = set[str]() if self.packed is None else self.packed.stored().keys()
        shapes = {
            key: file.tensors[key].shape
            for key, file in self._stored.items()
            if key not in inner and not is_guard(file.tensors[key])
        }
        for name, module in self._modules.items():
            shapes[f"{name}.weight"] = tuple(module.get_parameter("weight").shape)
        return shapes

    def _dtype(self, name: str) -> torch.dtype:
        if name in self._stored and not self._stored[name].tensors[name].dtype.is_floating_point:
            return self._stored[name].tensors[name].dtype
        return torch.float16

    def _read(self, name: str) -> torch.Tensor:
        if name not in self._stored:
            raise UserError(
                "is not in the file.", where=name, remedy="The folder is incomplete: copy it again."
            )
        return self._stored[name].read(name)

    def _decoded(self, layer: str) -> torch.Tensor:
        ghost = self._layers[layer]
        tensors = {key: self._read(f"{layer}.{key}") for key in ghost.tensors}
        packed = Packed(codec=ghost.codec, params=ghost.params, shape=ghost.shape, tensors=tensors)
        matrix = packed.decode()
        if layer in self._inputs and self._inputs[layer][0].smooths:
            matrix = fold_smoothing(matrix, self._read(f"{layer}.{PREFIX}{SMOOTHING}"))
        return half(from_matrix(matrix, self._modules[layer]), layer)


def digest(values: memoryview | bytes) -> bytes:
    """Returns what tells two tensors apart: BLAKE2b over their bytes."""
    return hashlib.blake2b(values, digest_size=16).digest()


def raw(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a tensor, in the order of its elements."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_checked(
    path: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], torch.Tensor], report: Report
) -> int:
    """Writes a safetensors file, reads it back, compares every byte, and returns its size.

    Args:
        report: stages "decode" and "check", one unit a tensor.

    Raises:
        UserError: the disk gives back something else than was written.
    """
    written: dict[str, bytes] = {}

    def told(spec: TensorSpec) -> torch.Tensor:
        report(Event(stage="decode", done=len(written), total=len(specs), message=spec.name))
        tensor = read(spec.name)
        written[spec.name] = digest(raw(tensor))
        return tensor

    size = write_weights(path, list(specs.values()), METADATA, told)
    again = open_weights(path)
    for done, name in enumerate(specs):
        report(Event(stage="check", done=done, total=len(specs), message=name))
        if digest(raw(again.read(name))) != written[name]:
            raise differs(name)
    report(Event(stage="check", done=len(specs), total=len(specs)))
    return size


def differs(name: str) -> UserError:
    """Returns the error for a tensor that was read back with other values."""
    return UserError(
        "was read back with other values than were written; the file was removed.",
        where=name,
        remedy="Check the disk, or choose another one.",
    )


def _model(config: Mapping[str, Any]) -> nn.Module:
    """Returns the unpacked component on the meta device."""
    if "_class_name" in config:
        return skeleton(config)
    from vqdq.models.text_parts import text_skeleton  # heavy: transformers

    kinds = config.get("architectures") or ["that config.json does not name"]
    return text_skeleton(str(kinds[0]), config, where="config.json")


def _modules(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """Returns the layers by their names in the file."""
    if hasattr(model, "base_model_prefix"):
        from vqdq.models.text_parts import layer_paths  # heavy: transformers

        paths = layer_paths(model, layers)
    else:
        paths = {name: name for name in layers}
    return {name: model.get_submodule(path) for name, path in paths.items()}


def _packed(values: object, folder: Path) -> VqdqConfig | None:
    if values is None:
        return None
    entries = cast(dict[str, Any], values) if isinstance(values, dict) else {}
    if entries.get("quant_method") != Method.VQDQ.value:
        raise UserError(
            "is compressed by another program.",
            where=str(folder),
            remedy="Decode it with that program first.",
        )
    return VqdqConfig.read(entries)
