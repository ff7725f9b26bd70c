"""The components of a pipeline that can be compressed beside its denoiser: what they are made of.

Two libraries open them, and both rename on the way: transformers gave some text encoders other
names than their files have, diffusers still reads files whose attention has its old names. A layer
is called here as in the file that will be written: by diffusers' present names, and by the file's
own names for transformers, which do not change with its versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.surgery import candidates
from vqdq.models.denoisers import skeleton
from vqdq.models.fused import fused_keys
from vqdq.models.sources import Source, is_plain
from vqdq.models.texts import read_object
from vqdq.models.weight_sets import open_component
from vqdq.models.weights import WeightFile
from vqdq.recipe import Component, Layer, Recipe
from vqdq.sections import chosen
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
Reads = Mapping[str, Callable[[], torch.Tensor]]

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A component of a folder, beside the denoiser.

    Attributes:
        name: "text_encoder", "vae" …; folder: its own.
        library: "diffusers" or "transformers"; kind: the class that opens it.
        config: the values of its `config.json`.
    """

    name: str
    folder: Path
    library: str
    kind: str
    config: dict[str, Any]

    @property
    def weight_name(self) -> str:
        """The name of its weight file."""
        return f"{STEMS[self.library]}.safetensors"

    @property
    def is_quantized(self) -> bool:
        """True when it is compressed already (by whatever program)."""
        return self.config.get("quantization_config") is not None

    def weights(self) -> tuple[WeightFile, ...]:
        """Returns its weight files, headers checked.

        Raises:
            UserError: pickled, missing or damaged weights.
        """
        return open_component(self.folder, STEMS[self.library])


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A component as its module has it.

    Attributes:
        keys: key in the module -> key in the file, for every tensor that is read as it is.
        component: with the names of the file.
    """

    keys: Mapping[str, str]
    component: Component

    def paths(self) -> dict[str, str]:
        """Returns where the module has each layer of the component, by its name there."""
        inside = {key: own for own, key in self.keys.items()}
        return {
            layer.name: inside[f"{layer.name}.weight"].removesuffix(".weight")
            for layer in self.component.layers
        }


def parts(source: Source) -> dict[str, Part]:
    """Returns the components of a folder that have weights, beside the denoiser, by name."""
    found: dict[str, Part] = {}
    for name, value in source.index.items():
        entry = cast(list[Any], value) if isinstance(value, list) else []
        folder, config = source.folder / name, source.folder / name / "config.json"
        if not is_plain(name) or name == source.denoiser:
            continue
        if len(entry) != 2 or not config.is_file():
            continue
        if entry[0] in STEMS and any(folder.glob("*.safetensors")):
            values = read_object(config)
            found[name] = Part(
                name=name,
                folder=folder,
                library=entry[0],
                kind=str(entry[1]),
                config=values,
            )
    return found


def asked(source: Source, recipe: Recipe) -> dict[str, Part]:
    """Returns the components that a recipe speaks of beside the denoiser, by name.

    Raises:
        UserError: a section that matches no component, or one that is compressed already.
    """
    if not recipe.components:
        return {}
    known = parts(source)
    names = chosen(recipe.components, list(known), source.denoiser)
    for name in names:
        refuse_compressed(known[name].is_quantized, str(known[name].folder), known[name].config)
    return {name: known[name] for name in names}


def part_component(part: Part) -> tuple[Component, Reads]:
    """Returns the layers and tensors of a component, and how each tensor is read.

    Raises:
        UserError: a damaged file, a class that the library does not know, or weights that do not
            fit the config.
    """
    ghost = ghost_of(part)
    files = {key: file for file in part.weights() for key in file.tensors}
    specs = {key: file.tensors[key] for key, file in files.items()}
    inner = read_in(part.name, part.library, ghost, specs, str(part.folder))
    renamed = _renamed(ghost, specs) if part.library == "diffusers" else {k: k for k in specs}
    return inner.component, {
        spec.name: partial(files[renamed[spec.name]].read, renamed[spec.name])
        for spec in inner.component.tensors
    }


def ghost_of(part: Part) -> nn.Module:
    """Returns the component on the meta device, unquantized.

    Raises:
        UserError: a class that the library does not know, or settings it does not take.
    """
    place = f"{part.folder}/config.json"
    if part.library == "diffusers":
        return skeleton(part.config, where=place)
    from vqdq.models.text_parts import text_skeleton  # heavy: transformers

    return text_skeleton(part.kind, part.config, where=place)


def read_in(
    name: str, library: str, module: nn.Module, specs: Mapping[str, TensorSpec], where: str
) -> Inner:
    """Returns a module read by the names of its file.

    Args:
        specs: what the file holds, by its keys.

    Raises:
        UserError: a tensor is missing or has another shape than the module.
    """
    fused, tied = fused_keys(module), tied_keys(module)
    own = {key: tensor for key, tensor in module.state_dict().items() if key not in fused}
    if library == "transformers":
        from vqdq.models.text_parts import module_keys

        inside, assembled = module_keys(module, specs)
        stored = dict(specs)
    else:
        names = _renamed(module, specs)
        stored = {key: replace(specs[old], name=key) for key, old in names.items()}
        inside, assembled = {key: key for key in stored if key in own}, set[str]()
    keys = {own_key: key for key, own_key in inside.items()}
    for key, tensor in own.items():
        spec = stored[keys[key]] if key in keys else None
        if spec is not None and spec.shape == tuple(tensor.shape):
            continue
        if spec is None and (assembled or _elsewhere(key, keys, tied) or _optional(module, key)):
            continue
        found = "is missing" if spec is None else f"is {list(spec.shape)}"
        raise UserError(
            f"{key} {found}, config.json says {list(tensor.shape)}.",
            where=where,
            remedy="Weights and config do not belong together: copy the model again.",
        )
    doubled = {keys[key] for key, first in tied.items() if key in keys and first in keys}
    return Inner(
        keys=keys,
        component=Component(
            name=name,
            layers=_layers(module, keys, tied),
            tensors=tuple(
                spec
                for key, spec in stored.items()
                if (key in inside or key in assembled) and key not in doubled
            ),
            guarded=library == "transformers",
        ),
    )


def tied_keys(module: nn.Module) -> Mapping[str, str]:
    """Returns the keys of a module whose tensor is another key's: key -> the one that is stored."""
    found: Mapping[str, str] | None = getattr(module, "all_tied_weights_keys", None)
    return found or {}


def others_of(pipeline: DiffusionPipeline, recipe: Recipe, denoiser: str) -> dict[str, Inner]:
    """Returns the components of a loaded pipeline that a recipe speaks of, beside the denoiser.

    Raises:
        UserError: a section that matches no component, or one that is compressed already.
    """
    if not recipe.components:
        return {}
    known = {
        name: part
        for name, part in cast(dict[str, object], cast(Any, pipeline).components).items()
        if name != denoiser and isinstance(part, nn.Module)
    }
    found: dict[str, Inner] = {}
    for name in chosen(recipe.components, list(known), denoiser):
        module = known[name]
        refuse_compressed(bool(getattr(module, "is_quantized", False)), type(module).__name__)
        found[name] = live(name, module)
    return found


def live(name: str, module: nn.Module) -> Inner:
    """Returns a module in memory read by the names that its file would have.

    Raises:
        UserError: of neither library.
    """
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    if isinstance(module, ModelMixin):
        specs = {key: TensorSpec.of(key, t) for key, t in module.state_dict().items()}
        return read_in(name, "diffusers", module, specs, name)
    if isinstance(module, PreTrainedModel):
        from vqdq.models.text_parts import file_specs

        return read_in(name, "transformers", module, file_specs(module), name)
    raise UserError(
        f"{type(module).__name__} is part of neither diffusers nor transformers.",
        where=name,
        remedy="Leave this component out of the recipe.",
    )


def refuse_compressed(compressed: bool, where: str, config: Mapping[str, Any] = _NOTHING) -> None:
    """Raises `UserError` when a component is compressed already.

    Args:
        config: its config, which names the program.
    """
    given: Any = config.get("quantization_config")
    by = str(given.get("quant_method", "another program")) if isinstance(given, dict) else ""
    if compressed and by not in ("", "vqdq"):
        raise UserError(
            f"is quantized already, by {by[:100]}.",
            where=where,
            remedy="Start from the model in 16 or 32 bits that it was made of.",
        )
    if compressed:
        raise UserError(
            "is compressed already.", where=where, remedy="Compress the model it was made from."
        )


def _layers(
    module: nn.Module, keys: Mapping[str, str], tied: Mapping[str, str]
) -> tuple[Layer, ...]:
    """The candidates whose weight is read as it is and belongs to them alone."""
    shared = {*tied, *tied.values()}
    return tuple(
        replace(layer, name=keys[f"{layer.name}.weight"].removesuffix(".weight"))
        for layer in candidates(module)
        if f"{layer.name}.weight" in keys and f"{layer.name}.weight" not in shared
    )


def _elsewhere(key: str, keys: Mapping[str, str], tied: Mapping[str, str]) -> bool:
    """Whether a missing tensor is stored under the name of one that it is tied to."""
    first = tied.get(key, key)
    group = {first, *(other for other, of in tied.items() if of == first)}
    return any(other in keys for other in group)


def _optional(module: nn.Module, key: str) -> bool:
    patterns = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, key) for pattern in patterns)


def _renamed(module: nn.Module, specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Returns diffusers' present name of each tensor of a file -> the file's own key."""
    names = {key: key for key in specs}
    fix = getattr(module, "_fix_state_dict_keys_on_load", None)
    if fix is not None:
        fix(names)
    return names
