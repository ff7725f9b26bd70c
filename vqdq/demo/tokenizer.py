"""The demo model's own CLIP tokenizer: one token for each word of the world, bytes for everything
else.

The merges come from byte-pair encoding (arXiv 1508.07909) of the words alone, carried on until
every word is one symbol. Deterministic: ties go to the pair that sorts first.
"""

from __future__ import annotations

import itertools
from collections import Counter

from transformers import CLIPTokenizer

from vqdq.demo import scenes

MAX_TOKENS = 24
"""Tokens of a prompt, begin and end included; the longest sentence of the grammar has 20."""

_GRAMMAR = ("a", "on", "background")
_END_OF_WORD = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def words() -> tuple[str, ...]:
    """Every word of the grammar and its synonyms, sorted."""
    phrases = [*_GRAMMAR, *scenes.SYNONYMS, *scenes.SYNONYMS.values()]
    phrases += [phrase for category in scenes.VOCABULARY.values() for phrase in category]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def learn_merges(vocabulary: tuple[str, ...]) -> list[tuple[str, str]]:
    """The merges, in order, that turn each word of `vocabulary` into one symbol."""
    spelled = [(*word[:-1], word[-1] + _END_OF_WORD) for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in spelled for pair in itertools.pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(word, best) for word in spelled]


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer; `save_pretrained` writes it in the layout that diffusers loads."""
    merges = learn_merges(words())
    letters = list(_byte_letters().values())
    symbols = [*letters, *(letter + _END_OF_WORD for letter in letters)]
    symbols += [left + right for left, right in merges]
    vocabulary = {
        symbol: index for index, symbol in enumerate(dict.fromkeys([*symbols, *_SPECIAL]))
    }
    # transformers says list[str], but its backend wants pairs.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # pyright: ignore[reportArgumentType]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte (the GPT-2 alphabet)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}
