"""Packed weights that stay in the processor's memory and come to the card one layer ahead.

Two layers are under way at any time: one is computed with, the next is copied and decoded beside
it. Copies go from pinned memory on a side stream and end in one of two buffers, each as large as
the largest decoded weight. An event says when a buffer may be read, another when it may be written
again. The processor never waits, and however far it runs ahead, the card holds the same two
buffers and what one layer takes while it decodes: `residency.held_in` says it beforehand.

The order of the layers is learnt as they run: each is followed by the one that followed it last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from vqdq.layers.quantized import QuantizedLayer


class Streams(Protocol):
    """What a card offers: a stream of its own for copies, and events between the two."""

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor in the processor's memory that the card can read by itself."""
        ...

    def buffer(self, num_bytes: int) -> torch.Tensor:
        """Returns memory on the card that both streams use, uint8 [num_bytes]."""
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


class CudaStreams:
    """The streams of a card."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a pinned copy, or the tensor itself where it is pinned."""
        here = tensor.cpu()
        return here if here.is_pinned() else here.pin_memory()

    def buffer(self, num_bytes: int) -> torch.Tensor:
        """Returns memory of the current stream that is not given away while the other uses it."""
        made = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        made.record_stream(self._side)
        return made

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


@dataclass(slots=True)
class Slot:
    """A buffer on the card and what is in it.

    Attributes:
        memory: uint8 [bytes].
        free: the event after which it may be written.
        layer, weight: whose decoded weight it holds or will hold, None for nobody's.
        ready: the event after which the weight may be read.
    """

    memory: torch.Tensor
    free: Any
    layer: QuantizedLayer | None = None
    weight: torch.Tensor | None = None
    ready: Any = None

    def holds(self, layer: QuantizedLayer, dtype: torch.dtype) -> bool:
        """Whether the weight is that of a layer, in the wanted dtype."""
        return self.layer is layer and self.weight is not None and self.weight.dtype == dtype


class Prefetch:
    """Streams the packed layers of a model through a card, one layer ahead of the computation.

    Layers that `QuantizedLayer.offload_` gave this source keep their packed tensors in pinned
    memory while they compute on a card, and ask here for their decoded weights.

    Args:
        streams: of a card; another function is for tests, and then every device is a card.

    Attributes:
        largest: weights of the largest layer that streams.
        peak: the most bytes that buffers, packed and decoded weights took on the card at once,
            without what a decoder makes in between.
    """

    def __init__(self, streams: Callable[[torch.device], Streams] = CudaStreams) -> None:
        self._make = streams
        self._streams: dict[torch.device, Streams] = {}
        self._slots: list[Slot] = []
        self._now = 0  # the slot that is computed with
        self._running: QuantizedLayer | None = None
        self._last: QuantizedLayer | None = None
        self._next: dict[QuantizedLayer, tuple[QuantizedLayer, torch.dtype]] = {}
        self.largest = 0
        self.peak = 0

    def __reduce__(self) -> tuple[type[Prefetch], tuple[Callable[[torch.device], Streams]]]:
        """Returns what a copy needs: it learns the order of its own layers."""
        return Prefetch, (self._make,)

    def serves(self, device: torch.device) -> bool:
        """Returns whether layers that compute there are streamed: on a card."""
        return device.type == "cuda" or self._make is not CudaStreams

    def held(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Returns a packed tensor where it waits for a card."""
        return self._on(device).held(tensor)

    @property
    def held_bytes(self) -> int:
        """Bytes of the buffers that are there now."""
        return sum(slot.memory.nbytes for slot in self._slots)

    def forget(self) -> None:
        """Lets the buffers go; they are made again at the next use."""
        self._slots.clear()
        self._running = self._last = None

    def weight(self, layer: QuantizedLayer, dtype: torch.dtype) -> torch.Tensor:
        """Returns the decoded weight of a layer and starts the next one's.

        It is good until `done`, and for work on the current stream alone.
        """
        streams = self._on(layer.place)
        if self._running is not None:  # an error came between
            self.done(self._running)
        self._make_room(layer, dtype, streams)
        found = next((i for i, slot in enumerate(self._slots) if slot.holds(layer, dtype)), None)
        if found is None:
            found = self._start(layer, dtype, streams)
        slot = self._slots[found]
        streams.wait(slot.ready)
        self._now, self._running = found, layer
        if self._last is not None:
            self._next[self._last] = (layer, dtype)
        self._last = layer
        later, later_dtype = self._next.get(layer, (None, dtype))
        if later is not None and later is not layer and self._brings(later, layer.place):
            self._start(later, later_dtype, streams)
        assert slot.weight is not None
        return slot.weight

    def done(self, layer: QuantizedLayer) -> None:
        """Marks where the weight that `weight` gave may be written over."""
        if self._running is layer and self._slots:
            self._slots[self._now].free = self._on(layer.place).mark(f"used {_sizes(layer)}")
        self._running = None

    def _start(self, layer: QuantizedLayer, dtype: torch.dtype, streams: Streams) -> int:
        """Copies and decodes a layer on the side stream into the slot that is not in use; returns
        its number.

        What is made on the way is freed on the side stream, so the next layer takes the same
        memory there, in the order of that stream.
        """
        number = 1 - self._now
        slot, packed = self._slots[number], layer.packed
        slot.layer = slot.weight = None
        with streams.aside(), torch.inference_mode(False), torch.no_grad():
            streams.wait(slot.free)
            there = {name: streams.fetched(tensor) for name, tensor in packed.tensors.items()}
            made = layer.decoded(replace(packed, tensors=there), dtype)
            flat = slot.memory[: made.nbytes].view(made.dtype)
            weight = flat.as_strided(made.shape, made.stride()).copy_(made)
            stored = sum(tensor.nbytes for tensor in there.values())
            self.peak = max(self.peak, self.held_bytes + stored + made.nbytes)
            slot.ready = streams.mark(f"decoded {_sizes(layer)}")
        slot.layer, slot.weight = layer, weight
        return number

    def _make_room(self, layer: QuantizedLayer, dtype: torch.dtype, streams: Streams) -> None:
        """Makes two buffers that hold the largest layer, unless they are there."""
        needed = max(layer.packed.shape.count, self.largest) * dtype.itemsize
        memory = self._slots[0].memory if self._slots else None
        if memory is not None and memory.device == layer.place and memory.nbytes >= needed:
            return
        self._slots.clear()
        self._now = 0
        with torch.inference_mode(False):
            for _ in range(2):
                memory = streams.buffer(needed)
                self._slots.append(Slot(memory=memory, free=streams.mark("made")))

    def _brings(self, layer: QuantizedLayer, device: torch.device) -> bool:
        return layer.source is self and layer.streams and layer.place == device

    def _on(self, device: torch.device) -> Streams:
        if device not in self._streams:
            self._streams[device] = self._make(device)
        return self._streams[device]


def _sizes(layer: QuantizedLayer) -> str:
    shape = layer.packed.shape
    return f"{shape.out_features} x {shape.in_features}"
