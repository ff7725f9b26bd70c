"""The only room that changes a model: it swaps layers by name and puts the very same objects back.

Nothing is hooked and nothing is copied, so a restored model is the old one: same parameters, same
state dict, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vqdq.activations.base import ActivationQuantizer, Site
from vqdq.codecs.base import Packed
from vqdq.errors import UserError
from vqdq.layers.inputs import LayerInput, noise_level_
from vqdq.layers.matrix import kind_of, weight_shape
from vqdq.layers.quantized import QuantizedLayer, Residency, pack
from vqdq.params import nearest
from vqdq.recipe import Layer


def candidates(module: nn.Module, dry_run: Callable[[], object] | None = None) -> tuple[Layer, ...]:
    """Returns the layers that could be quantized.

    Args:
        module: on any device; the meta device is enough.
        dry_run: calls the module once; the layers then come in the order in which it runs them
            (those it did not run come last). Without it they come in the order of registration,
            which for diffusers' UNets is not the order of execution.
    """
    found = {
        name: Layer(name=name, kind=kind, shape=weight_shape(layer))
        for name, layer in module.named_modules()
        if (kind := kind_of(layer)) is not None
    }
    if dry_run is None:
        return tuple(found.values())
    return tuple(
        replace(found[name], positions=positions)
        for name, positions in _executed(module, found, dry_run).items()
    )


def quantize_(
    model: nn.Module, packed: Mapping[str, Packed], *, residency: Residency = "resident"
) -> dict[str, nn.Module]:
    """Puts packed layers into `model` by name and returns the layers they replace, for `restore_`.

    Every name is checked before anything is changed.

    Raises:
        UserError: no such layer (the nearest is named), a layer of another kind or another shape.
    """
    originals: dict[str, nn.Module] = {}
    replacements: dict[str, nn.Module] = {}
    modules = dict(model.named_modules())
    for name, weight in packed.items():
        if name not in modules:
            known = [key for key, layer in modules.items() if kind_of(layer) is not None]
            raise UserError(
                "the model has no such layer.", where=name, remedy=nearest(name, known, "layer")
            )
        try:
            replacements[name] = pack(modules[name], weight, residency=residency)
        except UserError as error:
            raise UserError(error.what, where=name, remedy=error.remedy) from error
        originals[name] = modules[name]
    for name, layer in replacements.items():
        model.set_submodule(name, layer)
    return originals


def quantize_inputs_(
    model: nn.Module,
    inputs: Mapping[str, tuple[ActivationQuantizer[Any], Site]],
    stored: Mapping[str, Mapping[str, torch.Tensor]],
) -> None:
    """Quantizes the inputs of packed layers from now on.

    Args:
        inputs: quantizer and site by layer; layers of `model` that are packed.
        stored: their tensors by layer, as `input_layout` names them.
    """
    for name, (quantizer, site) in inputs.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, QuantizedLayer), name
        layer.quantize_input_(
            LayerInput(quantizer, site, noise_level_(model), where=name), stored[name]
        )


def set_activations_(model: nn.Module, enabled: bool) -> None:
    """Switches the quantized inputs of a model on or off; nothing is loaded again."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer) and layer.input is not None:
            layer.input.enabled = enabled


def restore_(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    """Puts back the layers that `quantize_` returned: the same objects, so the same bits."""
    for name, layer in originals.items():
        model.set_submodule(name, layer)


@contextmanager
def quantized(
    model: nn.Module, packed: Mapping[str, Packed], *, residency: Residency = "resident"
) -> Generator[nn.Module, None, None]:
    """Lends `model` with packed layers; the originals are back afterwards, whatever happened."""
    originals = quantize_(model, packed, residency=residency)
    try:
        yield model
    finally:
        restore_(model, originals)


def _executed(
    module: nn.Module, found: Mapping[str, Layer], dry_run: Callable[[], object]
) -> dict[str, int]:
    """Returns the positions of each layer's input by name, in the order of execution."""
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            shape = inputs[0].shape
            inner = shape[2:] if found[name].kind == "conv2d" else shape[1:-1]
            seen.setdefault(name, math.prod(inner))

        return hook

    modules = dict(module.named_modules())
    handles = [modules[name].register_forward_pre_hook(watch(name)) for name in found]
    try:
        dry_run()
    finally:
        for handle in handles:
            handle.remove()
    return {**seen, **{name: 0 for name in found if name not in seen}}
