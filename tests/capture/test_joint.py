"""Joint attention of SD3 and FLUX against scores computed from what SDPA is given; words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.capture import joint, toy
from vqdq.capture import (
    GROUPS,
    AttentionRecord,
    attention_scores,
    cross_attentions,
    joint_attentions,
    prompt_tokens,
    record_attention,
    self_attentions,
    text_attentions,
    tokenize,
)
from vqdq.capture.attention_record import score_edges
from vqdq.capture.prompts import joined
from vqdq.errors import UserError


@dataclass(frozen=True)
class _Family:
    model: Callable[[], Any]
    draw: Callable[[Any], torch.Tensor]
    text: int
    places: int
    text_first: bool
    guided: bool
    calls: tuple[int, ...]  # which of a step's attentions are joint


FAMILIES = {
    "sd3": _Family(joint.sd3, joint.draw_sd3, 9, 16, False, True, (0, 2)),  # 1: attn2
    "flux": _Family(joint.flux, joint.draw_flux, 4, 8, True, False, (0, 1)),
}


@contextlib.contextmanager
def _sdpa(seen: list[torch.Tensor]) -> Generator[None, None, None]:
    """Appends the scores of each call of SDPA, [batch, heads, queries, keys], float64."""
    original = functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
        seen.append(logits.softmax(-1))
        return original(query, key, value, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        yield


def _hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def _captured(family: _Family, **options: Any) -> tuple[AttentionRecord, list[torch.Tensor]]:
    model, seen = family.model(), []
    with _sdpa(seen), record_attention(model, None, guided=family.guided, **options) as recorder:
        family.draw(model)
    step = len(seen) // 2
    return recorder.result(), [seen[at * step + call] for at in (0, 1) for call in family.calls]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("block", [attention_scores.BLOCK, 300])
def test_records_what_sdpa_computes(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES[name]
    monkeypatch.setattr(attention_scores, "BLOCK", block)  # one block of heads, or several
    record, seen = _captured(family)
    assert record.layers == joint_attentions(family.model())
    assert set(record.layers) <= set(record.self_layers)
    words = GROUPS.index("words")
    for index, found in enumerate(seen):
        step, row = divmod(index, 2)
        text = slice(0, family.text) if family.text_first else slice(family.places, None)
        image = slice(family.text, None) if family.text_first else slice(0, family.places)
        parts = found[:, :, image].numpy()  # [halves, heads, places, keys]
        read, looked = parts[..., text], parts[..., image]
        np.testing.assert_allclose(record.mass[:, row, step], read.mean(2), rtol=2e-5)
        np.testing.assert_allclose(
            record.picture_mass[:, row, step], looked.sum(-1).mean(-1), rtol=2e-5
        )
        for half in range(len(parts)):
            counts = np.histogram(np.log2(read[half]), score_edges())[0]
            assert abs(record.histogram[half, row, step, words] - counts).sum() <= 2  # at an edge
            own = record.self_counts(record.layers[row], step=step, half=record.halves[half])
            assert own.sum() == looked[half].size
        np.testing.assert_allclose(record.spread[0, :, row, step], read.max((1, 2, 3)), rtol=2e-5)
        np.testing.assert_allclose(record.spread[1, :, row, step], read.mean((1, 2, 3)), rtol=2e-5)
    for row, layer in enumerate(record.layers):
        guided = np.stack([seen[at][-1:, :, image] for at in (row, row + 2)])
        maps = guided[..., text].mean((0, 1, 2))  # [places, tokens]
        shape = record.layer_maps[layer].shape
        assert shape[1:] == ((2, 4) if family.text_first else (4, 4))
        np.testing.assert_allclose(record.layer_maps[layer], maps.T.reshape(shape), rtol=2e-5)
        own = guided[..., image].mean((0, 1, 2, 3)).reshape(shape[1:])
        np.testing.assert_allclose(record.self_map(layer), own, rtol=2e-5)
    assert not record.has_words


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_stays_and_hooks_leave(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    assert cross_attentions(model) == ()
    assert text_attentions(model) == joint_attentions(model)
    picture = family.draw(model)
    with record_attention(model, None, guided=family.guided):
        assert torch.equal(family.draw(model), picture)
    assert _hooks(model) == 0


def test_the_second_attention_of_sd35_is_the_pictures_own() -> None:
    model = joint.sd3()
    assert joint_attentions(model) == ("transformer_blocks.0.attn", "transformer_blocks.1.attn")
    assert self_attentions(model) == ("transformer_blocks.0.attn2",)
    with record_attention(model, None, guided=True, self_attention=False) as recorder:
        joint.draw_sd3(model)
    assert recorder.result().self_layers == ()


def test_masks_of_the_text_are_kept() -> None:
    model = joint.flux()
    mask = torch.ones(1, 1, 1, 12, dtype=torch.bool)
    mask[..., 2:4] = False  # two tokens of padding
    layer = model.get_submodule("single_transformer_blocks.0.attn")
    layer.register_forward_pre_hook(
        lambda _m, args, kwargs: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
    )
    with record_attention(model, None, layers=["single_transformer_blocks.0.attn"]) as recorder:
        joint.draw_flux(model)
    mass = recorder.result().mass[0, 0]
    assert (mass[..., 2:] == 0).all()
    assert (mass[..., :2] > 0).all()


def test_fused_projections_and_wrong_tokens_are_refused() -> None:
    model = joint.sd3()
    tokens = tokenize(toy.Tokenizer(), "red circle")
    with (
        pytest.raises(UserError, match="reads 9 tokens, the prompt has 8"),
        record_attention(model, tokens, negative=tokens),
    ):
        joint.draw_sd3(model)
    with pytest.raises(UserError, match="two halves"), record_attention(model, tokens, guided=True):
        pass
    model.fuse_qkv_projections()
    with (
        pytest.raises(UserError, match="unfuse_qkv"),
        record_attention(model, None, guided=True),
    ):
        joint.draw_sd3(model)


class _T5(toy.Tokenizer):
    """Marks the start of a word, has no start sign, and keeps punctuation on the word."""

    model_max_length = 512
    bos_token_id = None

    def __init__(self) -> None:
        self.pieces = ["<pad>", "</s>"]

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        ids = []
        for word in text.split():
            halves = ["▁" + word[:4], word[4:]] if len(word) > 4 else ["▁" + word]
            for piece in halves:
                if piece not in self.pieces:
                    self.pieces.append(piece)
                ids.append(self.pieces.index(piece))
        ids = [*ids[: options["max_length"] - 1], 1]
        return {"input_ids": ids + [0] * (options["max_length"] - len(ids))}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[at] for at in ids).replace("▁", " ")


def _pipeline(family: str, length: int, **parts: Any) -> Any:
    def call(self, prompt, max_sequence_length=length):
        """Draws nothing."""

    return type(family, (SimpleNamespace,), {"__call__": call})(**parts)


def test_words_are_mapped_to_the_columns_that_the_denoiser_sees() -> None:
    clip, t5 = toy.Tokenizer(), _T5()
    sd3 = _pipeline("StableDiffusion3Pipeline", 9, tokenizer=clip, tokenizer_2=clip, tokenizer_3=t5)
    found = prompt_tokens(sd3, "red circle")
    assert found is not None
    assert found.encoders == (("CLIP", 8), ("T5", 9))
    assert len(found.labels) == 17
    # CLIP: <start> red circl e <end> …; T5 from 8: ▁red ▁circ le </s> <pad> …
    assert [(word.text, word.tokens) for word in found.words] == [
        ("red", (1, 8)),
        ("circle", (2, 3, 9, 10)),
    ]
    assert found.positions("end") == (4, 11)
    assert found.positions("padding") == (5, 6, 7, 12, 13, 14, 15, 16)
    again = type(found).from_json(found.to_json())
    assert again == found
    flux = _pipeline("FluxPipeline", 6, tokenizer=clip, tokenizer_2=t5)
    tail = prompt_tokens(flux, "red circle")
    assert tail is not None
    assert [word.tokens for word in tail.words] == [(0,), (1, 2)]
    assert tail.groups[3] == GROUPS.index("end")
    assert tail.encoders == ()
    unknown = _pipeline("AnotherPipeline", 6, tokenizer=clip, tokenizer_2=t5)
    assert prompt_tokens(unknown, "red") is None
    only = _pipeline("StableDiffusionXLPipeline", 6, tokenizer=clip, tokenizer_2=clip)
    assert prompt_tokens(only, "red") == tokenize(clip, "red")


def test_what_only_the_second_encoder_reads_has_words_of_its_own() -> None:
    prompt = "one two three four five six seven eight, nine"
    clip, t5 = tokenize(toy.Tokenizer(), prompt), tokenize(_T5(), prompt, length=20)
    words = {word.text: word.tokens for word in joined((("CLIP", clip), ("T5", t5))).words}
    assert list(words)[:6] == ["one", "two", "three", "four", "five", "six"]
    assert list(words)[6:] == ["seven (T5)", "eight, (T5)", "nine (T5)"]
    assert words["three"] == (3, 10, 11)


def test_a_record_with_words_comes_back_and_sums_up(tmp_path) -> None:
    clip = tokenize(toy.Tokenizer(), "a red", length=joint.CLIP)
    empty = tokenize(toy.Tokenizer(), "", length=joint.CLIP)
    ends = [tokenize(_T5(), text, length=joint.T5) for text in ("a red", "")]
    model = joint.sd3()
    with record_attention(
        model,
        joined((("CLIP", clip), ("T5", ends[0]))),
        negative=joined((("CLIP", empty), ("T5", ends[1]))),
    ) as recorder:
        joint.draw_sd3(model)
    record = recorder.result()
    record.save(tmp_path / "attention.npz")
    loaded = AttentionRecord.load(tmp_path / "attention.npz")
    assert loaded.prompt == record.prompt
    assert loaded.has_words
    red = loaded.prompt.words[1]
    assert red.tokens == (2, 6)
    both = loaded.token_map((2,)) + loaded.token_map((6,))
    np.testing.assert_allclose(loaded.token_map(red.tokens), both, rtol=1e-6)
    np.testing.assert_allclose(loaded.mass.sum(-1) + loaded.picture_mass, 1, atol=1e-5)
