"""The weight that a packed layer shows: it can be read, but nothing is to be written into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vqdq.errors import UserError


class DecodedWeight(torch.Tensor):
    """A decoded weight that can be read but not written: a write would be lost."""

    @property
    def data(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What tells shape, dtype and device and refuses all else: an adapter merged into

        `weight.data` would vanish silently, and a weight fused from it would no longer be packed.
        """
        return self.as_subclass(_Sealed)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        del value
        raise _read_only()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        inplace = (name.endswith("_") and not name.endswith("__")) or name in _WRITES
        if inplace and args and isinstance(args[0], DecodedWeight):
            raise _read_only()
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **(kwargs or {}))


class _Sealed(DecodedWeight):
    """The `data` of a decoded weight: adapters ask it for its number of dimensions (DoRA)."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") != "__get__":
            raise _read_only()
        return super().__torch_function__(func, types, args, kwargs)


_WRITES = ("__setitem__", "__set__", *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv")))


def _read_only() -> UserError:
    return UserError(
        "a packed weight cannot be changed in place: no adapter can be merged into it, and no other"
        " weight fused with it.",
        where="weight",
        remedy="Keep it apart, or merge in the full-precision model and compress that.",
    )
