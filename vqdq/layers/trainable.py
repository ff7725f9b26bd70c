"""Quantized layers that learn: row scales, own codebooks and biases; the codes stay as they are.

The weight is decoded once. A row scale multiplies everything that its row puts out, so a factor on
the output stands for it, and its gradient needs no gradient of the weight. Only layers with
codebooks of their own decode again at each step.
"""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

from vqdq.codecs import create
from vqdq.codecs.base import Codec, Packed
from vqdq.layers.inputs import fold_smoothing
from vqdq.layers.matrix import from_matrix, to_matrix
from vqdq.layers.quantized import QuantizedLayer, hollow

CODEBOOKS = "codebooks"


@runtime_checkable
class LearnsCodebooks(Protocol):
    """What a codec offers whose layers may have codebooks of their own."""

    def codebook_gradient(self, packed: Packed, weight_gradient: torch.Tensor) -> torch.Tensor:
        """Returns the gradient by the codebooks from that by the decoded weight [out, in]."""
        ...

    def with_codebooks(self, packed: Packed, learnt: torch.Tensor) -> Packed:
        """Returns `packed` with other codebooks, rounded as they are stored."""
        ...


class TrainableLayer(nn.Module):
    """What both layers share; a plain dense layer until `hold_`.

    Attributes:
        change: float32 [out]; row r is multiplied by 1 + change[r]. None for a codec without row
            scales. (Not the factor itself, so that bfloat16 keeps its small changes.)
        codebooks: float32, the layer's own, or None.
    """

    change: nn.Parameter | None
    codebooks: nn.Parameter | None
    _packed: Packed
    _codec: Codec[Any]
    _smoothing: torch.Tensor | None

    def hold_(
        self,
        packed: Packed,
        dtype: torch.dtype,
        *,
        learn_codebooks: bool,
        smoothing: torch.Tensor | None = None,
    ) -> None:
        """Decodes `packed`; products are computed in `dtype`.

        Args:
            smoothing: what the columns were multiplied by before they were encoded, [channels].
        """
        self._packed = packed
        self._smoothing = smoothing
        self._codec = create(packed.codec, packed.params)
        place = packed.tensors[next(iter(packed.tensors))].device
        weight = from_matrix(self.unsmoothed(self._codec.decode(packed)), self).to(place, dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        rows = torch.zeros(packed.shape.out_features, device=place)
        self.change = nn.Parameter(rows) if self._codec.row_scales else None
        self.codebooks = None
        own = isinstance(self._codec, LearnsCodebooks) and CODEBOOKS in packed.tensors
        if own and learn_codebooks:
            self.codebooks = nn.Parameter(packed.tensors[CODEBOOKS].detach().float().clone())

    def unsmoothed(self, matrix: torch.Tensor) -> torch.Tensor:
        """Returns a matrix [out, in] with each column divided by its smoothing factor."""
        return matrix if self._smoothing is None else fold_smoothing(matrix, self._smoothing)

    def learnt(self) -> Packed:
        """Returns the packed weight with what was learnt, rounded as it is stored."""
        packed = self._packed
        if self.codebooks is not None:
            packed = cast(LearnsCodebooks, self._codec).with_codebooks(packed, self.codebooks.data)
        if self.change is not None:
            packed = self._codec.rescaled(packed, 1 + self.change.detach())
        return packed

    def _effective(self) -> torch.Tensor:
        """Returns the weight without the change of its row scales."""
        weight = self.get_parameter("weight")
        if self.codebooks is None:
            return weight
        made = cast(torch.Tensor, _Decoded.apply(self.codebooks, self))
        return made.to(weight.dtype)

    def _finished(self, output: torch.Tensor, trailing: int) -> torch.Tensor:
        """Returns (1 + change) * output + bias; rows are followed by `trailing` dimensions."""
        shape = (-1, *[1] * trailing)
        exact = output
        if self.change is not None:
            exact = torch.addcmul(output, output, self.change.to(output.dtype).reshape(shape))
        bias = cast("torch.Tensor | None", self._parameters["bias"])
        return exact if bias is None else exact + bias.to(output.dtype).reshape(shape)


class TrainableLinear(TrainableLayer, nn.Linear):
    """y = (1 + change) * (x W₀ᵀ) + bias."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the outputs, [..., out]."""
        return self._finished(functional.linear(input, self._effective()), 0)


class TrainableConv2d(TrainableLayer, nn.Conv2d):
    """y = (1 + change) * conv2d(x, W₀) + bias, a factor for each output channel."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the outputs, [batch, out, height, width]."""
        return self._finished(self._conv_forward(input, self._effective(), None), 2)


class _Decoded(torch.autograd.Function):
    """The decoded weight as a function of its codebooks.

    Decoding rounds codebooks to their storage grid; the gradient passes that rounding unchanged
    (straight-through, arXiv 1308.3432), so what is learnt is what will be stored.
    """

    @staticmethod
    def forward(ctx: Any, codebooks: torch.Tensor, layer: TrainableLayer) -> torch.Tensor:
        codec = layer._codec  # pyright: ignore[reportPrivateUsage]
        origin = layer._packed  # pyright: ignore[reportPrivateUsage]
        packed = cast(LearnsCodebooks, codec).with_codebooks(origin, codebooks)
        ctx.made = codec, packed, layer
        decoded = layer.unsmoothed(codec.decode(packed))
        return from_matrix(decoded.to(codebooks.device), layer)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        codec, packed, layer = ctx.made
        matrix = layer.unsmoothed(to_matrix(grads[0]).float())  # by the chain rule
        gradient = cast(LearnsCodebooks, codec).codebook_gradient(packed, matrix)
        return gradient.to(grads[0].device), None


def trainable(
    layer: QuantizedLayer, dtype: torch.dtype, *, learn_codebooks: bool = True
) -> TrainableLinear | TrainableConv2d:
    """Returns a layer that computes what `layer` does and can learn; nothing is shared."""
    made = hollow(layer, TrainableLinear, TrainableConv2d)
    given = layer.input
    factors = None
    if given is not None and given.smooths:
        factors = layer.get_buffer(given.smoothing_name)
    made.hold_(layer.packed, dtype, learn_codebooks=learn_codebooks, smoothing=factors)
    if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        made.bias = nn.Parameter(layer.bias.detach().float().clone())
    return made.train(layer.training)
