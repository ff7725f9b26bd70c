"""Other people's quantizers as codecs: their code, their packing, their true bits.

Nothing here is imported to find out whether a library is there; an absent one is listed with the
command that installs it. None of them is needed for anything else.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
