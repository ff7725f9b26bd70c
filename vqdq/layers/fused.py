"""Linear layers whose weight is decoded as it is multiplied: few rows, on a card that has a kernel.

Only where the decoded weight would not be kept, and nothing else wants it: no gradient, no cast of
autocast, no smoothing folded into it, no compiler that traces the layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from vqdq.kernels import few_rows

if TYPE_CHECKING:
    from vqdq.codecs.base import Codec
    from vqdq.layers.quantized import QuantizedLinear


def product(layer: QuantizedLinear, codec: Codec[Any], rows: torch.Tensor) -> torch.Tensor | None:
    """Returns rows [..., in] times the packed weight, plus bias, [..., out]; None where the weight
    is to be decoded first.
    """
    if torch.compiler.is_compiling() or layer.residency != "streaming" or layer.offloaded:
        return None
    if not few_rows.takes(rows) or torch.is_autocast_enabled(rows.device.type):
        return None
    if layer.input is not None and layer.input.smooths:
        return None
    bias = cast("torch.Tensor | None", layer.bias)
    learns = rows.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and learns:
        return None
    return codec.product(layer.packed, rows, None if bias is None else bias.detach())
