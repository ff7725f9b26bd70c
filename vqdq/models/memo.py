"""The same call of a model again and again, with one layer changed each time: compute what differs.

Every module of the model remembers what it was given and what it made of that. When the call is
made again, a module that is given the same once more gives the same back, unless something inside
it was changed. Nothing is assumed of the architecture: inputs are compared, by identity first and
by value else. So the results are those of computing everything, bit for bit, in half the time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from vqdq.layers.surgery import restore_

LIMIT_BYTES = 1_000_000_000
_PLAIN = (bool, int, float, str, torch.Size, torch.dtype, torch.device)
_FORWARD = "forward"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What a module was given and gave, with the version of every tensor when it was kept."""

    given: tuple[Any, ...]
    found: Any
    versions: tuple[int, ...]


class Memo:
    """What the modules of one model made of one call.

    Attributes:
        computed, served: calls of modules so far, those inside of served ones not counted.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.computed = 0
        self.served = 0
        self._limit = limit_bytes
        self._bytes = 0
        self._counted: dict[int, torch.Tensor] = {}
        self._kept: dict[str, _Kept] = {}
        self._changed: frozenset[str] | None = None  # None: the call is being remembered

    def begin(self) -> None:
        """Forgets everything; the next call of the model is remembered."""
        self._kept.clear()
        self._counted.clear()
        self._bytes = 0
        self._changed = None

    def change(self, names: Sequence[str]) -> None:
        """Says which layers are others than in the remembered call, from now on."""
        around = {""}
        for name in names:
            parts = name.split(".")
            around |= {".".join(parts[: count + 1]) for count in range(len(parts))}
        self._changed = frozenset(around)

    def answer(
        self,
        name: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Returns `forward(*args, **kwargs)`, computed or remembered."""
        given = (*args, dict(kwargs))
        if self._changed is not None and name not in self._changed:
            kept = self._kept.get(name)
            if kept is not None and _same(kept.given, given) and _fresh(kept):
                self.served += 1
                return kept.found
        self.computed += 1
        found = forward(*args, **kwargs)
        if self._changed is None:
            self._keep(name, given, found)
        return found

    def _keep(self, name: str, given: tuple[Any, ...], found: Any) -> None:
        if name in self._kept:  # a module that runs twice in a call is computed
            del self._kept[name]
            return
        tensors = _tensors((given, found))
        new = {id(tensor): tensor for tensor in tensors if id(tensor) not in self._counted}
        size = sum(tensor.nbytes for tensor in new.values())
        if self._bytes + size <= self._limit:
            self._bytes += size
            self._counted |= new
            self._kept[name] = _Kept(given=given, found=found, versions=_versions(tensors))


@contextmanager
def remembering(model: nn.Module, *, limit_bytes: int = LIMIT_BYTES) -> Generator[Memo, None, None]:
    """Lends a memory of the calls of `model`; its modules are as before afterwards.

    The model must give the same for the same (no dropout, no noise of its own) and record no
    gradients meanwhile.

    Args:
        limit_bytes: of inputs and outputs that are held; modules beyond it are always computed.
    """
    memo = Memo(limit_bytes)
    before: list[tuple[nn.Module, bool, Any]] = []

    def watched(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answered(*args: Any, **kwargs: Any) -> Any:
            return memo.answer(name, forward, args, kwargs)

        return answered

    try:
        for name, module in model.named_modules():
            if name:
                own = module.__dict__.get(_FORWARD)
                before.append((module, _FORWARD in module.__dict__, own))
                module.__dict__[_FORWARD] = watched(name, cast(Any, module.forward))
        yield memo
    finally:
        memo.begin()
        for module, had, own in before:
            if had:
                module.__dict__[_FORWARD] = own
            else:
                del module.__dict__[_FORWARD]


@contextmanager
def exchanged(model: nn.Module, layers: Mapping[str, nn.Module]) -> Generator[None, None, None]:
    """Puts other layers into `model` by name; the very same old ones are back afterwards."""
    originals = {name: model.get_submodule(name) for name in layers}
    try:
        restore_(model, layers)
        yield
    finally:
        restore_(model, originals)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _tensors(tuple(cast(Mapping[Any, Any], value).values()))
    if isinstance(value, list | tuple):
        return [t for item in cast(Sequence[Any], value) for t in _tensors(item)]
    return []


def _versions(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors)  # pyright: ignore[reportPrivateUsage]


def _fresh(kept: _Kept) -> bool:
    """Whether nobody has written into what was kept."""
    return _versions(_tensors((kept.given, kept.found))) == kept.versions


def _same(one: Any, other: Any) -> bool:
    """Whether two inputs are equal; what cannot be compared is not."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and one.device == other.device and bool(torch.equal(one, other))
    if isinstance(one, dict):
        left, right = cast(dict[Any, Any], one), cast(dict[Any, Any], other)
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(one, list | tuple):
        pairs = cast(tuple[Any, ...], one), cast(tuple[Any, ...], other)
        return len(pairs[0]) == len(pairs[1]) and all(map(_same, *pairs))
    return isinstance(one, _PLAIN) and one == other
