"""Packed weights that stay in the processor's memory and come to the card one layer ahead.

Two layers are under way at any time: one is computed with, the next is copied and decoded beside
it. Copies go from pinned memory on a side stream; an event says when a decoded weight may be read,
another when the one before it may be let go. So the card holds at most two decoded weights and two
packed ones, whatever the model's size.

The order of the layers is that of the last call: the first one decodes as it goes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from vqdq.layers.quantized import QuantizedLayer


class Streams(Protocol):
    """What a card offers: a stream of its own for copies, and events between the two."""

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor in memory that the card can read by itself."""
        ...

    def aside(self) -> AbstractContextManager[Any]:
        """Puts work on the side stream."""
        ...

    def fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy on the card, under way on the side stream."""
        ...

    def mark(self, name: str) -> Any:
        """Returns an event at the end of what the current stream was given."""
        ...

    def wait(self, event: Any) -> None:
        """Lets the current stream wait for an event; the processor goes on."""
        ...

    def used_here(self, tensor: torch.Tensor) -> None:
        """Keeps memory made on the side stream until the current stream is done with it."""
        ...


class CudaStreams:
    """The streams of a card."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a pinned copy."""
        return tensor.cpu().pin_memory()

    def aside(self) -> AbstractContextManager[Any]:
        """Puts work on the side stream."""
        return torch.cuda.stream(self._side)

    def fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a copy on the card; the processor does not wait."""
        return tensor.to(self.device, non_blocking=True)

    def mark(self, name: str) -> Any:
        """Returns an event of the current stream."""
        del name
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Any) -> None:
        """Lets the current stream wait."""
        torch.cuda.current_stream(self.device).wait_event(event)

    def used_here(self, tensor: torch.Tensor) -> None:
        """Tells the allocator of the second stream."""
        tensor.record_stream(torch.cuda.current_stream(self.device))


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """A layer's weight under way: decoded when `ready` is passed."""

    weight: torch.Tensor
    ready: Any
    num_bytes: int


def peak_bytes(decoded: Sequence[int], packed: Sequence[int]) -> int:
    """Returns the most bytes of weights on the card, for layers in their order, round and round.

    At layer i: its decoded weight, and packed and decoded the next one's.
    """
    count = len(decoded)
    return max(
        (decoded[i] + packed[(i + 1) % count] + decoded[(i + 1) % count] for i in range(count)),
        default=0,
    )


class Prefetch:
    """Streams packed layers through a card, one layer ahead of the computation: those whose
    residency is "streaming" and whose input is not rounded.

    Attributes:
        peak: the most bytes of decoded and packed weights that were on the card at once.
    """

    def __init__(self, model: nn.Module, device: torch.device, streams: Streams) -> None:
        self._device, self._streams = device, streams
        self._layers = [
            layer
            for layer in model.modules()
            if isinstance(layer, QuantizedLayer)
            and layer.residency == "streaming"
            and layer.input is None
        ]
        self._names = {id(layer): name for name, layer in model.named_modules()}
        self._order: list[QuantizedLayer] = []
        self._seen: list[QuantizedLayer] = []
        self._ahead: dict[int, Ahead] = {}
        self._model, self._handles = model, list[Any]()
        self._used: Any = None
        self._live: dict[int, int] = {}  # bytes of the weights that are computed with
        self.peak = 0

    def attach_(self) -> None:
        """Takes the packed tensors back to the processor and streams them from now on."""
        for layer in self._layers:
            for name in layer.packed.tensors:
                layer.register_buffer(name, self._streams.held(layer.get_buffer(name)))
            layer.forget_weight()
            layer.source = functools.partial(self._weight, layer)
        self._handles.append(self._model.register_forward_pre_hook(self._begin))
        self._handles.extend(layer.register_forward_hook(self._after) for layer in self._layers)

    def detach_(self) -> None:
        """Puts the packed tensors on the card again and leaves no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._ahead.clear()
        for layer in self._layers:
            layer.source = None
            for name in layer.packed.tensors:
                layer.register_buffer(name, layer.get_buffer(name).to(self._device))

    def _begin(self, *_: Any) -> None:
        if self._seen:
            self._order, self._seen = self._seen, []

    def _weight(self, layer: QuantizedLayer, dtype: torch.dtype) -> torch.Tensor:
        """Returns the decoded weight of a layer, and starts the next layer's."""
        found = self._ahead.pop(id(layer), None)
        if found is None or found.weight.dtype != dtype:
            self._ahead.clear()  # the order has changed: what is under way is of no use
            found = self._start(layer, dtype)
        self._streams.wait(found.ready)
        self._streams.used_here(found.weight)
        self._live[id(layer)] = found.num_bytes
        place = len(self._seen)
        self._seen.append(layer)
        if place < len(self._order) and self._order[place] is layer:
            later = self._order[(place + 1) % len(self._order)]
            if later is not layer:
                self._ahead[id(later)] = self._start(later, dtype)
        return found.weight

    def _start(self, layer: QuantizedLayer, dtype: torch.dtype) -> Ahead:
        """Copies and decodes a layer on the side stream."""
        streams, packed = self._streams, layer.packed
        with streams.aside():
            if self._used is not None:  # of the layer before the present one
                streams.wait(self._used)
            there = {name: streams.fetched(tensor) for name, tensor in packed.tensors.items()}
            stored = sum(tensor.nbytes for tensor in there.values())
            weight = layer.decoded(replace(packed, tensors=there), dtype)
            held = sum(self._live.values()) + sum(each.num_bytes for each in self._ahead.values())
            self.peak = max(self.peak, held + stored + weight.nbytes)
            ready = streams.mark(f"decoded {self._names[id(layer)]}")
        return Ahead(weight=weight, ready=ready, num_bytes=weight.nbytes)

    def _after(self, layer: nn.Module, *_: Any) -> None:
        """Marks where a layer's weight may be let go."""
        if self._live.pop(id(layer), None) is not None:
            self._used = self._streams.mark(f"used {self._names[id(layer)]}")


def prefetching_(model: nn.Module, device: torch.device) -> Prefetch:
    """Returns what streams a model's packed layers through a card; `detach_` ends it."""
    made = Prefetch(model, device, CudaStreams(device))
    made.attach_()
    return made
