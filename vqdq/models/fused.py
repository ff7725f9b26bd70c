"""Projections that diffusers fused (`fuse_qkv_projections`): a file holds them apart.

diffusers keeps the single projections beside the fused one, so nothing has to be computed to undo
it. A model is compressed as its file has it: the same layers and the same bytes, fused or not.
Architectures whose projections are one layer by nature (`to_qkv_mlp_proj`) are not touched.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def fused_keys(module: nn.Module) -> set[str]:
    """Returns the state-dict keys that are there only because projections were fused."""
    found: set[str] = set()
    for name, place, layer in _fused(module):
        prefix = f"{name}.{layer}" if name else layer
        found |= {f"{prefix}.{key}" for key in place.get_submodule(layer).state_dict()}
    return found


def split_projections_(module: nn.Module) -> None:
    """Undoes `fuse_qkv_projections`: processors and layers are what they were before."""
    fused = _fused(module)
    if not fused:
        return
    unfuse = getattr(module, "unfuse_qkv_projections", None)
    if unfuse is not None:
        unfuse()
    for _, place, layer in fused:
        place._modules.pop(layer, None)  # pyright: ignore[reportPrivateUsage]
        cast(Any, place).fused_projections = False


def _fused(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    return [
        (name, place, layer)
        for name, place in module.named_modules()
        if getattr(place, "fused_projections", False)
        for layer in _FUSED
        if isinstance(getattr(place, layer, None), nn.Module)
    ]
