"""Keys and values of the text, computed once per prompt instead of once per step.

In a UNet the text that cross-attention reads is one tensor for the whole drawing, so what `to_k`
and `to_v` make of it stays the same. A layer that `keep_text_` named keeps its last output and
gives it again for the very same tensor, unchanged. Models that make a new tensor of the text at
each step (a projection inside the denoiser) are computed as before.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqdq.layers.attention import attentions
from vqdq.layers.inputs import NoiseLevel

if TYPE_CHECKING:
    from vqdq.layers.quantized import QuantizedLinear

Facts = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """An output, and what it was made of.

    Attributes:
        text: the input, held weakly; `facts`: what else the output depends on.
        output: with its version, for who received it may have written into it.
    """

    text: weakref.ref[torch.Tensor]
    facts: Facts
    output: torch.Tensor
    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """What the caches of a denoiser did.

    Attributes:
        computed, served: calls that were computed, and that were answered from what was kept.
        kept_bytes: of the outputs kept now.
    """

    computed: int
    served: int
    kept_bytes: int


class TextCache:
    """The last output of one layer. It is dropped with its text, or when another text comes.

    Nothing is kept while gradients are recorded, in inference mode or while compiling. A write into
    the text bumps its version and is seen; a write through `.data` or numpy is not.

    Attributes:
        computed, served: calls so far.
    """

    def __init__(self) -> None:
        self.computed = 0
        self.served = 0
        self._kept: Kept | None = None

    def output(self, layer: QuantizedLinear, text: torch.Tensor) -> torch.Tensor:
        """Returns `layer.product(text)`, computed or kept."""
        if not _can_be_kept(text):
            self.clear()
            self.computed += 1
            return layer.product(text)
        facts, kept = _facts(layer, text), self._kept
        if (
            kept is not None
            and kept.text() is text
            and kept.facts == facts
            and kept.output._version == kept.version  # pyright: ignore[reportPrivateUsage]
        ):
            self.served += 1
            return kept.output
        self.clear()  # before the next one is made: never two at once
        found = layer.product(text)
        self.computed += 1
        cache = weakref.ref(self)

        def forget(_text: weakref.ref[torch.Tensor]) -> None:
            owner = cache()
            if owner is not None:
                owner.clear()

        self._kept = Kept(
            text=weakref.ref(text, forget),
            facts=facts,
            output=found,
            version=found._version,  # pyright: ignore[reportPrivateUsage]
        )
        return found

    def clear(self) -> None:
        """Drops the output."""
        self._kept = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the output that is kept."""
        kept = self._kept
        return 0 if kept is None else kept.output.nbytes

    def __deepcopy__(self, memo: dict[int, Any]) -> TextCache:
        del memo
        return TextCache()

    def __reduce__(self) -> tuple[type[TextCache], tuple[()]]:
        return TextCache, ()


def keep_text_(denoiser: nn.Module) -> tuple[str, ...]:
    """Lets packed `to_k` and `to_v` of cross-attention keep their outputs; returns their names.

    The text does not change with the noise, so neither do the ranges of these layers' inputs: they
    are read at one noise level from now on (the lowest), or the outputs could not stay.
    """
    names: list[str] = []
    for name, attention in attentions(denoiser).items():
        if not getattr(attention, "is_cross_attention", False):
            continue
        for part in ("to_k", "to_v"):
            layer = _packed(getattr(attention, part))
            if layer is None:
                continue
            layer.text_cache = TextCache()
            if layer.input is not None:
                layer.input.level = NoiseLevel()
                layer.input.level.timestep = 0.0
            names.append(f"{name}.{part}")
    return tuple(names)


def text_savings(denoiser: nn.Module) -> Savings:
    """Returns what was computed and what was kept, over all layers."""
    caches = [cache for cache in map(_cache, denoiser.modules()) if cache is not None]
    return Savings(
        computed=sum(cache.computed for cache in caches),
        served=sum(cache.served for cache in caches),
        kept_bytes=sum(cache.kept_bytes for cache in caches),
    )


def _cache(module: nn.Module) -> TextCache | None:
    found = getattr(module, "text_cache", None)
    return found if isinstance(found, TextCache) else None


def _packed(layer: nn.Module) -> QuantizedLinear | None:
    """Returns the packed layer, also below an adapter; None for a dense one."""
    inner = getattr(layer, "base_layer", layer)
    return cast("QuantizedLinear", inner) if hasattr(inner, "text_cache") else None


def _can_be_kept(text: torch.Tensor) -> bool:
    return not (
        torch.is_grad_enabled()
        or torch.is_inference_mode_enabled()
        or torch.compiler.is_compiling()
        or text.is_inference()
        or text.is_meta
    )


def _facts(layer: QuantizedLinear, text: torch.Tensor) -> Facts:
    """Returns what the output depends on beside the packed weight, whose owner calls `clear`."""
    kind = text.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    given = layer.input
    rounding = None
    if given is not None and given.enabled:
        rounding = (id(given), given.level.timestep if given.quantizer.calibrated else None)
    bias = layer.bias
    known = bias is not None and not bias.is_inference()  # pyright: ignore[reportUnnecessaryComparison]
    return (
        text._version,  # pyright: ignore[reportPrivateUsage]
        text.data_ptr(),
        text.dtype,
        text.device,
        tuple(text.shape),
        autocast,
        rounding,
        id(bias),
        bias._version if known else None,  # pyright: ignore[reportPrivateUsage]
    )
