"""Teaches diffusers and transformers to open compressed folders when they are imported themselves.

`import vqdq` must make `DiffusionPipeline.from_pretrained` work, and must not cost the seconds that
diffusers takes: `vqdq --help` has to answer at once, and the page's process never needs it. So the
plug-in waits on the import system for the modules that hold the libraries' tables.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PLUGINS = {
    "diffusers.quantizers.auto": "vqdq.models.hub",
    "transformers.quantizers.auto": "vqdq.models.text_hub",
}  # the module with a library's tables -> ours, which registers itself when it is imported


def install() -> None:
    """Registers now with what is imported already, else as soon as it will be."""
    for tables in PLUGINS:
        if tables in sys.modules:
            _register(tables)
        elif not any(isinstance(each, _Finder) and each.tables == tables for each in sys.meta_path):
            sys.meta_path.insert(0, _Finder(tables))


class _Finder(MetaPathFinder):
    """Finds one library's tables like everybody else, once, and runs `_register` after it."""

    def __init__(self, tables: str) -> None:
        self.tables = tables

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != self.tables:
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
        _register(module.__name__)


def _register(tables: str) -> None:
    importlib.import_module(PLUGINS[tables])
