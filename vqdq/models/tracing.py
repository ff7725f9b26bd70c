"""Tensors that only know how they are made, so that a conversion of names costs no memory.

Others' conversion functions take a whole state dict and return another one, renamed, split and
joined. Given traced tensors they do the same work on shapes alone; `made` then repeats it for one
result at a time, from a file that stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Call:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Traced(torch.Tensor):
    """A tensor without data.

    Attributes:
        key: name of the stored tensor that it is, or "".
        call: what makes it, with the place among the results where there are several.
    """

    key: str
    call: tuple[_Call, int | None] | None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Returns what `func` returns on shapes, and remembers the call.

        Raises:
            TypeError: `func` changes a tensor in place, which could not be repeated.
        """
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.startswith("__")):
            raise TypeError(f"{name} changes a tensor in place")
        if name == "split":
            args, named = _fitted(args, named)
        result = super().__torch_function__(func, types, args, named)
        call = _Call(function=func, args=args, kwargs=named)
        if isinstance(result, torch.Tensor):
            return _traced(result, call=(call, None))
        if isinstance(result, tuple | list) and any(isinstance(x, torch.Tensor) for x in result):
            return tuple(_traced(part, call=(call, i)) for i, part in enumerate(result))
        return result


def trace(specs: Iterable[TensorSpec]) -> dict[str, torch.Tensor]:
    """Returns a traced tensor for each stored one, by its name."""
    return {
        spec.name: _traced(torch.empty(spec.shape, dtype=spec.dtype, device="meta"), key=spec.name)
        for spec in specs
    }


def sources(tensor: torch.Tensor) -> set[str]:
    """Returns the names of the stored tensors that `tensor` is made of."""
    found: set[str] = set()
    pending: list[Any] = [tensor]
    while pending:
        item = pending.pop()
        if isinstance(item, tuple | list):
            pending += item
        elif isinstance(item, Traced):
            if item.key:
                found.add(item.key)
            elif item.call is not None:
                pending += [*item.call[0].args, *item.call[0].kwargs.values()]
    return found


def made(tensor: torch.Tensor, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Returns `tensor` with its data; in memory are it and the stored tensors it is made of.

    Args:
        read: gives a stored tensor by its name.
    """
    calls: dict[int, Any] = {}

    def value(item: Any) -> Any:
        if isinstance(item, list | tuple):
            return type(item)(value(part) for part in item)
        if not isinstance(item, Traced):
            return item
        if item.call is None:
            return read(item.key)
        call, place = item.call
        if id(call) not in calls:
            named = {key: value(part) for key, part in call.kwargs.items()}
            calls[id(call)] = call.function(*value(call.args), **named)
        return calls[id(call)] if place is None else calls[id(call)][place]

    result: torch.Tensor = value(tensor)
    return result


def _traced(
    tensor: torch.Tensor, *, key: str = "", call: tuple[_Call, int | None] | None = None
) -> Traced:
    found = tensor.as_subclass(Traced)
    found.key, found.call = key, call
    return found


def _fitted(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments of a split whose sizes add up.

    diffusers' conversion of FLUX has the width of the published models in it (3072); a model of
    another width is split in the same proportions.
    """
    tensor, sizes, *rest = args
    if not isinstance(sizes, tuple | list):
        return args, named
    dim = rest[0] if rest else named.get("dim", 0)
    length, total = int(tensor.shape[dim]), sum(sizes)
    if total == length or any(size * length % total for size in sizes):
        return args, named
    return (tensor, [size * length // total for size in sizes], *rest), named
