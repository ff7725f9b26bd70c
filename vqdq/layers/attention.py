"""Quantized attention put into a denoiser, taken out, switched and described.

`attach_attention_` gives each attention layer a child, `<attention>.quantizer`, that holds the
settings and what is stored for q, k and v, and a processor that reads it (`vqdq.layers.processor`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from vqdq.activations import Site
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ActivationQuantizer
from vqdq.errors import UserError
from vqdq.layers.execution import Execution
from vqdq.layers.inputs import NoiseLevel
from vqdq.layers.processor import (
    PARTS,
    SUPPORTED,
    AttentionQuantizer,
    QuantizedAttention,
    See,
    qkv_quantizer,
    start_row,
)
from vqdq.tensors import TensorSpec

CHILD = "quantizer"


def attentions(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Returns every attention layer by name: what has `to_q`, `to_k`, `to_v` and a processor."""
    parts = ("to_q", "to_k", "to_v", "heads", "processor")
    return {
        name: module
        for name, module in denoiser.named_modules()
        if all(hasattr(module, part) for part in parts)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlace:
    """An attention layer as a plan sees it.

    Attributes:
        name: full dotted name; `cross`: it reads the text.
        widths: of one head's q, k and v.
        processor: name of the class that computes it.
    """

    name: str
    cross: bool
    widths: tuple[int, int, int]
    processor: str


def attention_places(denoiser: nn.Module) -> tuple[AttentionPlace, ...]:
    """Returns every attention layer of a denoiser, which may be on the meta device."""
    return tuple(
        AttentionPlace(
            name=name,
            cross=_is_cross(layer),
            widths=cast(Any, tuple(_head_width(layer, part) for part in PARTS)),
            processor=type(_original(layer)).__name__,
        )
        for name, layer in attentions(denoiser).items()
    )


def attention_sites(
    places: Iterable[AttentionPlace],
    params: AttentionParams,
    positions: Mapping[str, int] | None = None,
) -> dict[str, Site]:
    """Returns every place of q, k and v that `params` rounds: "<attention>.q" … -> site.

    Args:
        positions: tokens that a layer reads, by its name ("<attention>.to_q"), where known.

    Raises:
        UserError: a layer whose scores cannot be quantized here.
    """
    known = positions or {}
    found: dict[str, Site] = {}
    for place in places:
        if not (place.cross or params.self_attention):
            continue
        _check(place.name, place.processor)
        if params.qkv_bits == 16:
            continue
        for part, width in zip(PARTS, place.widths, strict=True):
            tokens = known.get(f"{place.name}.to_{part}", 0)
            apart = start_row(params, part, cross=place.cross)
            site = Site(channels=width, positions=max(tokens - apart, 0))
            found[f"{place.name}.{part}"] = site
    return found


def attention_layout(params: AttentionParams, sites: Mapping[str, Site]) -> tuple[TensorSpec, ...]:
    """Returns the tensors stored for sites, with their state-dict keys; () when nothing is."""
    quantizer = qkv_quantizer(params)
    if quantizer is None:
        return ()
    return tuple(
        replace(spec, name=stored_name(site_name, spec.name))
        for site_name, site in sites.items()
        for spec in quantizer.layout(site)
    )


def stored_name(site: str, tensor: str) -> str:
    """Returns the key of a site's tensor: "a.attn1.q", "low" -> "a.attn1.quantizer.q_low"."""
    attention, _, part = site.rpartition(".")
    return f"{attention}.{CHILD}.{part}_{tensor}"


def attach_attention_(
    denoiser: nn.Module,
    params: AttentionParams,
    level: NoiseLevel,
    sites: Mapping[str, Site] | None = None,
    stored: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, AttentionQuantizer]:
    """Puts quantized attention into a denoiser and returns its quantizers by attention layer.

    Args:
        level: follows the denoiser (the one that its layers share).
        sites: of `attention_sites`; only a calibrated method needs them.
        stored: the tensors of `attention_layout` by their names, not copied; they may be on the
            meta device. Nothing for a dynamic method.

    Raises:
        UserError: a layer whose processor is of another kind, or a tensor that is missing.
    """
    layers = _chosen(denoiser, params)
    for name, layer in layers.items():
        _check(name, type(_original(layer)).__name__)
    detach_attention_(denoiser)
    given, places = stored or {}, sites or {}
    found: dict[str, AttentionQuantizer] = {}
    for name, layer in layers.items():
        quantizer = AttentionQuantizer(params, level, where=name, cross=_is_cross(layer))
        own = {part: places[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in places}
        quantizer.hold_(own, _own_tensors(name, quantizer.quantizer, own, given))
        target = cast(Any, layer)
        target.add_module(CHILD, quantizer)
        target.processor = QuantizedAttention(quantizer, target.processor)
        found[name] = quantizer
    return found


def detach_attention_(denoiser: nn.Module) -> None:
    """Puts the original processors back; harmless where nothing was attached."""
    for layer in attentions(denoiser).values():
        target = cast(Any, layer)
        if isinstance(target.processor, QuantizedAttention):
            target.processor = target.processor.original
        if isinstance(getattr(target, CHILD, None), AttentionQuantizer):
            delattr(target, CHILD)


def attention_quantizers(denoiser: nn.Module) -> dict[str, AttentionQuantizer]:
    """Returns the quantizers that are attached, by attention layer."""
    return {
        name.removesuffix(f".{CHILD}"): module
        for name, module in denoiser.named_modules()
        if isinstance(module, AttentionQuantizer)
    }


def switch_attention_(denoiser: nn.Module, *, enabled: bool) -> None:
    """Switches quantized attention on or off; off is the original, bit for bit."""
    for quantizer in attention_quantizers(denoiser).values():
        quantizer.enabled = enabled


@contextmanager
def seen_attention(
    denoiser: nn.Module, params: AttentionParams, see: See
) -> Generator[None, None, None]:
    """Shows q, k and v to `see(site, rows)` at each call; nothing is rounded meanwhile.

    Rows are float32 [batch * heads, tokens, head_dim], without the rows that stay apart: what
    `attention_sites` names and what a calibration measures. What was attached is back afterwards.
    """
    before = {name: layer.processor for name, layer in attentions(denoiser).items()}
    layers = _chosen(denoiser, params)
    for name, layer in layers.items():
        _check(name, type(_original(layer)).__name__)
    try:
        for name, layer in layers.items():
            quantizer = AttentionQuantizer(params, NoiseLevel(), where=name, cross=_is_cross(layer))
            quantizer.see = see
            cast(Any, layer).processor = QuantizedAttention(quantizer, _original(layer))
        yield
    finally:
        for name, layer in attentions(denoiser).items():
            cast(Any, layer).processor = before[name]


def attention_execution(denoiser: nn.Module) -> dict[str, Execution]:
    """Returns how each attention layer with a quantizer is computed."""
    return {
        name: _execution(layer, cast(Any, layer).quantizer)
        for name, layer in attentions(denoiser).items()
        if isinstance(getattr(layer, CHILD, None), AttentionQuantizer)
    }


def _execution(layer: nn.Module, quantizer: AttentionQuantizer) -> Execution:
    if not isinstance(layer.processor, QuantizedAttention):
        kind = type(layer.processor).__name__
        return Execution(kind="16-bit", reason=f"another processor was set: {kind}")
    if not quantizer.enabled:
        return Execution(kind="16-bit", reason="attention is switched off")
    if quantizer.params.scores == "off":
        return Execution(kind="simulated", reason="q, k and v are rounded in float")
    return Execution(kind="simulated", reason="scores are rounded in float: no log-domain product")


def _own_tensors(
    attention: str,
    quantizer: ActivationQuantizer[Any] | None,
    sites: Mapping[str, Site],
    stored: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    if quantizer is None:
        return {}
    if quantizer.calibrated and len(sites) < len(PARTS):
        raise UserError(
            "the ranges of its q, k and v are not known.",
            where=attention,
            remedy='Calibrate, or use the method "dynamic" for q, k and v.',
        )
    found: dict[str, torch.Tensor] = {}
    for part, site in sites.items():
        for spec in quantizer.layout(site):
            key = stored_name(f"{attention}.{part}", spec.name)
            if key not in stored:
                raise UserError(
                    f"its parameters of {part} are missing.",
                    where=attention,
                    remedy="The file is incomplete: copy the folder again.",
                )
            found[f"{part}_{spec.name}"] = stored[key]
    return found


def _chosen(denoiser: nn.Module, params: AttentionParams) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in attentions(denoiser).items()
        if params.self_attention or _is_cross(layer)
    }


def _is_cross(layer: nn.Module) -> bool:
    return bool(getattr(layer, "is_cross_attention", False))


def _original(layer: nn.Module) -> Any:
    processor = cast(Any, layer).processor
    return processor.original if isinstance(processor, QuantizedAttention) else processor


def _head_width(layer: nn.Module, part: str) -> int:
    inner: int = cast(Any, layer).get_submodule(f"to_{part}").out_features
    return inner // cast(Any, layer).heads


def _check(name: str, kind: str) -> None:
    if kind not in SUPPORTED:
        raise UserError(
            f"its attention is computed by {kind}, whose scores cannot be quantized here.",
            where=name,
            remedy="Switch attention quantization off for this model; processors that work: "
            f"{', '.join(SUPPORTED)}.",
        )
