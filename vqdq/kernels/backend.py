"""Which implementation a kernel uses: the compiled one, or plain torch where numba cannot run."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def chosen(compiled: str, plain: str) -> tuple[ModuleType, str]:
    """Returns the module to use, and why, from the names of a compiled and of a plain one."""
    try:
        return importlib.import_module(compiled), "compiled by numba for this processor"
    except ImportError as error:
        reason = f"plain torch, slow: numba cannot be used ({error})"
        return importlib.import_module(plain), reason
