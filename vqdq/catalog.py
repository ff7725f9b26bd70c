"""The methods that can encode a weight, for people and programs that choose one."""

from __future__ import annotations

from dataclasses import dataclass

from vqdq import codecs
from vqdq.params import ParamInfo, describe


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A registered codec.

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
