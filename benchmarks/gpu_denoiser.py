"""A denoiser of SDXL's layers from plain torch modules, with random weights, and its packed copies.

The layers and their order are those of the published UNet (2.57 billion weights): for measuring
time and memory where diffusers is not installed. Packed weights have random codes: what decodes
from them has the right size, and the time does not depend on the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vqdq import activations, codecs, packing
from vqdq.activations.base import Site
from vqdq.codecs.base import Packed
from vqdq.layers.inputs import LayerInput, NoiseLevel
from vqdq.layers.matrix import kind_of, weight_shape
from vqdq.layers.quantized import QuantizedLayer, pack


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What makes a denoiser: widths of its levels, transformer blocks of each, text and image."""

    widths: tuple[int, ...] = (320, 640, 1280)
    depths: tuple[int, ...] = (0, 2, 10)
    text: int = 2048
    tokens: int = 77
    latent: int = 128
    head: int = 64


SDXL = Size()
TINY = Size(widths=(16, 32), depths=(0, 1), text=32, tokens=5, latent=4, head=16)


class Residual(nn.Module):
    """Two convolutions with what the time says between them."""

    def __init__(self, given: int, width: int, time: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(16, given), nn.GroupNorm(16, width)
        self.conv1 = nn.Conv2d(given, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(time, width)
        self.shortcut = nn.Conv2d(given, width, 1) if given != width else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Returns a map of the other width."""
        inside = self.conv1(functional.silu(self.norm1(x)))
        inside = inside + self.time(functional.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(inside)))


class Attention(nn.Module):
    """Attention of a width to itself or to the text."""

    def __init__(self, width: int, other: int, head: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(other, width, bias=False)
        self.to_v = nn.Linear(other, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.head = head

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns [batch, tokens, width]."""
        parts = [
            made.unflatten(2, (-1, self.head)).transpose(1, 2)
            for made in (self.to_q(x), self.to_k(other), self.to_v(other))
        ]
        mixed = functional.scaled_dot_product_attention(*parts)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block: attention to itself, to the text, a gated feed-forward part."""

    def __init__(self, width: int, text: int, head: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width, head), Attention(width, text, head)
        self.into, self.out = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Returns [batch, tokens, width]."""
        seen = self.norms[0](x)
        x = x + self.attn1(seen, seen)
        x = x + self.attn2(self.norms[1](x), text)
        value, gate = self.into(self.norms[2](x)).chunk(2, dim=-1)
        return x + self.out(value * functional.gelu(gate))


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a map."""

    def __init__(self, width: int, depth: int, size: Size) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(16, width)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, size.text, size.head) for _ in range(depth))

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Returns a map of the same size."""
        rows = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            rows = block(rows, text)
        return x + self.proj_out(rows).transpose(1, 2).reshape(x.shape)


class Denoiser(nn.Module):
    """The UNet: down, middle, up, with skips."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths, depths = size.widths, size.depths
        time, last = 4 * widths[0], len(widths) - 1
        self.size = size
        self.time = nn.Sequential(nn.Linear(widths[0], time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, widths[0], 3, padding=1)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, given = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(2):
                self.down.append(self._step(given, width, time, depths[level]))
                given = width
                kept.append(width)
            if level < last:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                kept.append(width)
        self.middle = self._step(given, given, time, depths[last])
        self.after = Residual(given, given, time)
        for level in range(last, -1, -1):
            for place in range(3):
                step = self._step(given + kept.pop(), widths[level], time, depths[level])
                self.up.append(step)
                given = widths[level]
                if place == 2 and level:
                    self.up.append(nn.Conv2d(given, given, 3, padding=1))

    def _step(self, given: int, width: int, time: int, depth: int) -> nn.ModuleList:
        parts: list[nn.Module] = [Residual(given, width, time)]
        if depth:
            parts.append(Transformer(width, depth, self.size))
        return nn.ModuleList(parts)

    def forward(self, x: torch.Tensor, steps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Returns the predicted noise of [batch, 4, latent, latent]."""
        half = self.size.widths[0] // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        turned = steps[:, None] * rates[None, :]
        time = self.time(torch.cat((turned.cos(), turned.sin()), 1).to(x.dtype))
        x = self.conv_in(x)
        kept = [x]
        for step in self.down:
            x = step(x) if isinstance(step, nn.Conv2d) else _run(step, x, time, text)
            kept.append(x)
        x = self.after(_run(self.middle, x, time, text), time)
        for step in self.up:
            if isinstance(step, nn.Conv2d):
                x = step(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
            else:
                x = _run(step, torch.cat((x, kept.pop()), 1), time, text)
        return self.conv_out(functional.silu(x))


def _run(parts: Any, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    x = parts[0](x, time)
    return parts[1](x, text) if len(parts) > 1 else x


def inputs(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Returns latents, steps and text for one call with guidance: two pictures."""
    latents = torch.randn(2, 4, size.latent, size.latent, device=device, dtype=dtype)
    text = torch.randn(2, size.tokens, size.text, device=device, dtype=dtype)
    return latents, torch.full((2,), 500.0, device=device), text


def packed_names(model: nn.Module) -> list[str]:
    """Returns the layers that are compressed: all but the first, the last and those of the time."""
    kept = ("conv_in", "conv_out", "time")
    return [
        name
        for name, layer in model.named_modules()
        if kind_of(layer) and name.split(".")[0] not in kept and not name.endswith(".time")
    ]


def random_packed(layer: nn.Module, bits: int, state_bits: int, device: torch.device) -> Packed:
    """Returns a trellis weight of random codes, with rows as large as a layer's usually are."""
    shape = weight_shape(layer)
    settings = {"bits": bits, "state_bits": state_bits}
    params: Any = codecs.get("trellis").settings.from_json(settings, where="trellis")
    tensors = {
        spec.name: torch.randint(0, 256, spec.shape, dtype=torch.uint8, device=device)
        for spec in codecs.create("trellis", params).layout(shape)
        if spec.dtype == torch.uint8
    }
    rest = shape.out_features * bits % 8
    if rest:
        tensors["codes"][-1] &= (1 << rest) - 1
    assert tensors["codes"].shape[0] == packing.packed_bytes(shape.out_features, bits)
    scales = torch.full((shape.out_features,), shape.in_features**-0.5, device=device)
    tensors["scales"] = scales.half()
    return Packed(codec="trellis", params=params, shape=shape, tensors=tensors)


def pack_(
    model: nn.Module, bits: int, state_bits: int, device: torch.device, every: int = 1
) -> int:
    """Replaces the layers of a model (or every n-th) by packed ones and returns their bytes."""
    total = 0
    for name in packed_names(model)[::every]:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        layer = owner.get_submodule(last)
        packed = random_packed(layer, bits, state_bits, device)
        total += packed.storage.total_bytes
        setattr(owner, last, pack(layer, packed, residency="streaming"))
    return total


def round_inputs_(model: nn.Module, method: str) -> None:
    """Rounds the inputs of the packed layers to 8 bits, with the range of each row."""
    level = NoiseLevel()
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer):
            shape = layer.packed.shape
            site = Site(channels=shape.channels, taps=shape.taps)
            quantizer = activations.create(method, bits=8)
            layer.quantize_input_(LayerInput(quantizer, site, level, where=name), {})
            layer.residency = "resident"
