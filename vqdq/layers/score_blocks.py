"""softmax(q kᵀ) v with rounded scores, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vqdq.activations.attention import AttentionParams
from vqdq.activations.scores import Spread, fake_scores, merged, score_levels, spread
from vqdq.errors import UserError

MAX_SCORES = 1 << 22
"""Scores of one block: 16 MB in float32, and about four times that while they are rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A part of the scores of one sample."""

    sample: int
    heads: slice
    queries: slice


def blocks(shape: tuple[int, int, int, int], most: int) -> Iterator[Block]:
    """Yields blocks of [batch, heads, queries, keys] with at most `most` scores, one row at least.

    How a sample is cut does not depend on the batch.
    """
    batch, heads, queries, keys = shape
    some_heads = min(heads, max(1, most // max(1, queries * keys)))
    some_queries = queries if some_heads * queries * keys <= most else max(1, most // max(1, keys))
    for sample in range(batch):
        for head in range(0, heads, some_heads):
            for query in range(0, queries, some_queries):
                yield Block(
                    sample=sample,
                    heads=slice(head, head + some_heads),
                    queries=slice(query, query + some_queries),
                )


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    params: AttentionParams,
    *,
    start_apart: bool,
    where: str,
    most: int = MAX_SCORES,
) -> torch.Tensor:
    """Returns Â v with rounded scores Â, float32 [batch, heads, queries, head_dim].

    The scale of a sample is known only after all its scores: they are computed twice where they
    do not fit in one block.

    Args:
        query: scaled, [batch, heads, queries, head_dim]; `key`, `value`: [batch, heads, keys, …].
        mask: added to the logits, or bool (True is read), [batch, heads, 1 or queries, keys].
        start_apart: key 0 is the start token, and its scores are not rounded.

    Raises:
        UserError: scores that are not numbers; `where` is named.
    """
    batch, heads, queries, _ = query.shape
    cut = list(blocks((batch, heads, queries, key.shape[2]), most))

    def scores(block: Block) -> torch.Tensor:
        at, some = block.sample, block.heads
        logits = query[at, some, block.queries] @ key[at, some].transpose(-1, -2)
        if mask is not None:
            rows = block.queries if mask.shape[2] > 1 else slice(None)
            part = mask[at, some, rows]
            if part.dtype == torch.bool:
                logits = logits.masked_fill(~part, -torch.inf)
            else:
                logits = logits + part.float()
        return logits.softmax(-1)  # [heads, queries, keys]

    fits = batch * heads * queries * key.shape[2] <= most
    kept: list[torch.Tensor] = []
    parts: list[list[Spread]] = [[] for _ in range(batch)]
    for block in cut:
        known = scores(block)
        parts[block.sample].append(spread(known, start_apart=start_apart))
        if fits:
            kept.append(known)
    found = [merged(part) for part in parts]
    if not all(math.isfinite(each.peak) for each in found):
        raise not_finite(where)
    if params.paper_exact:
        found = [merged(found)] * batch
    levels = [score_levels(each, params.scheme, params.bits) for each in found]
    out = query.new_empty(*query.shape[:3], value.shape[-1])
    for at, block in enumerate(cut):
        known = kept[at] if fits else scores(block)
        known = fake_scores(
            known, levels[block.sample], start_apart=start_apart, keep_sums=params.keeps_sums
        )
        out[block.sample, block.heads, block.queries] = known @ value[block.sample, block.heads]
    return out


def not_finite(where: str) -> UserError:
    """The error of attention whose values are not numbers."""
    return UserError(
        "its attention is NaN or infinite.",
        where=where,
        remedy="Draw in 32 bits, or look for the layer before it that overflows.",
    )
