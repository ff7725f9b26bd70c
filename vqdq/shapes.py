"""What a component of a model is made of, without its weights: layers, tensors, attentions."""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.activations.base import Site
from vqdq.codecs.base import WeightShape
from vqdq.layers.attention import AttentionPlace
from vqdq.tensors import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer that could be quantized.

    Attributes:
        name: full dotted name inside its component ("down_blocks.0.resnets.0.conv1").
        kind: "linear" or "conv2d".
        shape: its weight as the codecs see it.
        positions: tokens or pixels of its input at the model's own size; 0 when not known.
    """

    name: str
    kind: str
    shape: WeightShape
    positions: int = 0

    @property
    def site(self) -> Site:
        """Where its input is quantized."""
        shape = self.shape
        return Site(channels=shape.channels, positions=self.positions, taps=shape.taps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """Shapes of one model component, read from a file's header or a live module; no weights.

    Attributes:
        name: "unet", "transformer", "text_encoder", "vae" …
        layers: candidates in the order of execution.
        tensors: every tensor that the component stores, layers' weights and biases included, by its
            key.
        attentions: its attention layers.
        guarded: the library that opens it would only warn of a quantization that it does not know
            and fill the missing weights with random numbers. An empty tensor under the name of the
            first packed layer's weight makes it fail instead: a shape that cannot be right.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: tuple[TensorSpec, ...]
    attentions: tuple[AttentionPlace, ...] = ()
    guarded: bool = False
