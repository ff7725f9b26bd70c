"""Layers that hold a packed weight in plain buffers and compute with its decoded values.

They are subclasses of `nn.Linear` and `nn.Conv2d` with unchanged constructors, because adapters
(PEFT) ask for the type and call it again to make their own small dense layers. A layer becomes a
packed one through `pack`; its tensors appear in the state dict as `<layer>.<tensor>`, and no cast
ever touches them: a codebook that was rounded to bfloat16 would decode to another model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional

from vqdq.codecs import create
from vqdq.codecs.base import Codec, Packed, WeightShape
from vqdq.errors import UserError
from vqdq.layers import fused
from vqdq.layers.inputs import LayerInput, fold_smoothing
from vqdq.layers.matrix import from_matrix, kind_of, weight_shape
from vqdq.layers.shown import DecodedWeight
from vqdq.tensors import uncast

if TYPE_CHECKING:
    from vqdq.layers.prefetch import Prefetch
    from vqdq.layers.text_cache import TextCache

Residency = Literal["resident", "streaming"]


class QuantizedLayer(nn.Module):
    """What both packed layers share; a plain dense layer until `hold_`.

    Attributes:
        input: how the layer's input is quantized, or None: it stays as it comes.
        text_cache: keeps the last output of a layer that reads the text, or None.
        residency: "resident" decodes once, "streaming" at each forward; a whole model is told by
            `vqdq.layers.residency`.
        source: keeps the packed weight in the processor's memory while the layer computes on a
            card, and brings it there (`vqdq.layers.prefetch`); None: it lies where it is used.
    """

    _untraced: ClassVar[Callable[..., Any] | None] = None
    input: LayerInput | None = None
    text_cache: TextCache | None = None
    source: Prefetch | None = None
    _card: torch.device | None = None  # of a layer whose packed weight stays behind
    _codec: Codec[Any]
    _shape: WeightShape
    _names: tuple[str, ...]
    _dtype: torch.dtype
    _dense: torch.Tensor | None
    residency: Residency

    def reset_parameters(self) -> None:
        """Draws initial values, except on the meta device, where there are none to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()  # type: ignore[misc]

    def hold_(self, packed: Packed, *, dtype: torch.dtype, residency: Residency) -> None:
        """Replaces the dense weight by packed tensors; computation runs in `dtype` afterwards.

        Args:
            packed: its tensors become buffers and are not copied; they may be on the meta device.
            dtype: of the decoded weight that `weight` shows; a forward follows its input instead.
            residency: "resident" decodes once and keeps it; "streaming" decodes at each forward.
        """
        del self._parameters["weight"]
        self.input = None
        self._codec = create(packed.codec, packed.params)
        self._shape = packed.shape
        self._names = tuple(packed.tensors)
        self._dtype = dtype
        self._dense = None
        self.residency = residency
        for name, tensor in packed.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def packed(self) -> Packed:
        """The packed weight as it is stored."""
        tensors = {name: self.get_buffer(name) for name in self._names}
        return Packed(
            codec=self._codec.name, params=self._codec.params, shape=self._shape, tensors=tensors
        )

    @property
    def packed_names(self) -> tuple[str, ...]:
        """Names of the buffers that no cast may touch: the packed weight and the input's grids."""
        return self._names if self.input is None else (*self._names, *self.input.names)

    def quantize_input_(self, given: LayerInput, stored: Mapping[str, torch.Tensor]) -> None:
        """Quantizes the layer's input from now on.

        Args:
            given: how; it reads its parameters from this layer's buffers.
            stored: its tensors by their buffer names (`given.names`), not copied.
        """
        if self.source is not None:
            self.offload_(None)
        self.input = given
        for name in given.names:
            self.register_buffer(name, stored[name])
        self._dense = None

    @property
    def shown_dtype(self) -> torch.dtype:
        """The dtype of `weight`; a forward follows its input instead."""
        return self._dtype

    def set_dtype_(self, dtype: torch.dtype) -> None:
        """Changes the dtype that `weight` shows; the packed tensors stay as they are."""
        self._dtype = dtype
        self._dense = None

    @property
    def place(self) -> torch.device:
        """Where the layer computes; its packed weight lies there unless it is `offloaded`."""
        return self._card or self.get_buffer(self._names[0]).device

    @property
    def offloaded(self) -> bool:
        """Whether the packed weight stays in the processor's memory while a card computes."""
        return self._card is not None

    @property
    def streams(self) -> bool:
        """Whether the decoded weight comes to a card anew at each forward."""
        return self._card is not None and self.residency == "streaming"

    def offload_(self, source: Prefetch | None) -> None:
        """Lets `source` keep the packed weight from now on; None lets it lie where it is used.

        A layer with a rounded input stays as it is: its kernels read the packed weight in place.
        """
        card = self.place
        self.forget_weight()
        self.source = source if self.input is None else None
        away = self.source is not None and self.source.serves(card)
        for name in self._names:
            tensor = self.get_buffer(name)
            kept = self.source.held(tensor, card) if self.source and away else tensor.to(card)
            self.register_buffer(name, kept)
        self._card = card if away else None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the decoded weight in the layer's own layout: decoded in float32, then cast.

        A compiled model is cut here, unless the weight is there: decoding cannot be traced.
        """
        kept, device = self._dense, self.place
        if kept is not None and kept.dtype == dtype and kept.device == device:
            return kept
        if device.type == "meta":
            matrix = torch.empty(self._shape.out_features, self._shape.in_features, device="meta")
            return from_matrix(matrix, self).to(dtype)
        return self._eagerly(QuantizedLayer._decoded_now, dtype)

    def _eagerly(self, call: Callable[..., torch.Tensor], value: object) -> torch.Tensor:
        """Returns `call(self, value)`, which is never traced."""
        run = QuantizedLayer._untraced
        if run is None:
            run = _called
            if "torch._dynamo" in sys.modules:  # slow to load, and loaded before anything compiles
                run = QuantizedLayer._untraced = cast(Any, torch.compiler.disable)(run)
        return cast(torch.Tensor, run(call, self, value))

    def _decoded_now(self, dtype: torch.dtype) -> torch.Tensor:
        packed = self.packed
        if self._card is not None:
            there = {name: tensor.to(self._card) for name, tensor in packed.tensors.items()}
            packed = replace(packed, tensors=there)
        weight = self.decoded(packed, dtype)
        if self.residency == "resident" and not self._quantizes and not _moves_out(self):
            self._dense = weight
        return weight

    def decoded(self, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        """Returns the weight that the layer's packed tensors stand for, wherever they are."""
        # Never an inference tensor: a kept weight may serve a forward that records gradients.
        with torch.inference_mode(False), torch.no_grad():
            smooths = self.input is not None and self.input.smooths
            matrix = self._codec.decode_as(packed, torch.float32 if smooths else dtype)
            matrix = matrix.to(next(iter(packed.tensors.values())).device)  # if no kernel was there
            if self.input is not None and smooths:
                matrix = fold_smoothing(matrix, self.get_buffer(self.input.smoothing_name))
            return from_matrix(matrix, self).to(dtype)

    @property
    def held_bytes(self) -> int:
        """Bytes of the decoded weight that is kept now, in whichever form."""
        dense = 0 if self._dense is None else self._dense.nbytes
        return dense + (0 if self.input is None else self.input.held_bytes)

    def forget_weight(self) -> None:
        """Forgets the decoded weight; outputs that were made with it stay."""
        self._dense = None
        if self.source is not None:
            self.source.forget()
        if self.input is not None:
            self.input.forget_weight()

    @property
    def _quantizes(self) -> bool:
        """Whether the input is quantized now: then the decoded weight is not what is multiplied."""
        return self.input is not None and self.input.enabled

    def unrounded(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the output with the decoded weight, for inputs as they are."""
        keeps = input.requires_grad and torch.is_grad_enabled()  # the weight, for its gradient
        if self.streams and not keeps:
            return self._eagerly(QuantizedLayer._streamed, input)
        return self.multiplied(input, self.dense(input.dtype))

    def _streamed(self, input: torch.Tensor) -> torch.Tensor:
        assert self.source is not None
        output = self.multiplied(input, self.source.weight(self, input.dtype))
        self.source.done(self)
        return output

    def multiplied(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns the output with a weight in the layer's own layout."""
        raise NotImplementedError

    def release(self) -> None:
        """Forgets the decoded weight and what was made of it; the next forward decodes again."""
        self._dense = None
        if self.source is not None:
            self.source.forget()
        if self.input is not None:
            self.input.release()
        if self.text_cache is not None:
            self.text_cache.clear()

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "_codec" in self.__dict__:
            return self.dense(self._dtype).as_subclass(DecodedWeight)
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        if "_codec" not in self.__dict__:
            return super()._apply(fn, recurse)
        probe = fn(torch.empty(0, dtype=self._dtype, device=self.place))
        source = self.source
        away = source is not None and source.serves(probe.device)
        keep = partial(uncast, fn=fn)
        if source is not None and away:
            keep = partial(source.held, device=probe.device)
        moved = {name: keep(self.get_buffer(name)) for name in self.packed_names}
        held = {name: self._buffers.pop(name) for name in self.packed_names}
        try:
            super()._apply(fn, recurse)
            held |= moved
            self._dtype, self._card = probe.dtype, probe.device if away else None
        finally:
            self._buffers.update(held)
            self.release()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.release()


def _called(call: Callable[..., torch.Tensor], *values: object) -> torch.Tensor:
    return call(*values)


def _moves_out(layer: nn.Module) -> bool:
    """Whether accelerate takes a layer off the device after each use: what was decoded goes too.

    diffusers' groups move buffers without a word to the layer; beside them choose "streaming".
    """
    return bool(getattr(layer.__dict__.get("_hf_hook"), "offload", False))


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A linear layer with a packed weight: y = F.linear(x, decode(packed), bias), bit for bit,

    unless its input is quantized (`vqdq.layers.inputs`) or the weight is not kept and there are few
    rows on a card (`vqdq.layers.fused`).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns x Wᵀ + bias, [..., out]."""
        if "_codec" not in self.__dict__:
            return super().forward(input)
        if self.text_cache is not None:
            return self.text_cache.output(self, input)
        return self.product(input)

    def product(self, input: torch.Tensor) -> torch.Tensor:
        """Returns x Wᵀ + bias, computed anew."""
        if self.input is not None and self._quantizes:
            if self._dense is not None:  # from when the input was not quantized
                self._dense = None
            return self.input.output(self, input)
        return self.unrounded(input)

    def unrounded(self, input: torch.Tensor) -> torch.Tensor:
        """Returns x Wᵀ + bias with the decoded weight, for inputs as they are."""
        found = fused.product(self, self._codec, input)
        return super().unrounded(input) if found is None else found

    def multiplied(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns x Wᵀ + bias with a weight [out, in]."""
        return functional.linear(input, weight, self.bias)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution with a packed weight: y = conv2d(x, decode(packed), bias), bit for bit,

    unless its input is quantized (`vqdq.layers.inputs`).
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the convolution of [batch, channels, height, width]."""
        if "_codec" not in self.__dict__:
            return super().forward(input)
        if self.input is not None and self._quantizes:
            if self._dense is not None:  # from when the input was not quantized
                self._dense = None
            return self.input.output(self, input)
        return self.unrounded(input)

    def multiplied(self, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Returns the convolution with a weight [out, channels, kh, kw]."""
        return self._conv_forward(input, weight, self.bias)


def pack(
    module: nn.Module, packed: Packed, *, residency: Residency = "resident"
) -> QuantizedLinear | QuantizedConv2d:
    """Returns a packed layer that takes the place of a dense one; its bias is shared, not copied.

    Raises:
        UserError: the layer is of another kind, or the packed weight has another shape.
    """
    expected = weight_shape(module)
    if kind_of(module) is None:
        raise UserError(
            f"{type(module).__name__} is not a plain layer.",
            remedy="Only nn.Linear and nn.Conv2d themselves can be replaced.",
        )
    if packed.shape != expected:
        raise UserError(
            f"the packed weight is {packed.shape.out_features} x {packed.shape.in_features} "
            f"with {packed.shape.taps} taps, the layer needs {expected.out_features} x "
            f"{expected.in_features} with {expected.taps}.",
            remedy="The file belongs to another model: use the folder it was compressed from.",
        )
    weight = module.get_parameter("weight")
    layer = hollow(module, QuantizedLinear, QuantizedConv2d)
    if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        layer.bias = cast(nn.Parameter, module.bias)
    layer.hold_(packed, dtype=weight.dtype, residency=residency)
    return layer.train(module.training)


def unpack(layer: QuantizedLayer) -> nn.Linear | nn.Conv2d:
    """Returns the dense layer with the decoded weight; the bias is shared."""
    dense = hollow(layer, nn.Linear, nn.Conv2d)
    weight = layer.dense(layer.shown_dtype).detach().clone()
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        dense.bias = cast(nn.Parameter, layer.bias)
    return dense.train(layer.training)


_Linear = TypeVar("_Linear", bound=nn.Linear)
_Conv2d = TypeVar("_Conv2d", bound=nn.Conv2d)


def hollow(
    module: nn.Module, linear: type[_Linear], convolution: type[_Conv2d]
) -> _Linear | _Conv2d:
    """Returns a layer of the same settings, without any values (on the meta device)."""
    biased = module.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    if isinstance(module, nn.Conv2d):
        return convolution(
            module.in_channels,
            module.out_channels,
            cast(Any, module.kernel_size),
            stride=cast(Any, module.stride),
            padding=cast(Any, module.padding),
            dilation=cast(Any, module.dilation),
            groups=module.groups,
            bias=biased,
            padding_mode=module.padding_mode,
            device="meta",
        )
    plain = cast(nn.Linear, module)
    return linear(plain.in_features, plain.out_features, bias=biased, device="meta")
