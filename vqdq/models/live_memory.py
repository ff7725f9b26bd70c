"""How many bytes of tensors live at once while a module runs: counted on the meta device.

Every operation is told its shapes and does nothing, so that a 10^9-weight denoiser takes a second
and no memory. What is counted is what eager execution allocates and frees: outputs of operations
from their birth until nobody holds them, views once. Weights are not counted, nor what a kernel
takes for itself. Attention counts as a fused kernel, which keeps no matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATTENTION = ("query", "key", "value")


def peak_live_bytes(run: Callable[[], object], held: Iterable[torch.Tensor] = ()) -> int:
    """Returns the most bytes that tensors made by `run` take at once.

    Args:
        run: calls a module on the meta device.
        held: tensors that are there before and are not counted (weights).
    """
    counter = _Counter(held)
    with torch.no_grad(), _FusedAttention(), counter:
        run()
    return counter.peak


class _FusedAttention(TorchFunctionMode):
    """Answers attention by its output alone: [batch, heads, queries, channels of the values]."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = {**dict(zip(_ATTENTION, args, strict=False)), **(kwargs or {})}
            query, value = cast(torch.Tensor, given["query"]), cast(torch.Tensor, given["value"])
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


class _Counter(TorchDispatchMode):
    """Counts storages that operations return, until they are freed."""

    def __init__(self, held: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._kept = [tensor.untyped_storage() for tensor in held]  # alive, so ids stay theirs
        self._ignored = {id(storage) for storage in self._kept}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return found

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known or key in self._ignored:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self._live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self._live += size
        self.peak = max(self.peak, self._live)
