"""What each token of a prompt is: the start sign, part of a word, the end sign or padding.

A word may be several tokens ("squ" + "are"); people click words, so their tokens are kept together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

GROUPS = ("start", "words", "end", "padding")
"""Roles of a token, in the order in which a text encoder puts them."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    model_max_length: int
    bos_token_id: Any
    eos_token_id: Any

    def __call__(self, text: str, **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: list[int], /) -> Any: ...

    def decode(self, ids: list[int], /) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word of the prompt and the positions of its tokens."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """A prompt as the text encoder sees it.

    Attributes:
        prompt: the text.
        labels: a readable label for each token, `<start>` and the like included.
        groups: the role of each token, an index into `GROUPS`.
        words: the words in order; punctuation counts as a word.
        encoders: name and tokens of each text encoder, one after the other; () for only one.
    """

    prompt: str
    labels: tuple[str, ...]
    groups: tuple[int, ...]
    words: tuple[Word, ...]
    encoders: tuple[tuple[str, int], ...] = ()

    def positions(self, group: str) -> tuple[int, ...]:
        """Returns the positions of the tokens with this role."""
        wanted = GROUPS.index(group)
        return tuple(at for at, found in enumerate(self.groups) if found == wanted)

    def to_json(self) -> dict[str, Any]:
        """Returns the tokens as JSON values."""
        return {
            "prompt": self.prompt,
            "labels": self.labels,
            "groups": self.groups,
            "words": [{"text": word.text, "tokens": word.tokens} for word in self.words],
            "encoders": self.encoders,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PromptTokens:
        """Returns the tokens in `values`."""
        return cls(
            prompt=values["prompt"],
            labels=tuple(values["labels"]),
            groups=tuple(values["groups"]),
            words=tuple(
                Word(text=word["text"], tokens=tuple(word["tokens"])) for word in values["words"]
            ),
            encoders=tuple((str(name), int(count)) for name, count in values.get("encoders", ())),
        )


def untold(count: int) -> PromptTokens:
    """Returns so many tokens of which nothing is known: one group without words."""
    return PromptTokens(
        prompt="",
        labels=tuple(f"#{at + 1}" for at in range(count)),
        groups=(GROUPS.index("words"),) * count,
        words=(),
    )


def tokenize(tokenizer: Tokenizer, prompt: str, *, length: int | None = None) -> PromptTokens:
    """Returns the roles and words of `prompt`, padded and cut to `length` tokens.

    The length is the tokenizer's own unless it is given. The first token is the start sign when the
    tokenizer has one; the first end sign is `<end>`, all after it padding, for CLIP pads with its
    own end sign.
    """
    encoded = tokenizer(
        prompt,
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
    )
    ids: list[int] = list(encoded["input_ids"])
    first = 1 if ids and ids[0] == tokenizer.bos_token_id else 0
    last = next(
        (at for at in range(first, len(ids)) if ids[at] == tokenizer.eos_token_id), len(ids)
    )
    pieces: list[str] = list(tokenizer.convert_ids_to_tokens(ids))
    words = tuple(
        Word(text=str(tokenizer.decode([ids[at] for at in tokens])).strip() or "·", tokens=tokens)
        for tokens in _joined(pieces, first, last)
    )
    labels = ["<pad>"] * len(ids)
    groups = [GROUPS.index("padding")] * len(ids)
    if first:
        labels[0], groups[0] = "<start>", GROUPS.index("start")
    if last < len(ids):
        labels[last], groups[last] = "<end>", GROUPS.index("end")
    for word in words:
        for at in word.tokens:
            groups[at] = GROUPS.index("words")
            piece = str(tokenizer.decode([ids[at]])).strip()
            labels[at] = word.text if len(word.tokens) == 1 else piece or "·"
    return PromptTokens(prompt=prompt, labels=tuple(labels), groups=tuple(groups), words=words)


def _joined(pieces: Sequence[str], first: int, last: int) -> list[tuple[int, ...]]:
    """Positions of each word's tokens: CLIP marks the end of a word, SentencePiece its start."""
    marks_end = any(piece.endswith("</w>") for piece in pieces)
    words: list[list[int]] = []
    fresh = True
    for at in range(first, last):
        starts = fresh if marks_end else (pieces[at].startswith("▁") or not words)
        if starts:
            words.append([])
        words[-1].append(at)
        fresh = pieces[at].endswith("</w>")
    return [tuple(word) for word in words]
