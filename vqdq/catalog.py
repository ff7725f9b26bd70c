"""The methods that can encode a weight or round an activation, for who has to choose one."""

from __future__ import annotations

from dataclasses import dataclass

from vqdq import activations, codecs
from vqdq.params import ParamInfo, describe


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A registered codec or activation quantizer.

    Attributes:
        name: what `encode`, recipes and flags call it.
        title, summary: for people; `reference`: its source.
        params: its settings with range, default and help.
        available: it can be used here.
        install: the command that makes it available; "" when it is.
    """

    name: str
    title: str
    summary: str
    reference: str
    params: tuple[ParamInfo, ...]
    available: bool = True
    install: str = ""


def methods() -> tuple[Method, ...]:
    """Returns every method, sorted by name; an absent peer says how to install it."""
    kinds = [codecs.get(name) for name in codecs.names()]
    return tuple(
        Method(
            name=kind.name,
            title=kind.title,
            summary=kind.summary,
            reference=kind.reference,
            params=describe(kind.settings),
            available=not kind.missing(),
            install=kind.missing(),
        )
        for kind in kinds
    )


def activation_methods() -> tuple[Method, ...]:
    """Returns every way to round the inputs of layers, sorted by name."""
    kinds = [activations.get(name) for name in activations.names()]
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
