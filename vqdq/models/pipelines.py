"""Pipelines and what is in them: load one, or list its layers without loading weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.attention import attention_places
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.residency import Mode, checked
from vqdq.models.denoisers import denoiser, layers_of, skeleton
from vqdq.models.fused import fused_keys
from vqdq.models.generate import GenerateResult, generate
from vqdq.models.modes import set_mode_
from vqdq.models.packed_config import Method
from vqdq.models.quiet import quiet
from vqdq.models.sources import DEMO, Source, demo_folder, locate, presets_folder
from vqdq.models.texts import read_object
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Component
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "DEMO",
    "GenerateResult",
    "ModelInfo",
    "component",
    "demo_folder",
    "denoiser",
    "describe",
    "generate",
    "load",
    "presets_folder",
]

_DEFAULT_SIDES = {"FluxPipeline": 128, "ChromaPipeline": 128, "HiDreamImagePipeline": 128}
"""Latents a side of a picture whose size no config says: `default_sample_size` in diffusers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known of a model without loading it.

    Attributes:
        title: for people; `reference`: what loads it again.
        pipeline_class: diffusers' class name.
        component: name of the denoiser ("unet" or "transformer").
        parameters: of the denoiser, as if it were not compressed.
        resolution: width and height in pixels of a picture at its default size, or None.
        latent_shape: [channels, height, width] of its latent, or None.
        is_quantized: the denoiser is compressed.
        recipe: name of the recipe it was compressed with, or None.
        bytes: size of the denoiser's weight files on disk.
    """

    title: str
    reference: str
    pipeline_class: str
    component: str
    parameters: int
    resolution: tuple[int, int] | None
    latent_shape: tuple[int, int, int] | None
    is_quantized: bool
    recipe: str | None
    bytes: int


def load(
    model: str | Path,
    *,
    base: str | Path | None = None,
    mode: Mode = "resident",
    cache_bytes: int | None = None,
    offload: bool = False,
    dtype: torch.dtype = torch.float32,
    report: Report = silent,
) -> DiffusionPipeline:
    """Returns the pipeline of a model, compressed or not, on the CPU.

    Args:
        model: "demo", a folder, a single .safetensors file or a hub id; see `sources.locate`.
        base: what completes a single file.
        mode: how a compressed model keeps its decoded weights (`vqdq.layers.residency.set_mode_`);
            "hybrid" within `cache_bytes`.
        offload: "streaming" and "hybrid" leave the packed weights in the processor's memory when
            the pipeline is moved to a card.
        dtype: in which it computes; packed weights are decoded to it.

    Raises:
        UserError: the model cannot be found, opened or trusted, or not run in that mode.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    checked(mode, cache_bytes, offload)
    report(Event(stage="load", done=0, total=2, message=str(model)))
    source = locate(model, base=base, report=report)
    _require_whole(source, source.missing)
    source.check()  # a damaged file is named here, not deep inside a loader
    _refuse_code(source)
    report(Event(stage="load", done=1, total=2, message=source.title))
    try:
        with quiet():
            pipeline = DiffusionPipeline.from_pretrained(
                source.folder,
                dtype=dtype,
                variant=source.variant,
                use_safetensors=True,
                local_files_only=True,
            )
    except (OSError, ValueError, ImportError) as error:
        _require_whole(source, source.to_draw)
        raise UserError(
            f"diffusers cannot open it: {_first_line(error)}",
            where=str(source.folder),
            remedy="Copy the model again; every component needs safetensors weights.",
        ) from error
    _require_packed(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    set_mode_(pipeline, mode, cache_bytes, offload=offload)
    report(Event(stage="load", done=2, total=2, message=source.title))
    return pipeline


def component(model: str | Path | DiffusionPipeline) -> Component:
    """Returns the layers and the stored tensors of a model's denoiser; reads no weights.

    Raises:
        UserError: the model cannot be found, its file is damaged, or it does not fit its config.
    """
    if isinstance(model, str | Path):
        return source_component(locate(model))
    name, module = denoiser(model)
    config = {**cast(Any, module).config, "_class_name": type(module).__name__}
    ghost = skeleton(config, where=name)
    apart = fused_keys(module)
    specs = [
        TensorSpec.of(key, tensor)
        for key, tensor in module.state_dict().items()
        if key not in apart
    ]
    return _component(name, ghost, specs)


def config_component(config: Mapping[str, Any], name: str) -> Component:
    """Returns the component that a config describes, in 16 bits, without any file of weights.

    Args:
        config: the values of its `config.json`; name: of the component ("unet", "transformer").

    Raises:
        UserError: a class that diffusers does not know, or settings it does not take.
    """
    ghost = skeleton(config, where=f"{name}/config.json")
    return _component(
        name,
        ghost,
        [
            TensorSpec(name=key, dtype=torch.float16, shape=tuple(tensor.shape))
            for key, tensor in ghost.state_dict().items()
        ],
    )


def source_component(source: Source) -> Component:
    """Returns the component of a located source; see `component`."""
    place = str(source.folder / source.denoiser)
    ghost = skeleton(source.config, where=f"{place}/config.json")
    stored = {key: spec for file in source.weights() for key, spec in file.tensors.items()}
    if not source.is_quantized:
        for key, tensor in ghost.state_dict().items():
            if key not in stored or stored[key].shape != tuple(tensor.shape):
                found = f"is {list(stored[key].shape)}" if key in stored else "is missing"
                raise UserError(
                    f"{key} {found}, config.json says {list(tensor.shape)}.",
                    where=place,
                    remedy="Weights and config do not belong together: copy the model again.",
                )
        _refuse_extra(stored.keys() - ghost.state_dict().keys(), ghost, place)
        stored = {key: stored[key] for key in ghost.state_dict()}
    return _component(source.denoiser, ghost, stored.values())


def _refuse_extra(extra: Iterable[str], ghost: nn.Module, place: str) -> None:
    """Raises for stored tensors that the class neither takes nor is known to leave."""
    left: list[str] = getattr(ghost, "_keys_to_ignore_on_load_unexpected", None) or []
    over = sorted(key for key in extra if not any(re.search(rule, key) for rule in left))
    if over:
        raise UserError(
            f"{over[0]} has no place in config.json"
            + (f", like {len(over) - 1} others." if len(over) > 1 else "."),
            where=place,
            remedy="Weights and config do not belong together: copy the model again.",
        )


def _component(name: str, ghost: nn.Module, specs: Iterable[TensorSpec]) -> Component:
    return Component(
        name=name,
        layers=layers_of(ghost),
        tensors=tuple(specs),
        attentions=attention_places(ghost),
    )


def describe(model: str | Path) -> ModelInfo:
    """Returns what is known of a model without loading weights.

    Raises:
        UserError: the model cannot be found or its files are damaged.
    """
    source = locate(model)
    ghost = skeleton(source.config, where=str(source.folder / source.denoiser / "config.json"))
    quantization: Any = source.config.get("quantization_config")
    own: Any = quantization.get("recipe") if isinstance(quantization, dict) else None
    recipe = str(own.get("name")) if isinstance(own, dict) else None
    latent = _latent_shape(source)
    scale = _vae_scale(source)
    kind = str(source.index.get("_class_name", ""))
    side = latent[1] if latent is not None else _DEFAULT_SIDES.get(kind)
    size = None if side is None or scale is None else (side * scale, side * scale)
    return ModelInfo(
        title=source.title,
        reference=source.reference,
        pipeline_class=kind,
        component=source.denoiser,
        parameters=sum(math.prod(tensor.shape) for tensor in ghost.parameters()),
        resolution=size,
        latent_shape=latent,
        is_quantized=source.is_quantized,
        recipe=recipe,
        bytes=sum(file.path.stat().st_size for file in source.weights()),
    )


def _latent_shape(source: Source) -> tuple[int, int, int] | None:
    size, channels = source.config.get("sample_size"), source.config.get("in_channels")
    if not isinstance(size, int) or not isinstance(channels, int):
        return None
    return (channels, size, size)


def _vae_scale(source: Source) -> int | None:
    try:
        values = read_object(source.folder / "vae" / "config.json")
    except (OSError, UserError):
        return None
    widths = values.get("block_out_channels")
    return 2 ** (len(widths) - 1) if isinstance(widths, list) and 0 < len(widths) < 16 else None


def _require_whole(source: Source, lacking: tuple[str, ...]) -> None:
    if lacking:
        raise UserError(
            f"cannot draw without {', '.join(lacking)}: not there.",
            where=str(source.file or source.folder),
            remedy=source.to_complete,
        )


def _require_packed(pipeline: DiffusionPipeline) -> None:
    """Raises when a library opened a compressed component without its packed layers.

    transformers fills what it does not find with random numbers; nobody is to draw with those.
    """
    for name, part in cast(dict[str, object], cast(Any, pipeline).components).items():
        config = getattr(part, "config", None)
        if not isinstance(part, nn.Module) or config is None:
            continue
        given: object = getattr(config, "quantization_config", None)
        values = given if isinstance(given, dict) else getattr(given, "__dict__", {})
        known = cast(dict[str, Any], values)
        if known.get("quant_method") != Method.VQDQ:
            continue
        held = sum(isinstance(layer, QuantizedLayer) for layer in part.modules())
        if held != len(known["layers"]) or any(t.is_meta for t in part.state_dict().values()):
            raise UserError(
                f"was opened with {held} of {len(known['layers'])} packed layers.",
                where=name,
                remedy="The folder is damaged, or its library is of another version than ours.",
            )


def _refuse_code(source: Source) -> None:
    """Raises when a component brings its own program: opening a model must not run one."""
    for name, value in source.index.items():
        if isinstance(value, list) and len(cast(list[Any], value)) == 2:
            library = cast(list[Any], value)[0]
            if (source.folder / name / f"{library}.py").is_file():
                raise UserError(
                    f"{name} brings its own program ({library}.py), which is not run.",
                    where=str(source.folder),
                    remedy="Use a model that diffusers itself can load.",
                )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
