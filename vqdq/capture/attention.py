"""Where each word of the prompt is looked at: cross-attention scores by layer, head and token.

The scores are computed a second time from the queries and keys that the model's own attention just
made, watched by hooks on `to_q` and `to_k`. No processor is replaced: whatever computes attention
(SDPA, a quantized processor, a user's own) keeps running and the picture stays the same bit for
bit. Scores are summed up at once; memory depends on the prompt's words, not on the number of heads,
positions or pictures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vqdq.capture.attention_record import SCORE_BINS, AttentionRecord, Floats
from vqdq.capture.rounded_scores import rounded_inputs, rounded_scores
from vqdq.capture.self_attention import (
    Mean,
    SelfAttention,
    add_spread,
    score_counts,
    some_queries,
)
from vqdq.capture.steps import StepClock
from vqdq.capture.tokens import GROUPS, PromptTokens
from vqdq.errors import UserError

MAX_GRID = 64
"""Maps that average over layers have at most this many rows and columns."""


def cross_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the attention layers that read the text, as registered."""
    return tuple(
        name
        for name, module in denoiser.named_modules()
        if getattr(module, "is_cross_attention", False)
        and all(hasattr(module, part) for part in ("to_q", "to_k", "heads", "scale"))
    )


def self_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the attention layers in which the picture looks at itself."""
    return tuple(
        name
        for name, module in denoiser.named_modules()
        if getattr(module, "is_cross_attention", True) is False
        and all(hasattr(module, part) for part in ("to_q", "to_k", "heads", "scale"))
        and getattr(module, "add_k_proj", None) is None
    )


def scores(attention: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the softmax scores of a diffusers `Attention`, in float32, before they are rounded.

    Shape: [batch, heads, queries, tokens].

    Args:
        q, k: what `to_q` and `to_k` gave, [batch, queries or tokens, heads * head_dim].
        mask: additive, as the attention layer was given it.
    """
    layer = cast(Any, attention)

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    query, key = by_head(q.detach()), by_head(k.detach())
    query = query if layer.norm_q is None else layer.norm_q(query)
    key = key if layer.norm_k is None else layer.norm_k(key)
    query, key = rounded_inputs(attention, query, key)
    logits = query.float() @ key.float().transpose(-1, -2) * layer.scale
    if mask is not None:
        ready = layer.prepare_attention_mask(mask, key.shape[2], query.shape[0])
        logits = logits + ready.view(query.shape[0], layer.heads, -1, key.shape[2]).float()
    return logits.softmax(dim=-1)


class AttentionRecorder:
    """Collects while its `record_attention` block runs; `result()` gives the record so far."""

    def __init__(
        self,
        *,
        tokens: PromptTokens,
        negative: PromptTokens | None,
        context: Mapping[str, str | int | float],
    ) -> None:
        self.clock = StepClock(guided=negative is not None)
        self._tokens = (tokens,) if negative is None else (negative, tokens)
        self._context = dict(context)
        self._mapped = tuple(at for at, label in enumerate(tokens.labels) if label != "<pad>")
        self._grids: dict[str, tuple[int, int] | None] = {}  # in the order of the first call
        self._mass: dict[tuple[int, str, int], Mean] = {}
        self._histogram: dict[tuple[int, str, int], Floats] = {}
        self._spread: dict[tuple[int, str, int], tuple[float, Mean]] = {}
        self._samples = 0
        self._self = SelfAttention(self.clock)
        self._layer_maps: dict[str, Mean] = {}
        self._step_maps: dict[int, Mean] = {}

    def see_self(self, name: str, found: Tensor, used: Tensor, keys: int) -> None:
        """Adds scores of some queries of a self-attention, before and after they are rounded."""
        self._self.add(name, found, used, keys)

    def see(self, name: str, found: Tensor, used: Tensor) -> None:
        """Adds the scores of one call of the layer `name`, [batch, heads, queries, tokens].

        Args:
            found: as the softmax gives them; `used`: as the layer rounds them.
        """
        if found.shape[-1] != len(self._tokens[-1].labels):
            raise UserError(
                f"The layer reads {found.shape[-1]} tokens, the prompt has "
                f"{len(self._tokens[-1].labels)}.",
                where=name,
                remedy="Pass the tokens of this pipeline's own tokenizer.",
            )
        step = max(self.clock.step, 0)
        self._grids.setdefault(name, self.clock.grid(found.shape[2]))
        parts = zip(self.clock.split(found), self.clock.split(used), strict=True)
        for half, (exact, part) in enumerate(parts):
            key = (half, name, step)
            samples = part.shape[0]
            mass = self._mass.setdefault(key, Mean())
            mass.add(part.mean(dim=(0, 2)), samples)
            add_spread(self._spread, key, exact[..., 1:])
            counts = _histogram(part, self._tokens[half])
            self._histogram[key] = self._histogram.get(key, 0) + counts
            if half == len(self._tokens) - 1:
                first = step == 0 and name == next(iter(self._grids))
                self._samples += samples if first else 0
                self._add_maps(name, step, part, samples)

    def _add_maps(self, name: str, step: int, part: Tensor, samples: int) -> None:
        grid = self._grids[name]
        if grid is None:
            return
        chosen = part.mean(dim=(0, 1))[:, list(self._mapped)]  # [queries, mapped]
        maps = chosen.T.reshape(len(self._mapped), *grid)
        self._layer_maps.setdefault(name, Mean()).add(maps, samples)
        size = self.clock.latent_grid or grid
        shrink = max(1, -(-max(size) // MAX_GRID))
        common = (-(-size[0] // shrink), -(-size[1] // shrink))
        resized = nn.functional.interpolate(
            maps[None], size=common, mode="bilinear", align_corners=False
        )[0]
        self._step_maps.setdefault(step, Mean()).add(resized, samples)

    def result(self) -> AttentionRecord:
        """Returns everything seen so far, layers in the order they ran.

        Raises:
            UserError: no cross-attention layer ran.
        """
        layers = tuple(self._grids)
        if not layers:
            raise UserError(
                "No cross-attention layer ran.",
                where="attention",
                remedy="Capture while a picture is drawn, with a model that reads its prompt.",
            )
        steps = len(self.clock.timesteps) or 1
        halves = len(self._tokens)
        tokens = len(self._tokens[-1].labels)
        heads = max(mean.value.shape[0] for mean in self._mass.values())
        mass = np.full((halves, len(layers), steps, heads, tokens), np.nan, np.float32)
        histogram = np.zeros((halves, len(layers), steps, len(GROUPS), SCORE_BINS), np.float32)
        spread = np.full((2, halves, len(layers), steps), np.nan, np.float32)
        for (half, name, step), (peak, mean) in self._spread.items():
            spread[:, half, layers.index(name), step] = peak, float(mean.value)
        for (half, name, step), mean in self._mass.items():
            place = (half, layers.index(name), step)
            mass[place][: mean.value.shape[0]] = mean.value
            histogram[place] = self._histogram[half, name, step]
        return AttentionRecord(
            layers=layers,
            halves=self.clock.halves,
            timesteps=tuple(self.clock.timesteps),
            tokens=self._tokens,
            mapped=self._mapped,
            mass=mass,
            histogram=histogram,
            layer_maps={name: mean.value for name, mean in self._layer_maps.items()},
            step_maps=np.stack([self._step_maps[at].value for at in sorted(self._step_maps)])
            if self._step_maps
            else np.zeros((0, len(self._mapped), 1, 1), np.float32),
            spread=spread,
            samples=self._samples,
            self_layers=self._self.layers,
            self_histogram=self._self.histogram(),
            self_spread=self._self.spread(),
            self_maps=self._self.maps(),
            context=self._context,
        )


@contextlib.contextmanager
def record_attention(
    denoiser: nn.Module,
    tokens: PromptTokens,
    *,
    negative: PromptTokens | None = None,
    layers: Collection[str] | None = None,
    context: Mapping[str, str | int | float] | None = None,
) -> Generator[AttentionRecorder, None, None]:
    """Yields a recorder of the cross-attention of `denoiser`, until the block ends.

    Args:
        denoiser: a diffusers model whose attention layers have `to_q` and `to_k`.
        tokens: the prompt (`tokens.tokenize`); `negative`: the unconditional prompt, given exactly
            when the batch holds both halves (guidance > 1).
        layers: names of attention layers; None for all that read the text.
        context: what to remember with the record.

    Raises:
        UserError: a layer that is no cross-attention of this model.
    """
    known = cross_attentions(denoiser)
    chosen = known if layers is None else tuple(layers)
    for name in chosen:
        if name not in known:
            raise UserError(
                "This is no cross-attention layer of the model.",
                where=name,
                remedy=f"It has {len(known)}: {', '.join(known[:4])} …"
                if known
                else "It has none.",
            )
    recorder = AttentionRecorder(tokens=tokens, negative=negative, context=context or {})
    modules = dict(denoiser.named_modules())
    with contextlib.ExitStack() as stack:
        stack.callback(recorder.clock.attach(denoiser).remove)
        for name in (*chosen, *(self_attentions(denoiser) if layers is None else ())):
            for handle in _Watch(recorder, name, modules[name]).attach():
                stack.callback(handle.remove)
        yield recorder


class _Watch:
    """Hooks of one attention layer: remember q and k during a call, hand on the scores after it."""

    def __init__(self, recorder: AttentionRecorder, name: str, layer: nn.Module) -> None:
        self._recorder = recorder
        self._name = name
        self._layer = layer
        self._seen: dict[str, Tensor] = {}
        self._mask: Tensor | None = None

    def attach(self) -> list[RemovableHandle]:
        """Returns the handles of the hooks."""
        to_q, to_k = cast(Any, self._layer).to_q, cast(Any, self._layer).to_k
        return [
            self._layer.register_forward_pre_hook(self._before, with_kwargs=True),
            to_q.register_forward_hook(self._keep("q")),
            to_k.register_forward_hook(self._keep("k")),
            self._layer.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _keep(self, key: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            self._seen[key] = output

        return hook

    def _before(self, _m: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._seen.clear()
        mask = kwargs.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) else None

    def _after(
        self, _m: nn.Module, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], _out: Any
    ) -> None:
        if self._seen.keys() != {"q", "k"}:
            if not cast(Any, self._layer).is_cross_attention:
                return  # fused with the values: left out, its words are not at stake
            raise UserError(
                "The queries and keys of this layer are not computed by its to_q and to_k.",
                where=self._name,
                remedy="Call unfuse_qkv_projections() on the model before the capture.",
            )
        q, k = self._seen["q"], self._seen["k"]
        layer, cross = self._layer, cast(Any, self._layer).is_cross_attention
        if q.ndim == 3 and k.ndim == 3 and cross:
            found = scores(layer, q, k, self._mask)
            self._recorder.see(self._name, found, rounded_scores(layer, found))
        elif q.ndim == 3 and k.ndim == 3 and self._mask is None:
            found = scores(layer, some_queries(q), k)
            used = rounded_scores(layer, found)
            self._recorder.see_self(self._name, found, used, k.shape[1])
        self._seen.clear()
        self._mask = None


def _histogram(found: Tensor, tokens: PromptTokens) -> Floats:
    """Counts of log2 scores by the token's role, [groups, SCORE_BINS]; bin 0 is open below."""
    counts = np.zeros((len(GROUPS), SCORE_BINS), np.float32)
    for index, group in enumerate(GROUPS):
        positions = list(tokens.positions(group))
        if not positions:
            continue
        counts[index] = score_counts(found[..., positions])
    return counts
