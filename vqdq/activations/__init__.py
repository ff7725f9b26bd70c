"""The registry of activation quantizers: a file here that registers a class is a method everywhere.

The form on the page, the command line, the contract tests and the documentation table all read it
from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any, TypeVar

from vqdq.activations.base import ActivationQuantizer, Grid, InputRanges, Site
from vqdq.errors import UserError
from vqdq.params import Params, nearest

__all__ = [
    "ActivationQuantizer",
    "Grid",
    "InputRanges",
    "Site",
    "create",
    "get",
    "names",
    "register",
]

_registry: dict[str, type[ActivationQuantizer[Any]]] = {}
Q = TypeVar("Q", bound=type[ActivationQuantizer[Any]])


def register(quantizer: Q) -> Q:
    """Returns `quantizer` after adding it to the registry; used as a class decorator."""
    _registry[quantizer.name] = quantizer
    return quantizer


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names() -> tuple[str, ...]:
    """Returns the names of all registered activation quantizers, sorted."""
    _discover()
    return tuple(sorted(_registry))


def get(name: str) -> type[ActivationQuantizer[Any]]:
    """Returns the class of that name.

    Raises:
        UserError: no such method; the nearest name is given.
    """
    _discover()
    if name not in _registry:
        raise UserError(
            f'unknown activation method "{name}".',
            where="activation",
            remedy=nearest(name, _registry, "activation method"),
        )
    return _registry[name]


def create(name: str, params: Params | None = None, **values: Any) -> ActivationQuantizer[Any]:
    """Returns a quantizer with the given settings (a `Params` object, or its fields by name).

    Raises:
        UserError: unknown method, unknown setting or a value out of range.
    """
    kind = get(name)
    return kind(params if params is not None else kind.settings.from_json(values, where=name))
