"""VQDQ: text-to-image diffusion models in two to four bits, and what it costs, to see.

    import vqdq
    pipeline = vqdq.load("demo")
    small = vqdq.compress(pipeline, "trellis-3bit")

Importing the package teaches diffusers to open compressed folders. It takes no time: each name is
imported when it is first used. The named recipes (`presets/`) and the demo model (`assets/demo/`)
stand next to the package, in a clone or an editable installation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vqdq import plugin

if TYPE_CHECKING:
    from vqdq.catalog import Method, activation_methods, methods
    from vqdq.codecs import Packed, encode
    from vqdq.errors import UserError
    from vqdq.models.compressor import compress, plan
    from vqdq.models.modes import ModeEstimate, mode_estimates, set_mode_
    from vqdq.models.packed_config import VqdqConfig
    from vqdq.models.pipelines import load
    from vqdq.recipe import Plan, Recipe

    __version__: str

__all__ = [
    "Method",
    "ModeEstimate",
    "Packed",
    "Plan",
    "Recipe",
    "UserError",
    "VqdqConfig",
    "__version__",
    "activation_methods",
    "compress",
    "encode",
    "load",
    "methods",
    "mode_estimates",
    "plan",
    "set_mode_",
]

_HOMES = {
    "Method": "vqdq.catalog",
    "ModeEstimate": "vqdq.models.modes",
    "Packed": "vqdq.codecs",
    "Plan": "vqdq.recipe",
    "Recipe": "vqdq.recipe",
    "UserError": "vqdq.errors",
    "VqdqConfig": "vqdq.models.packed_config",
    "activation_methods": "vqdq.catalog",
    "compress": "vqdq.models.compressor",
    "encode": "vqdq.codecs",
    "load": "vqdq.models.pipelines",
    "methods": "vqdq.catalog",
    "mode_estimates": "vqdq.models.modes",
    "plan": "vqdq.models.compressor",
    "set_mode_": "vqdq.models.modes",
}

plugin.install()


def __getattr__(name: str) -> Any:
    """Returns a public name, imported at its first use (PEP 562)."""
    if name == "__version__":
        from importlib import metadata

        value: Any = metadata.version("vqdq")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
