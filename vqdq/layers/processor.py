"""Attention with rounded scores, q, k and v, in the place of a model's own attention processor.

A processor is called by its attention layer and calls `to_q`, `to_k`, `to_v` and `to_out` as the
original does, so packed layers, adapters and hooks on them keep working. Everything but the rounded
parts is the original's arithmetic, in float32: there is no integer product of logarithmic codes
here. Each sample is computed by itself, in blocks, so that nothing depends on what else is in the
batch, and the scores of all heads never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional

from vqdq.activations import Grid, Site, create
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ActivationQuantizer, fake_quantize
from vqdq.errors import UserError
from vqdq.layers.inputs import NoiseLevel
from vqdq.layers.score_blocks import attended, not_finite
from vqdq.tensors import uncast

Part = Literal["q", "k", "v"]
PARTS: tuple[Part, ...] = ("q", "k", "v")
SCALED_BY_LAYER = ("AttnProcessor", "SlicedAttnProcessor")
SUPPORTED = ("AttnProcessor2_0", *SCALED_BY_LAYER)
"""Processors of one stream of queries and one of keys, whose arithmetic is repeated here."""

See = Callable[[str, torch.Tensor], None]


class AttentionQuantizer(nn.Module):
    """How one attention layer is quantized; a child of it, `<attention>.quantizer`.

    What its quantizer stores for q, k and v are its buffers `q_<name>` …; no cast touches them.

    Attributes:
        params, level, where: the settings, the denoiser's noise level, the layer's name.
        cross: the layer reads the text.
        enabled: False hands every call to the original processor; nothing is loaded again.
        see: is shown q, k and v as they would be rounded, [batch * heads, tokens, head_dim], with
            their site's name; nothing is rounded then.
    """

    def __init__(
        self, params: AttentionParams, level: NoiseLevel, *, where: str, cross: bool
    ) -> None:
        super().__init__()
        self.params = params
        self.level = level
        self.where = where
        self.cross = cross
        self.enabled = True
        self.see: See | None = None
        self.quantizer = qkv_quantizer(params)
        self._sites: dict[str, Site] = {}
        self._grids: dict[tuple[Any, ...], Grid] = {}

    def hold_(self, sites: Mapping[str, Site], stored: Mapping[str, torch.Tensor]) -> None:
        """Takes the sites "q", "k" and "v" and their tensors, `q_<name>` …, not copied."""
        self._sites = dict(sites)
        for name, tensor in stored.items():
            self.register_buffer(name, tensor)
        self._grids.clear()

    def start_row(self, part: Part) -> bool:
        """Whether the start token's row of k or v stays as it is."""
        return start_row(self.params, part, cross=self.cross)

    def rounded(self, part: Part, x: torch.Tensor, *, cross: bool) -> torch.Tensor:
        """Returns q, k or v [batch, heads, tokens, head_dim] rounded, float32."""
        if self.quantizer is None and self.see is None:
            return x.float()
        apart = cross and self.start_row(part)
        words = x[:, :, 1:] if apart else x
        rows = words.flatten(0, 1).float()
        if self.see is not None:
            self.see(f"{self.where}.{part}", rows)
            return x.float()
        assert self.quantizer is not None
        if not rows.shape[1]:
            return x.float()
        known = fake_quantize(rows, self._grid(part, rows)).view(words.shape)
        return torch.cat((x[:, :, :1].float(), known), dim=2) if apart else known

    def release(self) -> None:
        """Forgets the grids that were made of the stored tensors."""
        self._grids.clear()

    def _grid(self, part: Part, rows: torch.Tensor) -> Grid:
        quantizer = self.quantizer
        assert quantizer is not None
        key = (part, self.level.timestep, rows.shape[1], rows.device)
        found = self._grids.get(key)
        if found is not None:
            return found
        site = self._sites.get(part, Site(channels=rows.shape[2], positions=rows.shape[1]))
        names = {spec.name: f"{part}_{spec.name}" for spec in quantizer.layout(site)}
        stored = {name: self.get_buffer(buffer) for name, buffer in names.items()}
        where = f"{self.where}.{part}"
        try:
            grid = quantizer.grid(rows, stored, site, self.level.timestep)
        except UserError as error:
            raise UserError(error.what, where=where, remedy=error.remedy) from error
        if not bool(torch.isfinite(grid.scale).all()):
            raise not_finite(where)
        if quantizer.calibrated:
            if len(self._grids) >= _KEPT_GRIDS:
                self._grids.clear()
            self._grids[key] = grid
        return grid

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        del recurse
        for name, tensor in self._buffers.items():
            if tensor is not None:
                self._buffers[name] = uncast(tensor, fn)
        self.release()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.release()


_KEPT_GRIDS = 192  # 64 noise levels of q, k and v


class QuantizedAttention:
    """The processor: the arithmetic of the original, with what `quantizer` rounds in between.

    Attributes:
        quantizer: what and how; `original`: the processor whose place it takes.
    """

    def __init__(self, quantizer: AttentionQuantizer, original: Any) -> None:
        self.quantizer = quantizer
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns the attention layer's output, of the shape of `hidden_states`."""
        if not (self.quantizer.enabled or self.quantizer.see):
            return self.original(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # [batch, pixels, channels]
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        text = encoder_hidden_states
        if text is not None and attn.norm_cross is not None:
            text = attn.norm_encoder_hidden_states(text)
        read = hidden_states if text is None else text
        out = self._mixed(attn, hidden_states, read, attention_mask, cross=text is not None)
        out = attn.to_out[1](attn.to_out[0](out))
        if len(shape) == 4:
            out = out.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor

    def _mixed(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        read: torch.Tensor,
        mask: torch.Tensor | None,
        *,
        cross: bool,
    ) -> torch.Tensor:
        """Returns what goes into `to_out`, [batch, queries, heads * head_dim]."""
        by_layer = type(self.original).__name__ in SCALED_BY_LAYER
        query, key, value = (
            side.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for side in (attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read))
        )  # [batch, heads, tokens, head_dim]
        dtype = query.dtype
        if not by_layer:  # the older processors know no norms of q and k
            query = query if attn.norm_q is None else attn.norm_q(query)
            key = key if attn.norm_k is None else attn.norm_k(key)
        if mask is not None:
            batch, tokens = read.shape[:2]
            whole = cast(torch.Tensor, attn.prepare_attention_mask(mask, tokens, batch))
            mask = whole.view(batch, attn.heads, -1, whole.shape[-1])
        scale = attn.scale if by_layer else query.shape[-1] ** -0.5
        sides = (query, key, value)
        if torch.is_grad_enabled() and any(side.requires_grad for side in sides):
            # Straight through: the gradients are those of attention that rounds nothing.
            plain = _plain(query.float(), key.float(), value.float(), mask, scale)
            with torch.no_grad():
                out = self._attended(sides, mask, scale, cross=cross)
            out = cast(torch.Tensor, _StraightThrough.apply(plain, out))
        else:
            out = self._attended(sides, mask, scale, cross=cross)
        return out.transpose(1, 2).flatten(2).to(dtype)

    def _attended(
        self,
        sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        scale: float,
        *,
        cross: bool,
    ) -> torch.Tensor:
        """Returns what rounded q, k, v and scores make, [batch, heads, queries, head_dim]."""
        quantizer, params = self.quantizer, self.quantizer.params
        query = quantizer.rounded("q", sides[0], cross=cross)
        key = quantizer.rounded("k", sides[1], cross=cross)
        value = quantizer.rounded("v", sides[2], cross=cross)
        if params.scores == "off" or quantizer.see is not None:
            return _plain(query, key, value, mask, scale)
        apart = cross and params.start_apart
        return attended(
            query * scale, key, value, mask, params, start_apart=apart, where=quantizer.where
        )


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Returns attention with scores as they are."""
    bias = mask if mask is None or mask.dtype == torch.bool else mask.float()
    return functional.scaled_dot_product_attention(query, key, value, bias, scale=scale)


class _StraightThrough(torch.autograd.Function):
    """What was rounded forward, the gradient of what was not backward."""

    @staticmethod
    def forward(ctx: Any, plain: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """Returns `rounded`, in the graph of `plain`."""
        del ctx, plain
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the gradient for `plain`."""
        del ctx
        return gradient, None


def qkv_quantizer(params: AttentionParams) -> ActivationQuantizer[Any] | None:
    """Returns the quantizer of q, k and v, or None: they stay in 16 bits."""
    if params.qkv_bits == 16:
        return None
    if params.qkv_method == "dynamic":
        return create("dynamic", bits=params.qkv_bits)
    return create(
        params.qkv_method,
        bits=params.qkv_bits,
        groups=params.qkv_groups,
        paper_exact=params.paper_exact,
    )


def start_row(params: AttentionParams, part: Part, *, cross: bool) -> bool:
    """Whether the start token's row is apart: of k and v in cross-attention; as published, of k."""
    kept = ("k",) if params.paper_exact else ("k", "v")
    return cross and params.start_apart and part in kept
