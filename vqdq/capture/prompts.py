"""Which columns of a denoiser's text are which words, by the encoders that a pipeline joins.

A U-Net is given the states of one tokenizer's tokens (SDXL's second encoder reads the same ones).
SD3 is given CLIP's 77 tokens, its two encoders side by side in the channels, then T5's; FLUX is
given T5's alone, CLIP only steers it as a whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from vqdq.capture.tokens import PromptTokens, Tokenizer, Word, tokenize

_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def prompt_tokens(pipeline: Any, prompt: str) -> PromptTokens | None:
    """Returns the prompt as the pipeline's denoiser is given it; None where that is not known.

    Known are pipelines with one kind of tokenizer, and SD3's and FLUX's. T5's tokens are as many as
    the pipeline takes when it is called without `max_sequence_length`.
    """
    found: list[Tokenizer] = [
        each for name in _TOKENIZERS if (each := getattr(pipeline, name, None)) is not None
    ]
    clip = [each for each in found if each.bos_token_id is not None]
    other = [each for each in found if each.bos_token_id is None]
    if not found or len(other) > 1:
        return None
    if not other:
        return tokenize(clip[0], prompt)
    length = _sequence_length(pipeline)
    if not clip:
        return tokenize(other[0], prompt, length=length)
    family = type(pipeline).__name__
    if length is None or not family.startswith(("StableDiffusion3", "Flux")):
        return None
    tail = tokenize(other[0], prompt, length=length)
    if family.startswith("Flux"):
        return tail
    return joined((("CLIP", tokenize(clip[0], prompt)), ("T5", tail)))


def joined(parts: Sequence[tuple[str, PromptTokens]]) -> PromptTokens:
    """Returns the tokens of encoders one after the other, with the words of all.

    Words that stand in the same place of the prompt are one word with the tokens of each encoder:
    the first encoder's words are kept, and a later one's ("circle,") go to the one that they share
    the most letters with. What only a later encoder reads, as the end of a long prompt, has words
    of its own with the encoder's name.
    """
    words: list[tuple[str, tuple[int, ...], range]] = []
    text, first = "", 0
    for name, part in parts:
        at = 0
        for word in part.words:
            letters = _letters(word.text)
            place = range(at, at + len(letters))
            at = place.stop
            tokens = tuple(first + token for token in word.tokens)
            index = _best(place, [known for _, _, known in words])
            same = text[place.start : place.stop] == letters
            if index is not None and same:
                label, before, known = words[index]
                words[index] = (label, before + tokens, known)
            else:
                label = word.text if not first else f"{word.text} ({name})"
                words.append((label, tokens, place if not first else range(0)))
        if not first:
            text = "".join(_letters(word.text) for word in part.words)
        first += len(part.labels)
    return PromptTokens(
        prompt=parts[0][1].prompt,
        labels=tuple(label for _, part in parts for label in part.labels),
        groups=tuple(group for _, part in parts for group in part.groups),
        words=tuple(Word(text=label, tokens=tokens) for label, tokens, _ in words),
        encoders=tuple((name, len(part.labels)) for name, part in parts),
    )


def _best(place: range, known: Sequence[range]) -> int | None:
    """Returns which of the known places shares the most letters with this one, if any does."""
    shared = [min(place.stop, each.stop) - max(place.start, each.start) for each in known]
    best = max(range(len(known)), key=shared.__getitem__, default=None)
    return best if best is not None and shared[best] > 0 else None


def _letters(text: str) -> str:
    return "".join(text.lower().split())


def _sequence_length(pipeline: Any) -> int | None:
    found = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    return found.default if found is not None and isinstance(found.default, int) else None
