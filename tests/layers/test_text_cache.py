"""Kept outputs equal computed ones bit for bit; what changes is computed anew; nothing outlives."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Generator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from tests.capture import toy
from tests.layers.toy import Toy, registered
from vqdq.activations import InputRanges, Site, create
from vqdq.capture import record_attention, tokenize
from vqdq.codecs import encode
from vqdq.layers.attention import attentions
from vqdq.layers.inputs import LayerInput, NoiseLevel
from vqdq.layers.matrix import weight_matrix
from vqdq.layers.quantized import QuantizedLinear, pack
from vqdq.layers.text_cache import TextCache, keep_text_, text_savings


@pytest.fixture(autouse=True)
def _toy() -> Generator[None, None, None]:
    with registered():
        yield


def _packed(layer: nn.Module) -> QuantizedLinear:
    found = pack(layer, encode(weight_matrix(layer)[0], Toy.name, seed=3))
    assert isinstance(found, QuantizedLinear)
    return found


def _layer(*, bias: bool = True) -> QuantizedLinear:
    torch.manual_seed(0)
    layer = _packed(nn.Linear(10, 6, bias=bias).requires_grad_(requires_grad=False))
    layer.text_cache = TextCache()
    return layer


def _calls(layer: QuantizedLinear) -> tuple[int, int]:
    assert layer.text_cache is not None
    return layer.text_cache.computed, layer.text_cache.served


def _text(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(seed))


def _model() -> UNet2DConditionModel:
    """The toy UNet with every layer of its cross-attention packed."""
    model = toy.unet()
    for attention in attentions(model).values():
        if attention.is_cross_attention:
            for part in ("to_q", "to_k", "to_v"):
                setattr(attention, part, _packed(attention.get_submodule(part)))
    return model


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_same_text_is_computed_once(*, bias: bool) -> None:
    layer, text = _layer(bias=bias), _text()
    first = layer(text)
    assert torch.equal(first, layer.product(text))
    assert layer(text) is first
    assert layer(text) is first
    assert _calls(layer) == (1, 2)


@torch.no_grad()
def test_drawings_are_the_same_and_each_prompt_is_read_once() -> None:
    model = _model()
    plain = toy.draw(model)
    names = keep_text_(model)
    assert len(names) == 8
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names)
    assert torch.equal(toy.draw(model), plain)  # three steps
    found = text_savings(model)
    assert (found.computed, found.served) == (8, 16)
    assert found.kept_bytes == 0  # the text is gone, and with it what was made of it
    other = toy.draw(model, seed=1)
    assert text_savings(model).computed == 16
    assert torch.equal(toy.draw(_model(), seed=1), other)
    text = toy.inputs()["encoder_hidden_states"]
    model(toy.inputs()["sample"], 10.0, text)
    assert text_savings(model).kept_bytes == 8 * 2 * toy.TOKENS * 32 * 4


@torch.no_grad()
def test_hooks_on_the_layers_see_every_step() -> None:
    model = _model()
    prompt = tokenize(toy.Tokenizer(), "red circle on blue")
    with record_attention(model, prompt, negative=prompt) as recorder:
        plain = toy.draw(model)
    expected = recorder.result()
    keep_text_(model)
    with record_attention(model, prompt, negative=prompt) as recorder:
        assert torch.equal(toy.draw(model), plain)
    assert text_savings(model).served == 16
    assert (recorder.result().mass == expected.mass).all()


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "in place": lambda text: text.mul_(2),
    "a view of it": lambda text: (text[0].zero_(), text)[1],
    "another prompt": lambda _old: _text(1),
    "an equal copy": lambda text: text.clone(),
    "another dtype": lambda text: text.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_text_is_computed_anew(change: str) -> None:
    layer, text = _layer(), _text()
    if change == "another dtype":
        layer.bias = None
    layer(text)
    other = CHANGES[change](text)
    found = layer(other)
    assert torch.equal(found, layer.product(other))
    assert found.dtype == other.dtype
    assert _calls(layer) == (2, 0)
    assert layer(other) is found
    assert _calls(layer) == (2, 1)


@torch.no_grad()
def test_a_changed_layer_is_computed_anew() -> None:
    layer, text = _layer(), _text()
    before = layer(text)
    layer.bias.add_(1)
    torch.testing.assert_close(layer(text), before + 1)
    state = {key: torch.zeros_like(each) for key, each in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert float(layer(text).abs().max()) == 0
    layer = _layer()
    before = layer(text)
    layer.to(torch.float64)
    assert _calls(layer) == (1, 0)
    double = text.double()
    assert layer(double).dtype == torch.float64
    layer.to(torch.float32)
    assert torch.equal(layer(text), before)
    assert _calls(layer) == (3, 0)


@torch.no_grad()
def test_who_writes_into_the_output_spoils_nothing() -> None:
    layer, text = _layer(), _text()
    first = layer(text)
    expected = first.clone()
    first.zero_()
    assert torch.equal(layer(text), expected)
    assert _calls(layer) == (2, 0)


def test_nothing_is_kept_with_gradients_or_in_inference_mode() -> None:
    layer, text = _layer(), _text()
    assert layer(text) is not layer(text)
    with torch.inference_mode():
        assert layer(text) is not layer(text)
        frozen = text.clone()
    with torch.no_grad():
        assert layer(frozen) is not layer(frozen)
    assert _calls(layer) == (6, 0)
    asked = text.requires_grad_()
    layer(asked).sum().backward()
    assert asked.grad is not None


@torch.no_grad()
def test_autocast_has_outputs_of_its_own() -> None:
    layer, text = _layer(), _text()
    plain = layer(text)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(text).dtype == torch.bfloat16
        assert layer(text).dtype == torch.bfloat16
    assert torch.equal(layer(text), plain)
    assert _calls(layer) == (3, 1)


@torch.no_grad()
def test_outputs_go_with_their_text() -> None:
    layer, text = _layer(), _text()
    cache = layer.text_cache
    assert cache is not None
    layer(text)
    assert cache.kept_bytes == 2 * 5 * 6 * 4
    layer(_text(1))  # gone before the next line
    assert cache.kept_bytes == 0
    layer(text)
    del text
    gc.collect()
    assert cache.kept_bytes == 0


@torch.no_grad()
def test_copies_begin_empty() -> None:
    layer, text = _layer(), _text()
    expected = layer(text)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.text_cache is not layer.text_cache
        assert _calls(twin) == (0, 0)
        twin.bias.add_(1)
        torch.testing.assert_close(twin(text), expected + 1)
    assert layer(text) is expected


class Adapter(nn.Module):
    """As PEFT wraps a layer: the packed one stays inside, and something small is added."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.small = nn.Linear(toy.TEXT_WIDTH, 32, bias=False).requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.small(x)


@torch.no_grad()
def test_adapters_count_at_each_step() -> None:
    model = _model()
    attention = next(each for each in attentions(model).values() if each.is_cross_attention)
    adapter = Adapter(attention.get_submodule("to_k"))
    attention.to_k = adapter
    adapted = toy.draw(model)
    assert len(keep_text_(model)) == 8
    assert torch.equal(toy.draw(model), adapted)
    adapter.small.weight.mul_(-3)
    changed = toy.draw(model)
    assert not torch.equal(changed, adapted)
    assert text_savings(model).served == 2 * 16


def _quantize_input_(layer: QuantizedLinear, method: str, level: NoiseLevel) -> None:
    site = Site(channels=layer.in_features, positions=toy.TOKENS)
    quantizer = create(method, bits=8)
    given = LayerInput(quantizer, site, level, where="to_k")
    channels = torch.linspace(1, 3, site.channels).repeat(3, 1)
    positions = torch.full((3, toy.TOKENS), 3.0)
    ranges = InputRanges(
        timesteps=torch.tensor([900.0, 500.0, 100.0]),
        channel_low=-channels,
        channel_high=channels,
        position_low=-positions,
        position_high=positions,
    )
    stored = quantizer.calibrate(ranges, site) if quantizer.calibrated else {}
    layer.quantize_input_(given, {f"input_{name}": each for name, each in stored.items()})


@pytest.mark.parametrize("method", ["dynamic", "minmax", "dgq"])
@torch.no_grad()
def test_quantized_inputs_are_rounded_once_per_prompt(method: str) -> None:
    model, level = _model(), NoiseLevel()
    level.attach_(model)
    for attention in attentions(model).values():
        if attention.is_cross_attention:
            for part in ("to_k", "to_v"):
                layer = attention.get_submodule(part)
                assert isinstance(layer, QuantizedLinear)
                _quantize_input_(layer, method, level)
    # Ranges of the text are alike at every noise level, so the level does not matter.
    plain = toy.draw(model)
    keep_text_(model)
    assert torch.equal(toy.draw(model), plain)
    found = text_savings(model)
    assert (found.computed, found.served) == (8, 16)


@torch.no_grad()
def test_switching_the_input_off_is_noticed() -> None:
    layer, text = _layer(), _text()
    _quantize_input_(layer, "dynamic", NoiseLevel())
    rounded = layer(text)
    assert layer.input is not None
    layer.input.enabled = False
    plain = layer(text)
    assert not torch.equal(plain, rounded)
    layer.input.enabled = True
    assert torch.equal(layer(text), rounded)
    assert _calls(layer) == (3, 0)
