"""Products of 8-bit codes: what a layer with a quantized input computes, and in which arithmetic.

y = Σ_g s_g (X_g − z_g) Ŵ_gᵀ over the groups g of channels that share a scale; a scale of the row
stands outside of the sum, one of the channel cannot. The float path below is the definition.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import functional

from vqdq import codecs, kernels
from vqdq.activations.base import Grid, dequantize, quantize
from vqdq.codecs import rotation
from vqdq.codecs.base import EightBit
from vqdq.layers.matrix import from_matrix

if TYPE_CHECKING:
    from vqdq.layers.inputs import LayerInput
    from vqdq.layers.quantized import QuantizedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a layer is computed on this machine.

    Attributes:
        kind: "integer": int8 products summed in int32; "simulated": the same codes in float;
            "16-bit": the input is not quantized.
        reason: why it is not integer; "" when it is.
        exact: the 8-bit weight is the stored one, not its rounding to 8 bits a row.
    """

    kind: Literal["integer", "simulated", "16-bit"]
    reason: str = ""
    exact: bool = True


class Weight8:
    """A weight with 8 bits a row, ready for products.

    Attributes:
        stored: levels, scales, basis.
        dense: float32 in the layer's own layout, in the basis of `stored`.
        signs: ±1 for each input channel, float32 [channels]; only with a rotation.
    """

    def __init__(self, stored: EightBit, layer: Any, signs: torch.Tensor) -> None:
        self.stored = stored
        self.signs = signs
        self.dense = from_matrix(stored.levels.float() * stored.scales[:, None], layer)

    @property
    def block(self) -> int:
        """Of the rotation; 0 for none."""
        return self.stored.block


def prepare(layer: QuantizedLayer, block: int) -> Weight8:
    """Returns the 8-bit weight of a layer whose input is rotated in blocks of `block` (0: not)."""
    packed = layer.packed
    taps, channels = packed.shape.taps, packed.shape.channels
    own = codecs.create(packed.codec, packed.params).eight_bit(packed)
    if own is not None and own.block == block and (block == 0 or taps == 1):
        signs = torch.empty(0)
        if block and own.signs is not None:
            signs = rotation.signs(own.signs, channels)
        return Weight8(own, layer, signs)
    matrix = codecs.create(packed.codec, packed.params).decode(packed)
    signs = fixed_signs(channels) if block else torch.empty(0)
    if block:
        matrix = kernels.hadamard(matrix * signs.repeat(taps), block)
    return Weight8(rounded(matrix, block), layer, signs)


def rounded(matrix: torch.Tensor, block: int = 0) -> EightBit:
    """Returns a weight [out, in] rounded to −127 … 127 steps of its rows' largest values."""
    scales = (matrix.abs().amax(1) / 127).clamp_min(1e-12)
    levels = (matrix / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    return EightBit(levels=levels, scales=scales, exact=False, block=block)


def fixed_signs(channels: int) -> torch.Tensor:
    """Returns the ±1 of a rotation that nothing stores: the bits of SHA-256, float32 [channels]."""
    stream = b"".join(
        hashlib.sha256(f"vqdq input signs {part}".encode()).digest()
        for part in range(-(-channels // 256))
    )
    bits = kernels.unpack_bits(torch.frombuffer(bytearray(stream), dtype=torch.uint8), 1, channels)
    return 1.0 - 2.0 * bits.float()


def rotated(rows: torch.Tensor, weight: Weight8) -> torch.Tensor:
    """Returns rows [batch, positions, channels] in the basis of the weight."""
    flat = (rows * weight.signs).reshape(-1, rows.shape[-1]).contiguous()
    return kernels.hadamard(flat, weight.block).reshape(rows.shape)


def how(layer: QuantizedLayer, given: LayerInput) -> Execution:
    """Returns how a layer is computed on this machine."""
    del layer
    if not given.enabled:
        return Execution(kind="16-bit", reason="activations are switched off")
    return Execution(kind="simulated", reason="no integer kernel yet", exact=False)


def linear(
    weight: Weight8, rows: torch.Tensor, grid: Grid, bias: torch.Tensor | None
) -> torch.Tensor:
    """Returns the output [batch, positions, out] of float32 rows [batch, positions, in]."""
    known = dequantize(quantize(rows, grid), grid)
    return functional.linear(known, weight.dense, None if bias is None else bias.float())


def convolution(weight: Weight8, layer: Any, maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the convolution of float32 [batch, channels, height, width]."""
    rows = maps.flatten(2).transpose(1, 2)
    known = dequantize(quantize(rows, grid), grid).transpose(1, 2).reshape(maps.shape)
    bias = None if layer.bias is None else layer.bias.float()
    return nn.Conv2d._conv_forward(layer, known, weight.dense, bias)  # pyright: ignore[reportPrivateUsage]
