"""Bounds on what a config may ask for: a stranger's file must not cost hours or all memory.

Building a model on the meta device takes no memory for weights, but each module takes 40 kB and
a millisecond: a config with a billion layers would hang long before its weights are missed.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from vqdq.errors import UserError

MAX_MODULES = 10_000  # SDXL's UNet has 2,500, FLUX 2,400
MAX_NUMBER = 100_000_000
MAX_ITEMS = 10_000
MAX_DEPTH = 20
# What others' constructors raise when a config makes no sense.
BAD_CONFIG = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError,
    RuntimeError, MemoryError, NameError, ImportError,
)  # fmt: skip


def require_small(config: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` for a config with a number, a list or a nesting beyond any model's."""
    pending: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in config.items()]
    items = 0
    while pending:
        key, value, depth = pending.pop()
        items += 1
        if depth > MAX_DEPTH or items > MAX_ITEMS:
            raise UserError("is nested too deep or too long.", where=where, remedy=_REMEDY)
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # NaN as well
            shown = f"{value:.3g}" if isinstance(value, float) else f"{str(value)[:20]}"
            raise UserError(f"{key[:100]} is {shown}: out of range.", where=where, remedy=_REMEDY)
        if isinstance(value, Mapping):
            pending += [(f"{key}.{name}", part, depth + 1) for name, part in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(key, part, depth + 1) for part in value]


@contextmanager
def bounded_modules(where: str) -> Generator[None, None, None]:
    """Raises `UserError` when more modules are built in the block, in this thread, than fit."""
    mine, count = threading.get_ident(), 0

    def counted(module: nn.Module, name: str, child: nn.Module | None) -> None:
        del module, name, child
        nonlocal count
        if threading.get_ident() == mine:
            count += 1
            if count > MAX_MODULES:
                raise UserError(
                    f"describes a model of more than {MAX_MODULES:,} modules.",
                    where=where,
                    remedy=_REMEDY,
                )

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


_REMEDY = "No known model is like that: copy the model again."
