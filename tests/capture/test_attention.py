"""Scores against the attention that the model really computes; masses, maps, words and files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture import toy
from vqdq.capture import (
    GROUPS,
    AttentionRecord,
    cross_attentions,
    record_attention,
    tokenize,
)
from vqdq.capture.attention import scores
from vqdq.capture.attention_record import score_edges
from vqdq.errors import UserError

PROMPT = tokenize(toy.Tokenizer(), "red circle on blue")
EMPTY = tokenize(toy.Tokenizer(), "")


def _hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def _captured() -> AttentionRecord:
    model = toy.unet()
    with record_attention(model, PROMPT, negative=EMPTY) as recorder:
        toy.draw(model)
    return recorder.result()


def test_tokens_have_roles_and_words():
    assert PROMPT.labels == ("<start>", "red", "circl", "e", "on", "blue", "<end>", "<pad>")
    assert [word.text for word in PROMPT.words] == ["red", "circle", "on", "blue"]
    assert PROMPT.words[1].tokens == (2, 3)
    assert PROMPT.positions("start") == (0,)
    assert PROMPT.positions("words") == (1, 2, 3, 4, 5)
    assert PROMPT.positions("end") == (6,)
    assert EMPTY.positions("padding") == (2, 3, 4, 5, 6, 7)
    assert EMPTY.words == ()


def test_a_prompt_that_is_cut_still_ends():
    long = tokenize(toy.Tokenizer(), "one two three four five six seven eight nine")
    assert long.positions("end") == (7,)
    assert long.positions("padding") == ()
    assert len(long.words) == 6


def test_scores_give_the_attention_that_sdpa_gives():
    model = toy.unet()
    layer = model.get_submodule(cross_attentions(model)[0])
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 16, layer.query_dim, generator=generator)
    text = torch.randn(2, toy.TOKENS, toy.TEXT_WIDTH, generator=generator)
    mask = torch.zeros(2, 1, toy.TOKENS)
    mask[1, 0, 5:] = -10000.0
    for given in (None, mask):
        with torch.no_grad():
            expected = layer(x, encoder_hidden_states=text, attention_mask=given)
            found = scores(layer, layer.to_q(x), layer.to_k(text), given)
            value = layer.to_v(text).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            mixed = (found @ value).transpose(1, 2).flatten(2)
            ours = layer.to_out[0](mixed) / layer.rescale_output_factor
        assert (ours - expected).abs().max() < 1e-5
        assert (found.sum(dim=-1) - 1).abs().max() < 1e-6
    assert float(found[1, :, :, 5:].max()) == 0


def test_pictures_and_processors_stay_exactly_as_they_were():
    model = toy.unet()
    processors = dict(model.attn_processors)
    picture = toy.draw(model)
    with record_attention(model, PROMPT, negative=EMPTY):
        assert all(model.attn_processors[name] is each for name, each in processors.items())
        watched = toy.draw(model)
    assert torch.equal(picture, watched)
    assert _hooks(model) == 0
    with pytest.raises(KeyError), record_attention(model, PROMPT, negative=EMPTY):
        raise KeyError
    assert _hooks(model) == 0


def test_only_layers_that_read_the_text_are_recorded():
    record = _captured()
    assert len(record.layers) == 4  # one down, one middle, two up
    assert all(name.endswith("attn2") for name in record.layers)
    assert record.layers[0].startswith("down")
    assert record.layers[1].startswith("mid")
    assert record.halves == ("uncond", "cond")


def test_masses_sum_to_one():
    record = _captured()
    assert record.mass.shape == (2, 4, 3, 4, toy.TOKENS)
    np.testing.assert_allclose(np.nansum(record.mass, axis=-1), 1, atol=1e-5)
    assert record.word_mass().sum() == pytest.approx(1, abs=1e-5)


def test_statistics_equal_the_direct_computation():
    model = toy.unet()
    name = cross_attentions(model)[0]
    layer = model.get_submodule(name)
    seen: list[torch.Tensor] = []
    queries: list[torch.Tensor] = []
    handles = [
        layer.to_q.register_forward_hook(lambda _m, _i, out: queries.append(out)),
        layer.to_k.register_forward_hook(
            lambda _m, _i, out: seen.append(scores(layer, queries.pop(), out))
        ),
    ]
    with record_attention(model, PROMPT, negative=EMPTY, layers=[name]) as recorder:
        toy.draw(model, samples=4)  # two pictures, both halves
    for handle in handles:
        handle.remove()
    record = recorder.result()
    for step, found in enumerate(seen):
        for half in (0, 1):
            part = found[2 * half : 2 * half + 2]
            np.testing.assert_allclose(
                record.mass[half, 0, step], part.mean((0, 2)).numpy(), rtol=1e-4
            )
            tokens = (EMPTY, PROMPT)[half]
            for group, role in enumerate(GROUPS):
                values = part[..., list(tokens.positions(role))].log2().numpy()
                counts = np.histogram(np.clip(values, -24.25, -1e-6), score_edges())[0]
                np.testing.assert_array_equal(record.histogram[half, 0, step, group], counts)
    guided = torch.stack([found[2:] for found in seen])  # [steps, samples, heads, queries, tokens]
    expected = guided.mean((0, 1, 2))[:, [2, 3]].sum(-1).reshape(4, 4)
    circle = record.token_map(PROMPT.words[1].tokens, layer=name)
    np.testing.assert_allclose(circle, expected.numpy(), rtol=1e-5)


def test_word_maps_find_where_a_word_is_looked_at():
    # Keys are one-hot words; the queries of two planted places point at one word each.
    model = toy.unet()
    name = cross_attentions(model)[0]
    layer = model.get_submodule(name)
    q = torch.zeros(2, 16, layer.inner_dim)
    k = torch.zeros(2, toy.TOKENS, layer.inner_dim)
    size = layer.inner_dim // layer.heads
    for head in range(layer.heads):
        for token in range(toy.TOKENS):
            k[:, token, head * size + token] = 1
        q[:, 6, head * size + 1] = 40
        q[:, 9, head * size + 5] = 40
    layer.to_q.register_forward_hook(lambda *_: q)
    layer.to_k.register_forward_hook(lambda *_: k)
    with record_attention(model, PROMPT, negative=EMPTY, layers=[name]) as recorder:
        toy.draw(model)
    record = recorder.result()
    red, blue = (record.token_map(PROMPT.words[at].tokens, layer=name) for at in (0, 3))
    assert np.unravel_index(red.argmax(), red.shape) == (1, 2)
    assert np.unravel_index(blue.argmax(), blue.shape) == (2, 1)
    assert red.max() > 0.99
    assert red.min() < 0.13
    average = record.token_map(PROMPT.words[0].tokens, step=1)
    assert average.shape == (toy.LATENT, toy.LATENT)
    assert np.unravel_index(average.argmax(), average.shape)[0] in (2, 3)


def test_words_of_a_map_add_up():
    record = _captured()
    every = tuple(range(7))
    total = record.token_map(every)
    parts = sum(record.token_map((at,)) for at in every)
    np.testing.assert_allclose(total, parts, rtol=1e-5)
    assert 0 < total.min() <= total.max() < 1  # padding has the rest


def test_maps_of_padding_and_of_layer_and_step_are_refused():
    record = _captured()
    with pytest.raises(UserError, match="padding"):
        record.token_map((7,))
    with pytest.raises(UserError, match="not by both"):
        record.token_map((1,), layer=record.layers[0], step=0)
    with pytest.raises(UserError, match="not recorded"):
        record.token_map((1,), layer="nowhere")


def test_records_come_back_from_disk(tmp_path):
    record = _captured()
    path = tmp_path / "attention.npz"
    record.save(path)
    loaded = AttentionRecord.load(path)
    assert (loaded.tokens, loaded.layers, loaded.halves) == (
        record.tokens,
        record.layers,
        record.halves,
    )
    np.testing.assert_array_equal(loaded.mass, record.mass)
    np.testing.assert_array_equal(loaded.histogram, record.histogram)
    np.testing.assert_array_equal(loaded.token_map((1, 2)), record.token_map((1, 2)))


def test_tokens_of_another_tokenizer_and_fused_layers_are_refused():
    model = toy.unet()

    class Short(toy.Tokenizer):
        model_max_length = 5

    with (
        pytest.raises(UserError, match="reads 8 tokens, the prompt has 5"),
        record_attention(model, tokenize(Short(), "red")),
    ):
        toy.draw(model)
    with (
        pytest.raises(UserError, match="no cross-attention"),
        record_attention(model, PROMPT, layers=["conv_in"]),
    ):
        pass
    with record_attention(model, PROMPT) as recorder:
        pass
    with pytest.raises(UserError, match="No cross-attention layer ran"):
        recorder.result()


def test_histogram_edges_are_half_octaves():
    edges = score_edges()
    assert edges[-1] == 0
    assert edges[1] == -24
    assert math.isclose(edges[2] - edges[1], 0.5)
