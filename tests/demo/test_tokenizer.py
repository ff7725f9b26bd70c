"""The tokenizer: one token a word, bytes for the rest, short enough for every sentence."""

from __future__ import annotations

import pytest
import torch

from vqdq.demo import scenes
from vqdq.demo.tokenizer import MAX_TOKENS, build_tokenizer, learn_merges, words


@pytest.mark.parametrize("word", words())
def test_each_word_is_one_token(word: str) -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer(word)["input_ids"]) == 3  # with begin and end


def test_unknown_text_falls_back_to_bytes() -> None:
    tokenizer = build_tokenizer()
    ids = tokenizer("a zebra, ünder 7!")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "azebra,ünder7!"
    assert len(ids) > 10


def test_every_sentence_fits() -> None:
    tokenizer = build_tokenizer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        scene = scenes.sample_scene(generator, two_objects=1.0)
        assert len(tokenizer(scenes.paraphrase(scene, generator))["input_ids"]) <= MAX_TOKENS


def test_merges_join_each_word() -> None:
    assert learn_merges(("aba",)) == [("a", "b"), ("ab", "a</w>")]
