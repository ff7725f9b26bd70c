"""The registry of weight codecs: a file here that registers a class is a method everywhere.

The form on the page, the command line, the contract tests and the documentation table all read it
from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, TypeVar

import torch

from vqdq.codecs.base import Codec, InputStats, Packed, Storage, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, nearest

__all__ = [
    "Codec",
    "InputStats",
    "Packed",
    "Storage",
    "WeightShape",
    "available",
    "create",
    "encode",
    "get",
    "names",
    "register",
]

_registry: dict[str, type[Codec[Any]]] = {}
C = TypeVar("C", bound=type[Codec[Any]])


def register(codec: C) -> C:
    """Returns `codec` after adding it to the registry; used as a class decorator."""
    _registry[codec.name] = codec
    return codec


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names() -> tuple[str, ...]:
    """Returns the names of all registered codecs, sorted."""
    _discover()
    return tuple(sorted(_registry))


def available() -> tuple[str, ...]:
    """Returns the names of the codecs that can be used here: all but absent peers."""
    return tuple(name for name in names() if not get(name).missing())


def get(name: str) -> type[Codec[Any]]:
    """Returns the codec class of that name.

    Raises:
        UserError: no such method; the nearest name is given.
    """
    _discover()
    if name not in _registry:
        raise UserError(
            f'unknown method "{name}".', where="method", remedy=nearest(name, _registry, "method")
        )
    return _registry[name]


def create(name: str, params: Params | None = None, **values: Any) -> Codec[Any]:
    """Returns a codec with the given settings (a `Params` object, or its fields by name).

    Raises:
        UserError: unknown method, unknown setting, a value out of range, or a peer that is not
            installed (the error says how to).
    """
    kind = get(name)
    ready = params if params is not None else kind.settings.from_json(values, where=name)
    return kind(ready)


def encode(
    weight: torch.Tensor,
    method: str,
    *,
    hessian: torch.Tensor | None = None,
    damping: float = 0.1,
    seed: int = 0,
    taps: int = 1,
    **params: Any,
) -> Packed:
    """Returns `weight` encoded by a registered method.

    Args:
        weight: [out, in], any float dtype.
        method: a name from `names()`.
        hessian: E[x xᵀ] of the layer's inputs, [in, in], for codecs that use it.
        damping: share of mean(diag H) added to its diagonal.
        seed: of all randomness; same seed and settings, same bytes.
        taps: kernel positions when the matrix is a convolution [out, taps*channels].
        params: settings of the method (`bits=3`, …).

    Raises:
        UserError: unknown method or setting, a value out of range, a damaged or impossible weight.
    """
    stats = None if hessian is None else InputStats(hessian=hessian, damping=damping)
    generator = torch.Generator().manual_seed(seed)
    return create(method, **params).encode(weight, taps=taps, stats=stats, generator=generator)
