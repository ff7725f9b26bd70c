"""Teaches diffusers to open compressed folders at the moment when diffusers itself is imported.

`import vqdq` must make `DiffusionPipeline.from_pretrained` work, and must not cost the seconds that
diffusers takes: `vqdq --help` has to answer at once, and the page's process never needs it. So the
plug-in waits on the import system for the one module that holds diffusers' tables.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TABLES = "diffusers.quantizers.auto"


def install() -> None:
    """Registers now when diffusers is imported already, else as soon as it will be."""
    if TABLES in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `TABLES` like everybody else, once, and runs `_register` after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Another loader, followed by the registration."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        _register()


def _register() -> None:
    importlib.import_module("vqdq.models.hub")  # registers itself, also when imported first
