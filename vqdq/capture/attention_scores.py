"""Scores of an attention layer, from the queries and keys that it just made.

Pure functions: what a diffusers attention layer computes between its projections and its softmax,
in float32. Joint attention is cut into blocks of heads, for all scores of a large picture at once
would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

import torch
from torch import Tensor, nn

from vqdq.capture.rounded_scores import rounded_inputs

BLOCK = 1 << 24
"""Scores that exist at once, of joint attention."""

Rotary = tuple[Tensor, Tensor]


def scores(attention: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the softmax scores of a diffusers `Attention`, in float32, before they are rounded.

    Shape: [batch, heads, queries, tokens].

    Args:
        q, k: what `to_q` and `to_k` gave, [batch, queries or tokens, heads * head_dim].
        mask: additive, as the attention layer was given it.
    """
    layer = cast(Any, attention)
    query, key = _by_head(layer, q, layer.norm_q), _by_head(layer, k, layer.norm_k)
    query, key = rounded_inputs(attention, query, key)
    logits = query.float() @ key.float().transpose(-1, -2) * layer.scale
    if mask is not None:
        ready = layer.prepare_attention_mask(mask, key.shape[2], query.shape[0])
        logits = logits + ready.view(query.shape[0], layer.heads, -1, key.shape[2]).float()
    return logits.softmax(dim=-1)


def joint_scores(
    attention: nn.Module,
    q: Tensor,
    k: Tensor,
    text: Tensor,
    *,
    rotary: Rotary | None = None,
    mask: Tensor | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yields how places of the picture look at the text and at the picture, some heads at a time.

    The softmax is over both: [batch, some heads, places, tokens] and [..., places] together sum
    to 1.

    Args:
        q, k: of the picture, as `to_q` and `to_k` gave them, [batch, places, heads * head_dim].
        text: keys of the text, [batch, tokens, heads * head_dim].
        rotary: cosines and sines of the text's positions, then of the picture's, [tokens + places,
            head_dim].
        mask: of the keys, text first, as `scaled_dot_product_attention` takes it.
    """
    layer = cast(Any, attention)
    tokens = text.shape[1]
    added = getattr(layer, "norm_added_k", layer.norm_k)
    query = _by_head(layer, q, layer.norm_q)
    keys = torch.cat([_by_head(layer, text, added), _by_head(layer, k, layer.norm_k)], dim=2)
    if rotary is not None:
        cosine, sine = rotary
        query = _rotated(query, cosine[tokens:], sine[tokens:])
        keys = _rotated(keys, cosine, sine)
    query, keys = query.float(), keys.float()
    batch, heads, places, width = query.shape
    size = max(1, BLOCK // (batch * places * keys.shape[2]))
    for first in range(0, heads, size):
        part = slice(first, first + size)
        logits = query[:, part] @ keys[:, part].transpose(-1, -2) * width**-0.5
        found = _masked(logits, mask, tokens).softmax(dim=-1)
        yield found[..., :tokens], found[..., tokens:]


def _by_head(layer: Any, x: Tensor, norm: nn.Module | None) -> Tensor:
    """[batch, heads, tokens, head_dim], normalised as the layer does it."""
    cut = x.detach().unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    return cut if norm is None else norm(cut)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates neighbouring pairs of numbers by a position's angles (RoPE, arXiv 2104.09864)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x.float() * cosine + turned * sine).to(x.dtype)


def _masked(logits: Tensor, mask: Tensor | None, tokens: int) -> Tensor:
    if mask is None:
        return logits
    mask = mask if mask.shape[-2] == 1 else mask[..., tokens:, :]  # queries of the picture
    if mask.dtype == torch.bool:
        return logits.masked_fill(~mask, -torch.inf)
    return logits + mask.float()
