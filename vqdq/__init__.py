"""VQDQ: text-to-image diffusion models in two to four bits, and what it costs, to see.

    import vqdq
    pipeline = vqdq.load("demo")
    small = vqdq.compress(pipeline, "trellis-3bit")

Importing the package teaches diffusers to open compressed folders. The named recipes (`presets/`)
and the demo model (`assets/demo/`) stand next to the package, in a clone or an editable
installation.
"""

from __future__ import annotations

from dataclasses import dataclass

from vqdq import codecs
from vqdq.codecs import Packed, encode
from vqdq.errors import UserError
from vqdq.models import hub
from vqdq.models.compressor import compress, plan
from vqdq.models.partial import version
from vqdq.models.pipelines import load
from vqdq.params import ParamInfo, describe
from vqdq.recipe import Plan, Recipe

__all__ = [
    "Method",
    "Packed",
    "Plan",
    "Recipe",
    "UserError",
    "__version__",
    "compress",
    "encode",
    "load",
    "methods",
    "plan",
]

__version__ = version()
hub.register()


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A registered codec, for people and programs that choose one.

    Attributes:
        name: what `encode` and recipes call it.
        title, summary: for people; `reference`: its source.
        params: its settings with range, default and help.
    """

    name: str
    title: str
    summary: str
    reference: str
    params: tuple[ParamInfo, ...]


def methods() -> tuple[Method, ...]:
    """Returns every method that can encode a weight, sorted by name."""
    kinds = [codecs.get(name) for name in codecs.names()]
    return tuple(
        Method(
            name=kind.name,
            title=kind.title,
            summary=kind.summary,
            reference=kind.reference,
            params=describe(kind.settings),
        )
        for kind in kinds
    )
