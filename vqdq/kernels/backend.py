"""Which implementation a kernel uses: Triton's on a card, the compiled one on a processor.

Tensors decide: what is on a card is computed there where there is a kernel for it, else on the
processor and carried back, which `support.refusal` explains. Encoders' searches are sent to a card
wherever the weight is. On a processor it is numba, or plain
torch where numba cannot run. The results are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch

from vqdq.kernels.triton import support

_WORTH = 1 << 16  # weights of a search that is sent to a card
_CARD = "vqdq.kernels.triton.operations"
_interpreted: ContextVar[bool] = ContextVar("interpreted", default=False)


@cache
def chosen(compiled: str, plain: str) -> tuple[ModuleType, str]:
    """Returns the module to use, and why, from the names of a compiled and of a plain one."""
    try:
        return importlib.import_module(compiled), "compiled by numba for this processor"
    except ImportError as error:
        reason = f"plain torch, slow: numba cannot be used ({error})"
        return importlib.import_module(plain), reason


@contextmanager
def interpreted() -> Generator[None]:
    """Sends processor tensors to the card's kernels: for tests, under Triton's interpreter."""
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def on_card(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is computed with on a card (or in a test as if it were)."""
    return tensor.is_cuda or (_interpreted.get() and tensor.device.type == "cpu")


def refusal(op: str, tensor: torch.Tensor) -> str:
    """Returns why the card of a tensor has no kernel for an operation; "" where it has one."""
    if not on_card(tensor):
        return f"the tensor is on {tensor.device.type}"
    if op not in support.OPERATIONS:
        return "not written for cards: computed on the processor and carried back"
    found = support.card(tensor.device.index or 0) if tensor.is_cuda else None
    return support.triton_fault() if found is None else support.refusal(op, found)


def run(op: str, compiled: str, plain: str, *args: Any) -> Any:
    """Returns what an operation gives, computed where its first tensor is.

    Args:
        compiled, plain: names of the modules that have it for a processor.
        args: other tensors may be elsewhere; they are carried over.
    """
    first = next((tensor for arg in args if (tensor := _tensor(arg)) is not None), None)
    if first is not None and first.device.type == "cpu" and _is_sent(op, first):
        found = run(op, compiled, plain, *(_moved(arg, torch.device("cuda")) for arg in args))
        return _moved(found, first.device)
    if first is None or (first.device.type == "cpu" and not _interpreted.get()):
        return getattr(chosen(compiled, plain)[0], op)(*args)
    if not refusal(op, first):
        module = importlib.import_module(_CARD)
        return getattr(module, op)(*(_moved(arg, first.device) for arg in args))
    there = [_moved(arg, torch.device("cpu")) for arg in args]
    return _moved(getattr(chosen(compiled, plain)[0], op)(*there), first.device)


def searches_on_card(op: str) -> bool:
    """Returns whether a search runs on a card, where several layers at once are worth more than
    one after the other. On a processor they are not: each of its cores is busy with one.
    """
    if _interpreted.get():
        return not support.triton_fault()
    found = support.card()
    return found is not None and not support.refusal(op, found)


def _is_sent(op: str, tensor: torch.Tensor) -> bool:
    """Returns whether a search goes to a card although its weight is not there: it takes seconds
    there and minutes here, and gives the same codes.
    """
    if op not in support.SEARCHES or tensor.numel() < _WORTH or _interpreted.get():
        return False
    found = support.card()
    return found is not None and not support.refusal(op, found)


def _tensor(arg: Any) -> torch.Tensor | None:
    if isinstance(arg, torch.Tensor):
        return arg
    values = getattr(arg, "values", None)  # of `int8.Lines`
    return values if isinstance(values, torch.Tensor) else None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if hasattr(value, "on"):
        return value.on(device)
    if type(value) in (list, tuple):
        return type(value)(_moved(part, device) for part in value)
    return value
