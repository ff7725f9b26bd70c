"""The input side of a packed layer: which levels it is rounded to, and the products of the codes.

The weight of such a layer is used with 8 bits a row: exactly as stored where its codec decodes to
int8 and the codes are integers, rounded otherwise. So a layer computes one function, whatever
computes it: in integers or 8-bit floats where a kernel can ("integer", "fp8"), else the same codes
in float ("simulated", with the reason).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vqdq.activations.base import ActivationQuantizer, Axis, Grid, Site
from vqdq.errors import UserError
from vqdq.kernels import backend
from vqdq.kernels.int8 import Lines
from vqdq.layers import execution
from vqdq.layers.integer import Step
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from vqdq.layers.quantized import QuantizedLayer

PREFIX = "input_"
SMOOTHING = "smooth"
_KEPT_GRIDS = 64


class NoiseLevel:
    """What the denoiser was told about the noise: shared by all its layers, set at each call."""

    def __init__(self) -> None:
        self.timestep: float | None = None
        self._handle: RemovableHandle | None = None

    def attach_(self, denoiser: nn.Module) -> None:
        """Follows every call of `denoiser` from now on."""
        self._handle = denoiser.register_forward_pre_hook(self._before, with_kwargs=True)

    def detach_(self) -> None:
        """Follows no longer, and leaves no hook behind."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if isinstance(given, torch.Tensor):
            values = given.detach().reshape(-1).double()
            same = values.numel() > 0 and bool((values == values[0]).all())
            self.timestep = float(values[0]) if same else None
        else:
            self.timestep = None if given is None else float(given)


_LEVEL = "_noise_level"


def noise_level_(denoiser: nn.Module) -> NoiseLevel:
    """Returns the noise level that all parts of a denoiser follow; the first call attaches it."""
    found = denoiser.__dict__.get(_LEVEL)
    if not isinstance(found, NoiseLevel):
        found = NoiseLevel()
        found.attach_(denoiser)
        denoiser.__dict__[_LEVEL] = found
    return found


def forget_noise_level_(denoiser: nn.Module) -> None:
    """Removes what `noise_level_` attached."""
    found = denoiser.__dict__.pop(_LEVEL, None)
    if isinstance(found, NoiseLevel):
        found.detach_()


class LayerInput:
    """How one layer's input is quantized.

    Attributes:
        quantizer, site: the method and the place.
        level: the denoiser's noise level.
        where: the layer's name, for errors.
        enabled: False lets the input through as it is; nothing is loaded again.
    """

    _untraced: ClassVar[Callable[..., Any] | None] = None

    def __init__(
        self, quantizer: ActivationQuantizer[Any], site: Site, level: NoiseLevel, *, where: str
    ) -> None:
        self.quantizer = quantizer
        self.site = site
        self.level = level
        self.where = where
        self.enabled = True
        self._grids: dict[tuple[Any, ...], Grid] = {}
        self._steps: dict[tuple[Any, ...], Step | None] = {}
        self._lines: Lines | None = None
        self._weight: execution.Weight8 | None = None

    @property
    def smooths(self) -> bool:
        """Whether the input is divided by stored factors, and the weight was multiplied by them."""
        return self.quantizer.smooths

    @property
    def smoothing_name(self) -> str:
        """Name of the buffer that holds the factors."""
        return PREFIX + SMOOTHING

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layer's buffers that hold parameters."""
        return tuple(spec.name for spec in input_layout(self.quantizer, self.site))

    def release(self) -> None:
        """Forgets everything that was made of the stored parameters and of the weight."""
        self._grids.clear()
        self._steps.clear()
        self._lines = None
        self._weight = None

    def forget_weight(self) -> None:
        """Forgets what was made of the weight; grids and ranges stay."""
        self._steps.clear()
        self._weight = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the weight in the forms that are kept for products."""
        return 0 if self._weight is None else self._weight.num_bytes

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs: it makes its own grids and weights."""
        return self.__dict__ | {"_grids": {}, "_steps": {}, "_lines": None, "_weight": None}

    def output(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output for rounded inputs, of the shape and dtype a dense one gives.

        Gradients pass as if nothing were rounded (straight through), so that what stands before the
        layer can learn. A compiled model is cut here: codes cannot be traced.
        """
        run = LayerInput._untraced
        if run is None:
            run = LayerInput._output
            if "torch._dynamo" in sys.modules:  # slow to load, and loaded before anything compiles
                run = LayerInput._untraced = cast(Any, torch.compiler.disable)(run)
        found = run(self, layer, inputs)
        if layer.residency == "streaming":
            self.forget_weight()
        return cast(torch.Tensor, found)

    def _output(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        is_map = isinstance(layer, nn.Conv2d)
        if not inputs.numel():
            return layer.unrounded(inputs)
        if inputs.ndim == (3 if is_map else 1):  # no batch
            return self._output(layer, inputs[None])[0]
        if torch.is_grad_enabled():
            bias = layer.bias
            if inputs.requires_grad or (bias is not None and bias.requires_grad):
                made = _StraightThrough.apply(self, layer, inputs, bias)
                return cast(torch.Tensor, made)
        return self.convolution(layer, inputs) if is_map else self.linear(layer, inputs)

    def linear(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output, [..., out], for inputs [..., in]."""
        values = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        step = self._step(layer, values)
        if step is not None:
            out = self._finite(step(self._prepared_lines(layer, values)))
        else:
            rows = self._turned(layer, values.float())
            grid = self._grid(layer, rows)
            self._finite((rows, bool(torch.isfinite(rows).all())))
            out = execution.linear(self.weight(layer).dense(layer), rows, grid, layer.bias)
        return out.reshape(*inputs.shape[:-1], -1).to(inputs.dtype)

    def convolution(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the convolution of [batch, channels, height, width], channels last in memory
        where it is computed in 8 bits.
        """
        step = self._step(layer, inputs)
        if step is not None:
            out = self._finite(step(self._prepared_lines(layer, inputs)))
            return out.permute(0, 3, 1, 2).to(inputs.dtype)
        rows = self._turned(layer, inputs.flatten(2).transpose(1, 2).float())
        shape = (inputs.shape[2], inputs.shape[3])
        grid = self._grid(layer, rows, shape)
        self._finite((rows, bool(torch.isfinite(rows).all())))
        maps = rows.transpose(1, 2).unflatten(2, shape)
        dense = self.weight(layer).dense(layer)
        return execution.convolution(dense, layer, maps, grid).to(inputs.dtype)

    def _step(self, layer: QuantizedLayer, values: torch.Tensor) -> Step | None:
        """Returns what computes the layer in 8 bits for an input like `values`, or None."""
        if values.device.type != "cpu" and not backend.on_card(values):
            return None
        own = self.quantizer.own_axis(self.site)
        is_map = values.ndim == 4
        shape = (values.shape[2], values.shape[3]) if is_map else None
        positions = values.shape[2] * values.shape[3] if is_map else values.shape[1]
        key = (own,) if own else (self.level.timestep, positions, shape)
        if key in self._steps and (own or self.quantizer.calibrated):
            return self._steps[key]
        grid = None
        if not own:
            rows = values.flatten(2).transpose(1, 2) if is_map else values
            if not self.quantizer.calibrated:
                rows = self._turned(layer, rows.float())
            grid = self._grid(layer, rows, shape)
        axis = grid.axis if grid is not None else own
        assert axis is not None
        if len(self._steps) >= _KEPT_GRIDS:
            self._steps.clear()
        made = execution.step(layer, self.weight(layer), axis, grid, self.quantizer.bits)
        self._steps[key] = made
        return made

    def _prepared_lines(self, layer: QuantizedLayer, values: torch.Tensor) -> Lines:
        """Returns an input with what is done to its rows before they are rounded."""
        if self._lines is None:
            divisor = torch.empty(0)
            if self.smooths:
                divisor = layer.get_buffer(self.smoothing_name).float()
            weight = self.weight(layer)
            self._lines = Lines(
                values=torch.empty(0), divisor=divisor, signs=weight.signs, block=weight.block
            )
        return replace(self._lines, values=values)

    def _finite(self, result: tuple[torch.Tensor, bool]) -> torch.Tensor:
        if not result[1]:
            raise UserError(
                "its input is NaN or infinite.",
                where=self.where,
                remedy="Draw in 32 bits, or look for the layer before it that overflows.",
            )
        return result[0]

    def execution(self, layer: QuantizedLayer) -> execution.Execution:
        """Returns in which arithmetic the layer is computed here, and why it is simulated."""
        found = execution.how(layer, self)
        if layer.residency == "streaming":
            self.forget_weight()
        return found

    def known_grids(self, layer: QuantizedLayer) -> Iterator[tuple[Axis, Grid | None]]:
        """Yields the grids at all noise levels that are stored; None for an input's own range."""
        own = self.quantizer.own_axis(self.site)
        if own:
            yield own, None
            return
        stored = self._stored(layer)
        rows = torch.zeros(()).expand(1, max(1, self.site.positions), self.site.channels)
        side = math.isqrt(rows.shape[1])
        shape = (side, side) if isinstance(layer, nn.Conv2d) and side**2 == rows.shape[1] else None
        levels = stored.get("timesteps")
        for timestep in [None] if levels is None else [None, *levels.tolist()]:
            grid = self.quantizer.grid(rows, stored, self.site, timestep, shape)
            yield grid.axis, grid

    def weight(self, layer: QuantizedLayer) -> execution.Weight8:
        """Returns the 8-bit weight that the codes are multiplied with."""
        if self._weight is None:
            block = self.quantizer.rotation_block(self.site)
            self._weight = execution.Weight8(layer, block, self.quantizer.code)
        return self._weight

    def _stored(self, layer: QuantizedLayer) -> dict[str, torch.Tensor]:
        return {name[len(PREFIX) :]: layer.get_buffer(name) for name in self.names}

    def rows(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns an input as it is quantized, float32 [batch, positions, channels]."""
        if isinstance(layer, nn.Conv2d):
            return self._turned(layer, inputs.flatten(2).transpose(1, 2).float())
        return self._turned(layer, inputs.reshape(len(inputs), -1, inputs.shape[-1]).float())

    def _turned(self, layer: QuantizedLayer, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows [batch, positions, channels] as they are quantized: smoothed, rotated."""
        if self.smooths:
            rows = rows / layer.get_buffer(self.smoothing_name).float()
        weight = self.weight(layer)
        return execution.rotated(rows, weight) if weight.block else rows

    def _grid(
        self, layer: QuantizedLayer, rows: torch.Tensor, shape: tuple[int, int] | None = None
    ) -> Grid:
        key = (self.level.timestep, rows.shape[1], shape)
        found = self._grids.get(key) if self.quantizer.calibrated else None
        if found is None:
            try:
                found = self.quantizer.grid(
                    rows, self._stored(layer), self.site, self.level.timestep, shape
                )
            except UserError as error:
                raise UserError(error.what, where=self.where, remedy=error.remedy) from error
            self._finite((found.scale, bool(torch.isfinite(found.scale).all())))
            if len(self._grids) >= _KEPT_GRIDS:
                self._grids.clear()
            self._grids[key] = found
        return found


class _StraightThrough(torch.autograd.Function):
    """The rounded output forward, the gradients of the unrounded one backward (Bengio et al., arXiv
    1308.3432, section 4).
    """

    @staticmethod
    def forward(
        ctx: Any,
        given: LayerInput,
        layer: QuantizedLayer,
        inputs: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns the layer's output; `bias` is the layer's, so that it gets its gradient."""
        ctx.layer, ctx.biased = layer, bias is not None
        ctx.save_for_backward(inputs)
        return given._output(layer, inputs.detach())  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the gradients of inputs and bias."""
        (inputs,) = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_(wanted[0])
            output = ctx.layer.unrounded(leaf)
        sources = [s for s, want in zip((leaf, ctx.layer.bias), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(output, sources, gradient))
        return None, None, *(next(found) if want else None for want in wanted)


def input_layout(quantizer: ActivationQuantizer[Any], site: Site) -> tuple[TensorSpec, ...]:
    """Returns the tensors that a layer stores for its input, in closed form."""
    specs = [replace(spec, name=PREFIX + spec.name) for spec in quantizer.layout(site)]
    if quantizer.smooths:
        name = PREFIX + SMOOTHING
        specs.append(TensorSpec(name=name, dtype=torch.float16, shape=(site.channels,)))
    return tuple(specs)


def fold_smoothing(matrix: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Returns a weight that was multiplied by `factors` [channels] as it was, [out, in]."""
    return matrix / factors.float().repeat(matrix.shape[1] // len(factors))
