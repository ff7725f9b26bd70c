"""The processor against diffusers' own, its blocks, its switch and its errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
)
from torch import nn

from tests.capture import toy
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ranged
from vqdq.capture import record_attention, tokenize
from vqdq.errors import UserError
from vqdq.layers import score_blocks
from vqdq.layers.attention import (
    attach_attention_,
    attention_execution,
    attention_quantizers,
    attentions,
    detach_attention_,
    seen_attention,
    switch_attention_,
)
from vqdq.layers.inputs import NoiseLevel
from vqdq.layers.score_blocks import attended, blocks

SCORES_ONLY = AttentionParams(scores="log", bits=6, qkv_bits=16)


def _attention(seed: int = 0, **settings: Any) -> Attention:
    torch.manual_seed(seed)
    given = {"query_dim": 24, "heads": 3, "dim_head": 8, "bias": True} | settings
    return Attention(**given).eval().requires_grad_(requires_grad=False)


def _both(
    layer: Attention, params: AttentionParams, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the original processor, and of the quantized one."""
    expected = layer(*args, **kwargs)
    attach_attention_(nn.ModuleDict({"a": layer}), params, NoiseLevel())
    found = layer(*args, **kwargs)
    detach_attention_(nn.ModuleDict({"a": layer}))
    return expected, found


def _exact_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_they_are(scores: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return scores

    monkeypatch.setattr(score_blocks, "fake_scores", as_they_are)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual_connection": True, "rescale_output_factor": 1.7},
    "group norm": {"norm_num_groups": 4},
    "norms of q and k": {"qk_norm": "layer_norm"},
    "rms norm": {"qk_norm": "rms_norm"},
    "upcast": {"upcast_attention": True, "upcast_softmax": True},
    "older": {"processor": AttnProcessor()},
    "unscaled": {"scale_qk": False},
    "sliced": {"processor": SlicedAttnProcessor(2)},
    "older with norms": {"processor": AttnProcessor(), "qk_norm": "layer_norm"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scores", ["off", "log"])
@pytest.mark.parametrize("queries", [1, 7, 33])
def test_self_attention_is_the_originals(
    case: str, scores: str, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _exact_scores(monkeypatch)
    monkeypatch.setattr(score_blocks.attended, "__kwdefaults__", {"most": 40})
    x = torch.randn(2, queries, 24, generator=torch.Generator().manual_seed(1))
    params = AttentionParams(scores=scores, qkv_bits=16)
    expected, found = _both(_attention(**CASES[case]), params, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["none", "keys", "keys and queries"])
@pytest.mark.parametrize("norm", [None, "layer_norm", "group_norm"])
def test_cross_attention_is_the_originals(
    mask: str, norm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _exact_scores(monkeypatch)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 9, 24, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    layer = _attention(
        cross_attention_dim=16, cross_attention_norm=norm, cross_attention_norm_num_groups=4
    )
    hidden = -10_000.0 * (torch.rand(2, 9, 5, generator=generator) > 0.6)
    given = {"none": None, "keys": hidden[:, :1], "keys and queries": hidden}[mask]
    for scores in ("off", "log"):
        params = AttentionParams(scores=scores, qkv_bits=16)
        expected, found = _both(layer, params, x, text, attention_mask=given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_bool_mask_and_feature_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    _exact_scores(monkeypatch)
    maps = torch.randn(2, 24, 3, 5, generator=torch.Generator().manual_seed(3))
    layer = _attention(norm_num_groups=3, residual_connection=True)
    expected, found = _both(layer, SCORES_ONLY, maps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    read = torch.ones(2, 1, 6, dtype=torch.bool)
    read[:, :, 4:] = False
    x = torch.randn(2, 6, 24)
    layer = _attention()
    for scores in ("off", "log"):
        params = AttentionParams(scores=scores, qkv_bits=16)
        expected, found = _both(layer, params, x, attention_mask=read)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_spatial_norm_sees_its_second_input(monkeypatch: pytest.MonkeyPatch) -> None:
    _exact_scores(monkeypatch)
    layer = _attention(query_dim=32, dim_head=8, heads=4, spatial_norm_dim=4)
    maps, temb = torch.randn(1, 32, 4, 4), torch.randn(1, 4, 4, 4)
    expected, found = _both(layer, SCORES_ONLY, maps, temb=temb)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sixteen_bits_are_computed_in_float32_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _exact_scores(monkeypatch)
    layer = _attention().to(torch.bfloat16)
    x = torch.randn(2, 9, 24).bfloat16()
    expected, found = _both(layer, SCORES_ONLY, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def _parts(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    query = 2 * torch.randn(batch, 4, 37, 8, generator=generator)
    key, value = torch.randn(2, batch, 4, 11, 8, generator=generator)
    return query, key, value


@pytest.mark.parametrize("scores", ["log", "log2", "linear"])
def test_a_sample_does_not_depend_on_its_batch(scores: str) -> None:
    query, key, value = _parts()
    query[0] *= 0.2  # a flat one, and a sharp one whose scale would be everyone's
    query[2] *= 5
    params = AttentionParams(scores=scores, bits=4)

    def of(chosen: slice, params: AttentionParams) -> torch.Tensor:
        q, k, v = query[chosen].clone(), key[chosen].clone(), value[chosen].clone()
        return attended(q, k, v, None, params, start_apart=True, where="a")

    whole = of(slice(None), params)
    for sample in range(3):
        assert torch.equal(of(slice(sample, sample + 1), params)[0], whole[sample])
    published = AttentionParams(scores=scores, bits=4, paper_exact=True)
    shared = of(slice(None), published)
    assert not torch.equal(of(slice(0, 1), published)[0], shared[0])


def test_blocks_change_nothing_but_memory() -> None:
    query, key, value = _parts()
    mask = -10_000.0 * (torch.rand(3, 4, 37, 11) > 0.8)
    params = AttentionParams(bits=5)

    def of(most: int) -> torch.Tensor:
        return attended(query, key, value, mask, params, start_apart=True, where="a", most=most)

    whole = of(1 << 20)
    for most in (1, 50, 500, 2000):
        torch.testing.assert_close(of(most), whole, rtol=1e-4, atol=1e-5)


def test_no_block_is_too_large() -> None:
    found = list(blocks((2, 8, 4096, 4096), 1 << 22))
    assert len(found) == 2 * 8 * 4
    assert max((block.queries.stop - block.queries.start) * 4096 for block in found) == 1 << 22
    assert [block.heads for block in blocks((1, 8, 64, 64), 3 * 4096)] == [
        slice(0, 3),
        slice(3, 6),
        slice(6, 9),
    ]
    assert len(list(blocks((2, 8, 64, 77), 1 << 22))) == 2


def test_scores_are_rounded_as_the_levels_say() -> None:
    from vqdq.activations.scores import fake_scores, score_levels, spread

    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(5))
    text = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(6))
    layer = _attention(cross_attention_dim=16)
    q, k, v = (
        side.unflatten(-1, (3, 8)).transpose(1, 2)
        for side in (layer.to_q(x), layer.to_k(text), layer.to_v(text))
    )
    for apart, sums in ((True, True), (True, False), (False, True)):
        params = AttentionParams(
            scores="log2", bits=4, qkv_bits=16, start_apart=apart, keep_sums=sums
        )
        _, found = _both(layer, params, x, text)
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1)
        known: list[torch.Tensor] = []
        for each in scores:
            levels = score_levels(spread(each, start_apart=apart), "log2", 4)
            known.append(fake_scores(each, levels, start_apart=apart, keep_sums=sums))
        expected = layer.to_out[0]((torch.stack(known) @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_the_start_row_of_key_and_value_stays(*, published: bool) -> None:
    layer = _attention(cross_attention_dim=16)
    holder = nn.ModuleDict({"a": layer})
    params = AttentionParams(qkv_bits=4, paper_exact=published)
    quantizer = attach_attention_(holder, params, NoiseLevel())["a"]
    x = torch.randn(2, 3, 6, 8)
    for part in ("q", "k", "v"):
        found = quantizer.rounded(part, x, cross=True)
        kept = part == "k" or (part == "v" and not published)
        assert torch.equal(found[:, :, 0], x[:, :, 0]) == kept
        assert not torch.equal(found[:, :, 1:], x[:, :, 1:])
        words = x[:, :, 1:].flatten(0, 1)
        scale, zero = ranged(words.amin(2), words.amax(2), 4)
        steps = (words / scale[..., None]).round() + zero[..., None]
        expected = (steps.clamp(0, 15) - zero[..., None]) * scale[..., None]
        torch.testing.assert_close(found[:, :, 1:].flatten(0, 1), expected)
        alone = quantizer.rounded(part, x, cross=False)
        assert not torch.equal(alone[:, :, 0], x[:, :, 0])


def test_switched_off_is_the_original_bit_for_bit() -> None:
    model = toy.unet()
    keys, plain = set(model.state_dict()), toy.draw(model)
    processors = {name: layer.processor for name, layer in attentions(model).items()}
    attach_attention_(model, AttentionParams(bits=4, qkv_bits=4), NoiseLevel())
    rounded = toy.draw(model)
    assert not torch.equal(rounded, plain)
    switch_attention_(model, enabled=False)
    assert torch.equal(toy.draw(model), plain)
    switch_attention_(model, enabled=True)
    assert torch.equal(toy.draw(model), rounded)
    clone = copy.deepcopy(model)
    switch_attention_(clone, enabled=False)
    assert torch.equal(toy.draw(clone), plain)
    assert torch.equal(toy.draw(model), rounded)
    detach_attention_(model)
    assert torch.equal(toy.draw(model), plain)
    assert set(model.state_dict()) == keys
    assert all(attentions(model)[name].processor is each for name, each in processors.items())


def test_capture_goes_on_and_changes_nothing() -> None:
    model = toy.unet()
    attach_attention_(model, AttentionParams(bits=5), NoiseLevel())
    picture = toy.draw(model)
    prompt = tokenize(toy.Tokenizer(), "red circle on blue")
    with record_attention(model, prompt, negative=prompt) as recorder:
        assert torch.equal(toy.draw(model), picture)
    assert len(recorder.result().layers) == 4
    seen: set[str] = set()
    with seen_attention(model, SCORES_ONLY, lambda site, _rows: seen.add(site)):
        toy.draw(model)
    assert len(seen) == 3 * len(attentions(model))
    assert torch.equal(toy.draw(model), picture)


def test_eight_bits_stay_near_and_self_attention_may_be_left_out() -> None:
    model = toy.unet()
    plain = toy.draw(model)
    found = attach_attention_(model, AttentionParams(self_attention=False), NoiseLevel())
    assert len(found) == len(attentions(model)) // 2
    assert all(name.endswith("attn2") for name in found)
    error = (toy.draw(model) - plain).square().sum() / plain.square().sum()
    assert 0 < float(error) < 1e-5
    assert {each.kind for each in attention_execution(model).values()} == {"simulated"}
    switch_attention_(model, enabled=False)
    assert {each.kind for each in attention_execution(model).values()} == {"16-bit"}
    switch_attention_(model, enabled=True)
    model.set_attn_processor(AttnProcessor())
    reasons = {each.reason for each in attention_execution(model).values()}
    assert reasons == {"another processor was set: AttnProcessor"}


def test_what_cannot_be_done_says_where_and_what() -> None:
    for processor, kind in (
        (JointAttnProcessor2_0(), "JointAttnProcessor2_0"),
        (AttnAddedKVProcessor2_0(), "AttnAddedKVProcessor2_0"),
    ):
        holder = nn.ModuleDict({"block": nn.ModuleDict({"attn": _attention()})})
        attentions(holder)["block.attn"].set_processor(processor)
        with pytest.raises(UserError, match=kind) as caught:
            attach_attention_(holder, AttentionParams(), NoiseLevel())
        assert caught.value.where == "block.attn"
        assert not attention_quantizers(holder)
    holder = nn.ModuleDict({"attn": _attention()})
    with pytest.raises(UserError, match="not known"):
        attach_attention_(holder, AttentionParams(qkv_method="dgq"), NoiseLevel())
    assert isinstance(attentions(holder)["attn"].processor, AttnProcessor2_0)


@pytest.mark.parametrize("qkv_bits", [8, 16])
def test_values_that_are_not_numbers_name_the_layer(qkv_bits: int) -> None:
    holder = nn.ModuleDict({"attn": _attention()})
    attach_attention_(holder, AttentionParams(qkv_bits=qkv_bits), NoiseLevel())
    x = torch.randn(1, 4, 24)
    x[0, 2, 3] = torch.nan
    with pytest.raises(UserError, match="NaN") as caught:
        attentions(holder)["attn"](x)
    assert str(caught.value.where).startswith("attn")


@pytest.mark.parametrize("bits", [8, 16])
def test_gradients_pass_as_if_nothing_were_rounded(bits: int) -> None:
    model = toy.unet().requires_grad_(False)
    attach_attention_(model, AttentionParams(bits=8, qkv_bits=bits), NoiseLevel())
    generator = torch.Generator().manual_seed(3)
    for layer in attentions(model).values():
        attention: Any = layer
        rows = torch.randn(2, 9, attention.query_dim, generator=generator)
        text = torch.randn(2, 7, attention.cross_attention_dim, generator=generator)
        given = text if attention.is_cross_attention else None
        found: list[torch.Tensor] = []
        for enabled in (True, False):
            attention.quantizer.enabled = enabled
            leaf = rows.clone().requires_grad_()
            output = attention(leaf, encoder_hidden_states=given)
            with torch.no_grad():
                assert torch.equal(output, attention(leaf, encoder_hidden_states=given))
            output.backward(rows)
            assert leaf.grad is not None
            found.append(leaf.grad)
        torch.testing.assert_close(*found)
