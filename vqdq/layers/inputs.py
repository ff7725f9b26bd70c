"""The input side of a packed layer: which levels it is rounded to, and the products of the codes.

The weight of such a layer is used with 8 bits a row: exactly as stored where its codec decodes to
int8, rounded otherwise. So a layer computes one function, whatever computes it: in integers where a
kernel can ("integer"), else the same codes in float ("simulated", with the reason).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqdq.activations.base import ActivationQuantizer, Grid, Site
from vqdq.errors import UserError
from vqdq.layers import execution
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

    def attach_(self, denoiser: nn.Module) -> None:
        """Follows every call of `denoiser` from now on."""
        denoiser.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        if isinstance(given, torch.Tensor):
            values = given.detach().reshape(-1).double()
            same = values.numel() > 0 and bool((values == values[0]).all())
            self.timestep = float(values[0]) if same else None
        else:
            self.timestep = None if given is None else float(given)


class LayerInput:
    """How one layer's input is quantized.

    Attributes:
        quantizer, site: the method and the place.
        level: the denoiser's noise level.
        where: the layer's name, for errors.
        enabled: False lets the input through as it is; nothing is loaded again.
    """

    def __init__(
        self, quantizer: ActivationQuantizer[Any], site: Site, level: NoiseLevel, *, where: str
    ) -> None:
        self.quantizer = quantizer
        self.site = site
        self.level = level
        self.where = where
        self.enabled = True
        self._grids: dict[tuple[Any, ...], Grid] = {}
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
        self._weight = None

    def linear(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output, [..., out], for inputs [..., in]."""
        rows = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).float()
        rows = self._turned(layer, rows)
        out = execution.linear(self._prepared(layer), rows, self._grid(layer, rows), layer.bias)
        return out.reshape(*inputs.shape[:-1], -1).to(inputs.dtype)

    def convolution(self, layer: QuantizedLayer, inputs: torch.Tensor) -> torch.Tensor:
        """Returns the convolution of [batch, channels, height, width]."""
        rows = self._turned(layer, inputs.flatten(2).transpose(1, 2).float())
        shape = (inputs.shape[2], inputs.shape[3])
        grid = self._grid(layer, rows, shape)
        maps = rows.transpose(1, 2).unflatten(2, shape)
        return execution.convolution(self._prepared(layer), layer, maps, grid).to(inputs.dtype)

    def execution(self, layer: QuantizedLayer) -> execution.Execution:
        """Returns whether the layer is computed in integers here, and why not."""
        return execution.how(layer, self)

    def _prepared(self, layer: QuantizedLayer) -> execution.Weight8:
        if self._weight is None:
            self._weight = execution.prepare(layer, self.quantizer.rotation_block(self.site))
        return self._weight

    def _turned(self, layer: QuantizedLayer, rows: torch.Tensor) -> torch.Tensor:
        """Returns rows [batch, positions, channels] as they are quantized: smoothed, rotated."""
        if self.smooths:
            rows = rows / layer.get_buffer(self.smoothing_name).float()
        weight = self._prepared(layer)
        return execution.rotated(rows, weight) if weight.block else rows

    def _grid(
        self, layer: QuantizedLayer, rows: torch.Tensor, shape: tuple[int, int] | None = None
    ) -> Grid:
        key = (self.level.timestep, rows.shape[1], shape)
        found = self._grids.get(key) if self.quantizer.calibrated else None
        if found is None:
            stored = {name[len(PREFIX) :]: layer.get_buffer(name) for name in self.names}
            try:
                found = self.quantizer.grid(rows, stored, self.site, self.level.timestep, shape)
            except UserError as error:
                raise UserError(error.what, where=self.where, remedy=error.remedy) from error
            if not bool(torch.isfinite(found.scale).all()):
                raise UserError(
                    "its input is NaN or infinite.",
                    where=self.where,
                    remedy="Draw in 32 bits, or look for the layer before it that overflows.",
                )
            if len(self._grids) >= _KEPT_GRIDS:
                self._grids.clear()
            self._grids[key] = found
        return found


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
