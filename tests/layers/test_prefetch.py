"""Layers streamed through a card one ahead: the order of events and the bytes, without a card."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.layers.streams import WrittenDown
from tests.layers.test_card import packed
from vqdq.errors import UserError
from vqdq.layers import residency
from vqdq.layers.prefetch import Prefetch
from vqdq.layers.quantized import QuantizedLayer

DECODED = (4 * 16 * 32, 4 * 32 * 48, 4 * 48 * 16)  # bytes in float32
FIRST, SECOND, THIRD = "32 x 16", "48 x 32", "16 x 48"


@pytest.fixture(name="model")
def some_model() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = ((16, 32), (32, 48), (48, 16))
    return nn.Sequential(
        *(packed(nn.Linear(*size), "trellis", bits=3, state_bits=8) for size in sizes)
    ).requires_grad_(False)


@pytest.fixture(name="card")
def a_card(monkeypatch: pytest.MonkeyPatch) -> WrittenDown:
    """Lets the processor stand for a card in whatever is offloaded."""
    streams = WrittenDown()
    monkeypatch.setattr(residency, "Prefetch", partial(Prefetch, lambda _: streams))
    return streams


def layers_of(model: nn.Module) -> list[QuantizedLayer]:
    return list(residency.packed_layers(model).values())


def planned(model: nn.Module) -> int:
    layers = {
        name: residency.decoded_layer(name, layer)
        for name, layer in residency.packed_layers(model).items()
    }
    return residency.held_in(residency.setting_of(model), layers, card=True).transient_bytes


def stored(model: nn.Module) -> list[int]:
    return [layer.packed.storage.total_bytes for layer in layers_of(model)]


def test_the_next_layer_is_decoded_under_the_present_one(
    model: nn.Sequential, card: WrittenDown
) -> None:
    x = torch.randn(2, 16)
    expected = model(x)
    residency.set_mode_(model, "streaming", offload=True)
    assert card.held_tensors == sum(len(layer.packed_names) for layer in layers_of(model))
    assert torch.equal(model(x), expected)  # learns the order
    assert torch.equal(model(x), expected)
    card.log.clear()
    assert torch.equal(model(x), expected)
    steps = [step for step in card.log if step != "copy"]
    assert steps == [
        f"main waits for decoded {FIRST}", f"side waits for used {THIRD}",
        f"decoded {SECOND}", f"used {FIRST}",
        f"main waits for decoded {SECOND}", f"side waits for used {FIRST}",
        f"decoded {THIRD}", f"used {SECOND}",
        f"main waits for decoded {THIRD}", f"side waits for used {SECOND}",
        f"decoded {FIRST}", f"used {THIRD}",
    ]  # fmt: skip
    assert card.buffers == [max(DECODED)] * 2  # made once, whatever runs
    source = residency.source_of(model)
    assert source is not None
    # Two buffers, and the layers that pass: the largest decoded one is the largest packed one, too.
    assert source.peak == 3 * max(DECODED) + max(stored(model)) == planned(model)
    residency.set_mode_(model, "resident")
    assert torch.equal(model(x), expected)
    assert residency.source_of(model) is None
    assert not any(layer.offloaded for layer in layers_of(model))


def test_another_order_is_computed_all_the_same_and_learnt(
    model: nn.Sequential, card: WrittenDown
) -> None:
    x = torch.randn(2, 16)
    expected = [model(x), model[0](x)]
    residency.set_mode_(model, "streaming", offload=True)
    for _ in range(2):
        assert torch.equal(model(x), expected[0])
        assert torch.equal(model[0](x), expected[1])  # skips what was to come
    card.log.clear()
    for _ in range(3):
        assert torch.equal(model[0](x), expected[1])  # decoded once: nothing else wrote there
    assert not [step for step in card.log if step.startswith(f"decoded {FIRST}")]
    half = model.half()(x.half())  # another dtype than the one under way
    assert half.dtype == torch.float16
    assert card.buffers[-2:] == [max(DECODED) // 2] * 2  # a cast lets the old ones go


def test_an_error_between_two_layers_leaves_the_buffers_in_order(
    model: nn.Sequential, card: WrittenDown
) -> None:
    x = torch.randn(2, 16)
    expected = model(x)
    residency.set_mode_(model, "streaming", offload=True)
    for _ in range(2):
        assert torch.equal(model(x), expected)
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 17))
    card.log.clear()
    assert torch.equal(model(x), expected)
    assert card.log[0] == f"used {FIRST}"  # of the product that broke


def test_a_budget_keeps_some_layers_decoded_and_streams_the_others(
    model: nn.Sequential, card: WrittenDown
) -> None:
    x = torch.randn(2, 16)
    expected = model(x)
    residency.set_mode_(model, "hybrid", DECODED[1], offload=True)
    for _ in range(3):
        assert torch.equal(model(x), expected)
    assert residency.held_bytes(model) == DECODED[1]
    assert card.buffers == [max(DECODED[0], DECODED[2])] * 2
    assert not [step for step in card.log if SECOND in step]
    assert all(layer.offloaded for layer in layers_of(model))


@pytest.mark.usefixtures("card")
def test_weights_that_are_asked_for_and_gradients_are_nobodys_buffer(
    model: nn.Sequential,
) -> None:
    x = torch.randn(2, 16)
    weights = [layer.weight.clone() for layer in layers_of(model)]
    wanted = torch.randn(2, 16, requires_grad=True)
    model(wanted).sum().backward()
    residency.set_mode_(model, "streaming", offload=True)
    shown = [layer.weight for layer in layers_of(model)]
    again = wanted.detach().clone().requires_grad_()
    for _ in range(2):
        model(x)
    model(again).sum().backward()
    assert again.grad is not None
    assert wanted.grad is not None
    assert torch.equal(again.grad, wanted.grad)
    for one, other in zip(shown, weights, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("card")
def test_copies_casts_and_state_dicts_are_those_of_any_model(
    model: nn.Sequential,
) -> None:
    x = torch.randn(2, 16)
    expected, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    residency.set_mode_(model, "streaming", offload=True)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), expected)  # buffers of inference mode serve outside of it
    twin = copy.deepcopy(model)
    for _ in range(2):
        assert torch.equal(twin(x), expected)
    mine, theirs = residency.source_of(model), residency.source_of(twin)
    assert theirs is not mine
    assert theirs is not None
    found = model.bfloat16().float().state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items() if "bias" not in key)


def test_on_the_processor_nothing_changes(model: nn.Sequential) -> None:
    x = torch.randn(2, 16)
    expected = model(x)
    before = [layer.get_buffer("codes").data_ptr() for layer in layers_of(model)]
    residency.set_mode_(model, "streaming", offload=True)
    assert torch.equal(model(x), expected)
    assert not any(layer.offloaded for layer in layers_of(model))
    assert [layer.get_buffer("codes").data_ptr() for layer in layers_of(model)] == before
    assert residency.setting_of(model).offload
    for mode in ("resident", "integer"):
        with pytest.raises(UserError, match="decodes every weight once"):
            residency.set_mode_(model, mode, offload=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_on_a_card_the_peak_is_the_plan(model: nn.Sequential) -> None:
    x, device = torch.randn(2, 16), torch.device("cuda")
    expected = model.to(device)(x.to(device))
    residency.set_mode_(model, "streaming", offload=True)
    for _ in range(3):
        assert torch.equal(model(x.to(device)), expected)
    assert all(layer.get_buffer("codes").is_pinned() for layer in layers_of(model))
    source = residency.source_of(model)
    assert source is not None
    assert source.peak == planned(model)
    model.cpu()
    assert not any(layer.offloaded for layer in layers_of(model))
