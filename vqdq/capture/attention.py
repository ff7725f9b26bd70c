"""Where each word of the prompt is looked at: scores of the picture on the text, by layer and head.

The scores are computed a second time from the queries and keys that the model's own attention just
made, watched by hooks on its projections. No processor is replaced: whatever computes attention
(SDPA, a quantized processor, a user's own) keeps running and the picture stays the same bit for
bit. Scores are summed up at once; memory depends on the prompt's words, not on the number of heads,
positions or pictures.

A U-Net reads its text in cross-attention layers. In joint attention (SD3, FLUX) text and picture
are one sequence: what is recorded there is how the picture's places look at the text, and what is
left of their scores is for the picture itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vqdq.capture.attention_scores import joint_scores, scores
from vqdq.capture.attention_sums import AttentionRecorder
from vqdq.capture.rounded_scores import rounded_scores
from vqdq.capture.self_attention import some_queries
from vqdq.capture.tokens import PromptTokens
from vqdq.errors import UserError

Kind = Literal["cross", "joint", "single", "self"]
_JOINT = ("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0", "FluxAttnProcessor")
_HOOKED = {"cross": "qk", "self": "qk", "joint": "qkt", "single": "qk"}


def cross_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the attention layers that only read the text, as registered."""
    return tuple(name for name, module in denoiser.named_modules() if _kind(module) == "cross")


def joint_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the layers in which text and picture attend to both, as registered.

    Those of SD3 and FLUX and what shares their processors; others combine their streams in ways
    that are not known here.
    """
    kinds = ("joint", "single")
    return tuple(name for name, module in denoiser.named_modules() if _kind(module) in kinds)


def text_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the attention layers in which the picture looks at the text."""
    return cross_attentions(denoiser) or joint_attentions(denoiser)


def self_attentions(denoiser: nn.Module) -> tuple[str, ...]:
    """Returns the names of the attention layers in which the picture looks at itself alone."""
    return tuple(name for name, module in denoiser.named_modules() if _kind(module) == "self")


def _kind(module: nn.Module) -> Kind | None:
    if not all(hasattr(module, part) for part in ("to_q", "to_k", "heads")):
        return None
    if type(getattr(module, "processor", None)).__name__ in _JOINT:
        if getattr(module, "add_k_proj", None) is not None:
            return "joint"
        # FLUX has blocks of one stream, text first; the second attention of SD3.5 is the picture's.
        return "self" if hasattr(module, "is_cross_attention") else "single"
    crosses = getattr(module, "is_cross_attention", None)
    if crosses is None or not hasattr(module, "scale"):
        return None
    if crosses:
        return "cross"
    return "self" if getattr(module, "add_k_proj", None) is None else None


@contextlib.contextmanager
def record_attention(
    denoiser: nn.Module,
    tokens: PromptTokens | None,
    *,
    negative: PromptTokens | None = None,
    layers: Collection[str] | None = None,
    self_attention: bool = True,
    guided: bool | None = None,
    context: Mapping[str, str | int | float] | None = None,
) -> Generator[AttentionRecorder, None, None]:
    """Yields a recorder of how `denoiser` looks at its text, until the block ends.

    Args:
        denoiser: a diffusers model whose attention layers have `to_q` and `to_k`.
        tokens: the prompt (`tokens.tokenize`, `prompts.prompt_tokens`); None when the columns of
            the text cannot be told apart: then all of them are one group without words.
        negative: the unconditional prompt, given exactly when the batch holds both halves
            (guidance > 1) and `tokens` are given.
        layers: names of attention layers; None for all that read the text.
        self_attention: record how the picture looks at itself, too; about 5 % of a small model's
            time, less of a large one's.
        guided: the batch holds both halves; needed only without `tokens`.
        context: what to remember with the record.

    Raises:
        UserError: a layer that is no cross- or joint attention of this model.
    """
    known = text_attentions(denoiser)
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
    recorder = AttentionRecorder(
        tokens=tokens,
        negative=negative,
        guided=negative is not None if guided is None else guided,
        context=context or {},
    )
    modules = dict(denoiser.named_modules())
    with contextlib.ExitStack() as stack:
        stack.callback(recorder.clock.attach(denoiser).remove)
        for name in (*chosen, *(self_attentions(denoiser) if self_attention else ())):
            watch = _Watch(recorder, name, modules[name], self_attention=self_attention)
            for handle in watch.attach():
                stack.callback(handle.remove)
        yield recorder


class _Watch:
    """Hooks of one attention layer: remember q and k during a call, hand on the scores after it."""

    def __init__(
        self, recorder: AttentionRecorder, name: str, layer: nn.Module, *, self_attention: bool
    ) -> None:
        self._recorder = recorder
        self._name = name
        self._layer = layer
        self._kind = cast(Kind, _kind(layer))
        self._self = self_attention
        self._seen: dict[str, Tensor] = {}
        self._given: Mapping[str, Any] = {}

    def attach(self) -> list[RemovableHandle]:
        """Returns the handles of the hooks."""
        layer = cast(Any, self._layer)
        names = {"q": "to_q", "k": "to_k", "t": "add_k_proj"}
        parts = {key: getattr(layer, names[key]) for key in _HOOKED[self._kind]}
        return [
            layer.register_forward_pre_hook(self._before, with_kwargs=True),
            *(part.register_forward_hook(self._keep(key)) for key, part in parts.items()),
            layer.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _keep(self, key: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            self._seen[key] = output

        return hook

    def _before(self, _m: nn.Module, _args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._seen.clear()
        self._given = kwargs

    def _after(
        self, _m: nn.Module, _args: tuple[Any, ...], _kwargs: Mapping[str, Any], _out: Any
    ) -> None:
        seen, given = dict(self._seen), self._given
        self._seen.clear()
        self._given = {}
        if seen.keys() != set(_HOOKED[self._kind]):
            if self._kind == "self":
                return  # fused with the values: left out, its words are not at stake
            raise UserError(
                "The queries and keys of this layer are not computed by its to_q and to_k.",
                where=self._name,
                remedy="Call unfuse_qkv_projections() on the model before the capture.",
            )
        mask = given.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) else None
        q, k = seen["q"], seen["k"]
        if q.ndim != 3 or k.ndim != 3:
            return
        if self._kind == "cross":
            found = scores(self._layer, q, k, mask)
            used = rounded_scores(self._layer, found)
            self._recorder.see(self._name, iter([(found, used)]), q.shape[1])
        elif self._kind != "self":
            self._after_joint(seen, given, mask)
        elif mask is None:
            found = scores(self._layer, some_queries(q), k)
            self._recorder.see_self(self._name, found, rounded_scores(self._layer, found))

    def _after_joint(
        self, seen: Mapping[str, Tensor], given: Mapping[str, Any], mask: Tensor | None
    ) -> None:
        q, k, text = seen["q"], seen["k"], seen.get("t")
        if text is None:  # one stream, text first
            count = self._recorder.clock.text_length
            q, k, text = q[:, count:], k[:, count:], k[:, :count]
        pictures: list[Tensor] = []

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            rotary = given.get("image_rotary_emb")
            for read, looked in joint_scores(self._layer, q, k, text, rotary=rotary, mask=mask):
                if self._self:
                    pictures.append(some_queries(looked, dim=2))
                yield read, read

        self._recorder.see(self._name, blocks(), q.shape[1])
        if pictures:
            found = torch.cat(pictures, dim=1)
            self._recorder.see_self(self._name, found, found)
