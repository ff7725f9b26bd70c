"""Layers streamed through a card one ahead: the order of events and the bytes, without a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.layers.test_card import packed
from vqdq.layers.prefetch import Prefetch, peak_bytes, prefetching_
from vqdq.layers.quantized import QuantizedLayer


class WrittenDown:
    """Streams that do everything at once and write down what they were asked."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._aside = False

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._aside = True
        yield
        self._aside = False

    def fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._aside, "copies belong on the side stream"
        self.log.append("copy")
        return tensor.clone()

    def mark(self, name: str) -> str:
        assert self._aside == name.startswith("decoded")
        self.log.append(name)
        return name

    def wait(self, event: str) -> None:
        self.log.append(f"{'side' if self._aside else 'main'} waits for {event}")

    def used_here(self, tensor: torch.Tensor) -> None:
        assert tensor.numel()
        assert not self._aside


@pytest.fixture(name="model")
def some_model() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = ((16, 32), (32, 48), (48, 16))
    layers = [packed(nn.Linear(*size), "trellis", bits=3, state_bits=8) for size in sizes]
    for layer in layers:
        assert isinstance(layer, QuantizedLayer)
        layer.residency = "streaming"
    return nn.Sequential(*layers)


def test_the_next_layer_is_decoded_under_the_present_one(model: nn.Sequential) -> None:
    x = torch.randn(2, 16)
    expected, streams = model(x), WrittenDown()
    stream = Prefetch(model, torch.device("cpu"), streams)
    stream.attach_()
    assert torch.equal(model(x), expected)  # learns the order
    assert torch.equal(model(x), expected)
    streams.log.clear()
    assert torch.equal(model(x), expected)
    steps = [step for step in streams.log if step != "copy"]
    assert steps == [
        *("main waits for decoded 0", "side waits for used 2", "decoded 1", "used 0"),
        *("main waits for decoded 1", "side waits for used 0", "decoded 2", "used 1"),
        *("main waits for decoded 2", "side waits for used 1", "decoded 0", "used 2"),
    ]
    packs = [
        layer.packed.storage.total_bytes for layer in model if isinstance(layer, QuantizedLayer)
    ]
    assert stream.peak == peak_bytes([4 * 16 * 32, 4 * 32 * 48, 4 * 48 * 16], packs)
    stream.detach_()
    assert torch.equal(model(x), expected)
    assert not any(layer._forward_hooks for layer in model.modules())  # pyright: ignore[reportPrivateUsage]


def test_another_order_is_computed_all_the_same_and_learnt(model: nn.Sequential) -> None:
    x = torch.randn(2, 16)
    stream = Prefetch(model, torch.device("cpu"), WrittenDown())
    stream.attach_()
    expected = [model(x), model[0](x)]
    assert torch.equal(model[0](x), expected[1])
    assert torch.equal(model(x), expected[0])
    half = model.half()(x.half())  # another dtype than the one under way
    assert half.dtype == torch.float16
    stream.detach_()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_on_a_card_the_peak_is_the_plan(model: nn.Sequential) -> None:
    x, device = torch.randn(2, 16), torch.device("cuda")
    expected = model.to(device)(x.to(device))
    stream = prefetching_(model, device)
    for _ in range(3):
        assert torch.equal(model(x.to(device)), expected)
    packs = [
        layer.packed.storage.total_bytes for layer in model if isinstance(layer, QuantizedLayer)
    ]
    assert stream.peak == peak_bytes([4 * 16 * 32, 4 * 32 * 48, 4 * 48 * 16], packs)
    stream.detach_()
