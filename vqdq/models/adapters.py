"""What adapters (LoRA) may not do to packed weights, refused before anything has changed.

As side branches they are exact. Merged, they would be lost: a packed weight cannot take them up.
diffusers merges and rescales layer by layer, so a refusal in the middle would leave the layers
before it changed; and it saves a model with adapters under names that no model has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer

_INNER = "base_layer"  # PEFT's name for the layer that an adapter stands beside


def refuse_merging(kind: type[Any]) -> None:
    """Makes `fuse_lora` refuse models with adapters on packed layers.

    Args:
        kind: the class that has `fuse_lora`: of its models, or of its pipelines.
    """
    plain = kind.fuse_lora
    if not hasattr(plain, "_vqdq"):
        kind.fuse_lora = _refusing(plain)


def refuse_saving(keys: Iterable[str]) -> None:
    """Raises `UserError` when a state dict has adapters in it."""
    found = next((key for key in keys if f".{_INNER}." in key), None)
    if found is not None:
        raise UserError(
            "an adapter is loaded; it is no part of a compressed model and was not saved.",
            where=found.partition(f".{_INNER}.")[0],
            remedy="Call unload_lora_weights() and save again; save_lora_weights() or"
            " save_lora_adapter() keep the adapter in a file of its own.",
        )


def show_shapes(kind: type[Any]) -> None:
    """Lets FLUX adapters be loaded beside packed layers.

    diffusers first compares the shape of every adapter with the weight in the state dict, which a
    packed layer does not have, and would decode each one only to see its shape.

    Args:
        kind: the class that loads FLUX adapters.
    """
    if hasattr(kind._maybe_expand_lora_state_dict, "_vqdq"):
        return
    widen = kind._maybe_expand_transformer_param_shape_or_error_.__func__
    pad = kind._maybe_expand_lora_state_dict.__func__

    @functools.wraps(widen)
    def widened(
        cls: Any, transformer: nn.Module, lora_state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        _refuse_wider(transformer, lora_state_dict or {})
        with _shown(transformer):
            return widen(cls, transformer, lora_state_dict, *args, **kwargs)

    @functools.wraps(pad)
    def padded(cls: Any, transformer: nn.Module, lora_state_dict: Any) -> Any:
        with _shown(transformer):
            return pad(cls, transformer, lora_state_dict)

    padded._vqdq = True  # type: ignore[attr-defined]
    kind._maybe_expand_transformer_param_shape_or_error_ = classmethod(widened)
    kind._maybe_expand_lora_state_dict = classmethod(padded)


@contextmanager
def _shown(model: nn.Module) -> Generator[None, None, None]:
    """Packed layers show a weight of their shape, without values, and have it in the state dict."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLayer)]

    def add(layer: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
        state[f"{prefix}weight"] = layer.__dict__["weight"]

    hooks = [layer.register_state_dict_post_hook(add) for layer in layers]
    try:
        for layer in layers:
            shape = (layer.packed.shape.out_features, layer.packed.shape.in_features)
            layer.__dict__["weight"] = torch.zeros(()).expand(shape)
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            layer.__dict__.pop("weight", None)
            hook.remove()


def _refuse_wider(model: nn.Module, adapters: Mapping[str, torch.Tensor]) -> None:
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        own = name.removesuffix(f".{_INNER}")
        shape = layer.packed.shape
        for key, axis, width in (
            ("lora_A", 1, shape.in_features),
            ("lora_B", 0, shape.out_features),
        ):
            ending = f"{own}.{key}.weight"
            found = adapters.get(ending, adapters.get(f"transformer.{ending}"))
            if found is not None and found.shape[axis] > width:
                raise UserError(
                    f"the adapter needs {found.shape[axis]} channels, the packed layer has {width};"
                    " it cannot be widened.",
                    where=own,
                    remedy="Compress with a rule that keeps this layer in 16 bits (method null).",
                )


def _refusing(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def fuse_lora(model: Any, *args: Any, **kwargs: Any) -> Any:
        parts = (
            [model]
            if isinstance(model, nn.Module)
            else [getattr(model, part, None) for part in model._lora_loadable_modules]
        )
        name = next((name for part in parts if (name := _adapted(part)) is not None), None)
        if name is not None:
            raise UserError(
                "a packed weight cannot be changed in place: no adapter can be merged into it.",
                where=name,
                remedy="Leave it loaded, it is exact as a side branch; or merge it into the"
                " full-precision model and compress that.",
            )
        return plain(model, *args, **kwargs)

    fuse_lora._vqdq = True  # type: ignore[attr-defined]
    return fuse_lora


def _adapted(model: object) -> str | None:
    """Returns the name of a packed layer with an adapter beside it, or None."""
    if isinstance(model, nn.Module):
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLayer) and name.endswith(f".{_INNER}"):
                return name.removesuffix(f".{_INNER}")
    return None
