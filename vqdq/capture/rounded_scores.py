"""Attention scores as a model uses them: rounded where its attention is quantized."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vqdq.activations.scores import fake_scores, merged, score_levels, spread
from vqdq.layers.processor import AttentionQuantizer


def quantizer_of(attention: nn.Module) -> AttentionQuantizer | None:
    """Returns the quantizer that an attention layer computes with at this moment, if any."""
    found = getattr(attention, "quantizer", None)
    return found if isinstance(found, AttentionQuantizer) and found.enabled else None


def rounded_inputs(attention: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Returns q and k [batch, heads, tokens, head_dim] as the layer rounds them."""
    quantizer = quantizer_of(attention)
    if quantizer is None:
        return query, key
    cross = bool(cast(Any, attention).is_cross_attention)
    return (
        quantizer.rounded("q", query, cross=cross),
        quantizer.rounded("k", key, cross=cross),
    )


def rounded_scores(attention: nn.Module, scores: Tensor) -> Tensor:
    """Returns scores [batch, heads, queries, keys] as the layer rounds them; else as they are."""
    quantizer = quantizer_of(attention)
    if quantizer is None or quantizer.params.scores == "off":
        return scores
    params = quantizer.params
    apart = bool(cast(Any, attention).is_cross_attention) and params.start_apart
    found = [spread(sample, start_apart=apart) for sample in scores]
    if params.paper_exact:
        found = [merged(found)] * len(found)
    levels = [score_levels(each, params.scheme, params.bits) for each in found]
    rounded = [
        fake_scores(sample, each, start_apart=apart, keep_sums=params.keeps_sums)
        for sample, each in zip(scores, levels, strict=True)
    ]
    return torch.stack(rounded)
