"""What a model is made of, from configs and file headers alone: no weight is read.

Parameters and the share of convolutions come from the class of a component where diffusers has it,
built on the meta device, and from the header of its files where it does not (text encoders): a
weight with four dimensions is a convolution. Both count a compressed layer as what it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.models.denoisers import skeleton
from vqdq.models.parts import Part as OtherPart
from vqdq.models.parts import ghost_of, part_component
from vqdq.models.parts import parts as others
from vqdq.models.pipelines import describe, source_component
from vqdq.models.sources import Source, locate
from vqdq.models.weights import WeightFile, open_weights
from vqdq.recipe import Component
from vqdq.tensors import TensorSpec

LARGEST = 8  # layers that are named
_CONVOLUTION = 4  # dimensions of a weight [out, in, height, width]
_WEIGHT_DIMENSIONS = (2, _CONVOLUTION)
_SHORT = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.uint8: "packed",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """How many parameters a module has, and how many of them are weights of convolutions."""

    parameters: int
    convolution_weights: int

    @property
    def convolution_share(self) -> float:
        """Convolution weights over all parameters, 0 to 1."""
        return self.convolution_weights / self.parameters if self.parameters else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredLayer:
    """A layer as its file holds it.

    Attributes:
        component, name: where it is.
        shape: of its weight, or [out, in] of a compressed one.
        weights: how many; `bytes`: of all that is stored for them.
    """

    component: str
    name: str
    shape: tuple[int, ...]
    weights: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A component with weights.

    Attributes:
        name: in the pipeline ("unet", "text_encoder_2"); `kind`: its class.
        census: parameters, as if nothing were compressed.
        dtypes: bytes on the disk by the dtype of the stored tensors, the most first; empty where
            the weights are missing and the config alone is there.
        bytes: of its weight files on the disk, headers included.
        quantized: by what ("vqdq", "bitsandbytes", …), or "".
        config: the values of its `config.json`.
        layers: the largest ones.
    """

    name: str
    kind: str
    census: Census
    dtypes: Mapping[str, int]
    bytes: int
    quantized: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    layers: tuple[StoredLayer, ...] = ()

    @property
    def half_bytes(self) -> int:
        """Bytes of its parameters in 16 bits."""
        return 2 * self.census.parameters

    @property
    def class_config(self) -> dict[str, Any]:
        """Its config with its class in `_class_name`."""
        return {**self.config, "_class_name": self.kind}

    @property
    def dtype(self) -> str:
        """The dtype that most of its bytes have."""
        return next(iter(self.dtypes), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """A model, component by component.

    Attributes:
        reference: what a person typed; `title`: for people.
        pipeline_class: diffusers' class name.
        denoiser: name of the component that is compressed first.
        parts: every component with weights, the denoiser first.
        component: the denoiser's layers and tensors.
        missing: components that the model needs and does not have; `to_complete`: how to add them.
        openers: what reads the layers and tensors of each other component that can be compressed,
            by name; raises `UserError` like `parts.part_component`.
        resolution: width and height of a picture at its default size, or None.
    """

    reference: str
    title: str
    pipeline_class: str
    denoiser: str
    parts: tuple[Part, ...]
    component: Component
    resolution: tuple[int, int] | None
    missing: tuple[str, ...] = ()
    to_complete: str = ""
    openers: Mapping[str, Callable[[], Component]] = field(
        default_factory=dict[str, Callable[[], Component]], repr=False
    )

    @property
    def parameters(self) -> int:
        """Of all components."""
        return sum(part.census.parameters for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of all weight files on the disk."""
        return sum(part.bytes for part in self.parts)

    @property
    def largest(self) -> tuple[StoredLayer, ...]:
        """The largest layers of all components, by weights."""
        every = [layer for part in self.parts for layer in part.layers]
        return tuple(sorted(every, key=lambda layer: -layer.weights)[:LARGEST])

    def part(self, name: str) -> Part | None:
        """Returns the component of that name, or None."""
        return next((part for part in self.parts if part.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Returns the facts as JSON values."""
        return {
            "model": self.reference,
            "title": self.title,
            "pipeline": self.pipeline_class,
            "denoiser": self.denoiser,
            "resolution": None if self.resolution is None else list(self.resolution),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "missing": list(self.missing),
            "components": [
                {
                    "name": part.name,
                    "class": part.kind,
                    "parameters": part.census.parameters,
                    "convolution_share": part.census.convolution_share,
                    "dtypes": dict(part.dtypes),
                    "bytes": part.bytes,
                    "half_bytes": part.half_bytes,
                    "quantized": part.quantized,
                }
                for part in self.parts
            ],
            "largest_layers": [
                {
                    "component": layer.component,
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "weights": layer.weights,
                    "bytes": layer.bytes,
                }
                for layer in self.largest
            ],
        }


def inventory(model: str | Path) -> Inventory:
    """Returns what "demo", a folder or a hub id is made of; reads headers, downloads for a hub id.

    Raises:
        UserError: the model cannot be found, a file of it is damaged, or it may not be read.
    """
    source = locate(model)
    names = [source.denoiser, *(name for name in source.index if name != source.denoiser)]
    parts = [part for name in names if (part := _part(source, name)) is not None]
    info = describe(model)
    return Inventory(
        reference=source.reference,
        title=source.title,
        pipeline_class=info.pipeline_class,
        denoiser=source.denoiser,
        parts=tuple(parts),
        component=source_component(source),
        resolution=info.resolution,
        missing=source.to_draw,
        to_complete=source.to_complete if source.to_draw else "",
        openers={name: partial(_opened, each) for name, each in others(source).items()},
    )


def _opened(part: OtherPart) -> Component:
    return part_component(part)[0]


def census(module: nn.Module) -> Census:
    """Returns the parameters of a module on any device, the meta device included."""
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return Census(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        convolution_weights=sum(layer.weight.numel() for layer in convolutions),
    )


def _part(source: Source, name: str) -> Part | None:
    """The component of that name; None when it has no weights (a scheduler, a tokenizer)."""
    value: Any = source.index.get(name)
    folder = source.folder / name
    if not isinstance(value, list) or len(cast(list[Any], value)) != 2 or not folder.is_dir():
        return None
    files = source.weights() if name == source.denoiser else _files(folder)
    library, kind = (str(word) for word in cast(list[Any], value))
    config = source.config if name == source.denoiser else _config(folder)
    if not files:
        return _weightless(name, library, kind, config, folder) if name in source.missing else None
    packing = config.get("quantization_config") or {}
    specs = {key: spec for file in files for key, spec in file.tensors.items()}
    counted = None
    if library == "diffusers":
        counted = _built(config, kind, folder)
    return Part(
        name=name,
        kind=kind,
        census=counted or _counted(specs, _packed_shapes(packing)),
        dtypes=_dtypes(specs.values()),
        bytes=sum(file.path.stat().st_size for file in files),
        quantized=str(packing.get("quant_method", "unknown")) if packing else "",
        config=config,
        layers=_largest(name, specs, _packed_shapes(packing)),
    )


def _weightless(
    name: str, library: str, kind: str, config: Mapping[str, Any], folder: Path
) -> Part | None:
    """A component of which the config alone is there; None for one without parameters."""
    if not config:
        return None
    try:
        ghost = ghost_of(
            OtherPart(name=name, folder=folder, library=library, kind=kind, config=dict(config))
        )
    except UserError:
        return None
    return Part(name=name, kind=kind, census=census(ghost), dtypes={}, bytes=0, config=config)


def _built(config: Mapping[str, Any], kind: str, folder: Path) -> Census | None:
    try:
        ghost = skeleton({**config, "_class_name": kind}, where=str(folder / "config.json"))
    except UserError:
        return None  # not a class of diffusers' models: its file tells enough
    return census(ghost)


def _files(folder: Path) -> list[WeightFile]:
    """The weight files of a component that is not the denoiser, the plain ones before fp16."""
    found = sorted(folder.glob("*.safetensors"))
    plain = [path for path in found if ".fp16" not in path.name]
    return [open_weights(path) for path in plain or found]


def _config(folder: Path) -> dict[str, Any]:
    try:
        values: object = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], values) if isinstance(values, dict) else {}


def _packed_shapes(packing: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """[out, in] of the layers that a config says are packed by this program."""
    layers = packing.get("layers")
    if packing.get("quant_method") != "vqdq" or not isinstance(layers, dict):
        return {}
    known = cast(dict[str, dict[str, Any]], layers)
    return {name: tuple(entry["shape"]) for name, entry in known.items()}


def _counted(specs: Mapping[str, TensorSpec], packed: Mapping[str, tuple[int, ...]]) -> Census:
    """Parameters from a header: floating-point tensors, and the shapes of packed layers."""
    total = sum(math.prod(shape) for shape in packed.values())
    convolutions = 0
    for key, spec in specs.items():
        owner, _, last = key.rpartition(".")
        if not spec.dtype.is_floating_point or (owner in packed and last != "bias"):
            continue
        total += math.prod(spec.shape)
        if last == "weight" and len(spec.shape) == _CONVOLUTION:
            convolutions += math.prod(spec.shape)
    return Census(parameters=total, convolution_weights=convolutions)


def _dtypes(specs: Iterable[TensorSpec]) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec in specs:
        name = _SHORT.get(spec.dtype, str(spec.dtype).removeprefix("torch."))
        found[name] = found.get(name, 0) + spec.num_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _largest(
    component: str, specs: Mapping[str, TensorSpec], packed: Mapping[str, tuple[int, ...]]
) -> tuple[StoredLayer, ...]:
    shapes = dict(packed)
    sizes: dict[str, int] = {}
    for key, spec in specs.items():
        owner, _, last = key.rpartition(".")
        if last == "bias":
            continue
        sizes[owner] = sizes.get(owner, 0) + spec.num_bytes
        if last == "weight" and len(spec.shape) in _WEIGHT_DIMENSIONS:
            shapes[owner] = spec.shape
    layers = [
        StoredLayer(
            component=component,
            name=name,
            shape=shape,
            weights=math.prod(shape),
            bytes=sizes.get(name, 0),
        )
        for name, shape in shapes.items()
    ]
    return tuple(sorted(layers, key=lambda layer: (-layer.weights, layer.name))[:LARGEST])
