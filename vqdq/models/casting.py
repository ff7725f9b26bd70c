"""What a cast does to a compressed model: it passes the packed tensors by, and nothing refuses it.

diffusers and transformers refuse to cast any quantized model, because a cast would spoil most
packed weights. Ours are never touched by one (`QuantizedLayer._apply`); what is in 16 bits is cast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vqdq.layers.residency import choose_again_
from vqdq.models.packed_config import Method


def let_casts_pass(kind: type[nn.Module]) -> None:
    """Makes `.to(dtype)`, `.half()` and `.float()` work on our models of a library.

    Args:
        kind: the base class of the library's models.
    """
    for name in ("to", "half", "float"):
        plain = getattr(kind, name)
        if not hasattr(plain, "_vqdq"):
            setattr(kind, name, _passing(plain))


def lossless_half(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in float16 where that loses nothing, else as it is."""
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def _passing(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def cast_(model: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(model, "quantization_method", None) != Method.VQDQ:
            return plain(model, *args, **kwargs)
        model.is_quantized = False
        try:
            return plain(model, *args, **kwargs)
        finally:
            model.is_quantized = True
            choose_again_(model)

    cast_._vqdq = True  # type: ignore[attr-defined]
    return cast_
