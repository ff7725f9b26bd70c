"""Which codes a layer's quantized input uses, and which values its levels do not reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vqdq import kernels
from vqdq.activations.base import Code, Grid
from vqdq.kernels import fp8
from vqdq.layers.inputs import LayerInput
from vqdq.layers.quantized import QuantizedLayer

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

FLOATS = 253  # 8-bit floats: 126 magnitudes of either sign, and 0
COUNTED = 1 << 14
"""Values of one call whose codes are counted: all of fewer, else evenly spaced positions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CodesRecord:
    """The levels of a layer's input at one step and how they were used.

    Attributes:
        method, bits, axis: as the quantizer says; `axis` is what has a scale of its own.
        scale, zero: of the last call, float32 [scales]; x̂ = scale · (q − zero).
        index: group of each channel, [channels]; empty when the axis is no group.
        counts: how often each code occurred, rising, [halves, 2^bits]; [halves, FLOATS] of "fp8".
        below, above: counted values beyond the lowest and the highest level, [halves].
        code: "integer", or "fp8" where q is an 8-bit float.
    """

    method: str
    bits: int
    axis: str
    scale: Floats
    zero: Floats
    index: Counts
    counts: Counts
    below: Counts
    above: Counts
    code: str = "integer"

    @property
    def total(self) -> int:
        """How many codes there are."""
        return self.counts.shape[1]

    @property
    def counted(self) -> Counts:
        """How many values were looked at, [halves]."""
        return self.counts.sum(axis=1)

    @property
    def clipped(self) -> npt.NDArray[np.floating]:
        """Share of values beyond the levels, [halves]."""
        return (self.below + self.above) / np.maximum(self.counted, 1)

    @property
    def used(self) -> npt.NDArray[np.float64]:
        """Share of the codes that occur, [halves]."""
        return (self.counts > 0).mean(axis=1, dtype=np.float64)

    def levels(self, scale: int = 0) -> npt.NDArray[np.floating]:
        """Returns the levels of one of the scales, rising, [total]."""
        codes = np.arange(self.total) if self.code == "integer" else _floats()
        return float(self.scale[scale]) * (codes - float(self.zero[scale]))


def quantized_input(layer: nn.Module) -> LayerInput | None:
    """Returns how a layer's input is quantized at this moment; None when it stays as it comes."""
    if not isinstance(layer, QuantizedLayer) or layer.input is None:
        return None
    return layer.input if layer.input.enabled else None


def turned(given: LayerInput) -> bool:
    """Returns whether the input is smoothed or rotated before it is rounded."""
    return given.smooths or given.quantizer.rotation_block(given.site) > 0


def _floats() -> Floats:
    """Returns all 8-bit floats, rising, [FLOATS]."""
    size = torch.arange(1, FLOATS // 2 + 1, dtype=torch.uint8).view(fp8.FORMAT).float()
    return torch.cat((-size.flip(0), torch.zeros(1), size)).numpy()


def _places(floats: Tensor) -> Tensor:
    """Returns where 8-bit floats stand among all of them (`_floats`), float32."""
    bits = floats.view(torch.uint8).int()
    size = (bits & 0x7F).float()
    return FLOATS // 2 + torch.where(bits > 0x7F, -size, size)


class Codes:
    """Running counts of the codes of one layer at one step."""

    def __init__(self, halves: int, method: str, bits: int, code: Code = "integer") -> None:
        self._method = method
        self._total = FLOATS if code == "fp8" else 1 << bits
        self._counts: Counts = np.zeros((halves, self._total + 2), dtype=np.int64)
        self._grid: Grid | None = None

    def update(self, rows: Tensor, grid: Grid) -> None:
        """Adds the codes of rows [samples, positions, channels] as they are rounded.

        The two halves of a guided batch are its first and its second half.
        """
        self._grid = grid
        scale, zero = grid.wide()
        count = max(1, COUNTED // max(1, rows.shape[0] * rows.shape[2]))
        stride = -(-rows.shape[1] // count)
        if stride > 1:
            scale, zero = (_some(part, rows.shape[1], stride) for part in (scale, zero))
        some = rows[:, ::stride].float()
        if grid.code == "fp8":
            some, scale, zero = _places(fp8.codes_of(some, scale)), torch.ones(()), torch.zeros(())
        kernels.add_codes(some, scale, zero, self._total - 1, self._counts)

    def result(self) -> CodesRecord:
        """Returns what was counted; values beyond the levels count for the outermost codes."""
        grid = cast(Grid, self._grid)
        counts = self._counts[:, 1:-1].copy()
        below, above = self._counts[:, 0].copy(), self._counts[:, -1].copy()
        counts[:, 0] += below
        counts[:, -1] += above

        def flat(part: Tensor) -> Floats:
            return part.detach().float().reshape(-1).cpu().numpy()

        index = np.zeros(0, np.int64) if grid.index is None else grid.index.cpu().numpy()
        return CodesRecord(
            method=self._method,
            bits=grid.bits,
            axis=grid.axis,
            scale=flat(grid.scale),
            zero=flat(grid.zero),
            index=index,
            counts=counts,
            below=below,
            above=above,
            code=grid.code,
        )


def _some(part: Tensor, positions: int, stride: int) -> Tensor:
    """Every `stride`-th position of a scale or zero that may have one for each."""
    whole = part.ndim >= 2 and part.shape[-2] == positions
    return part[..., ::stride, :] if whole else part


def rounded_rows(given: LayerInput, layer: QuantizedLayer, x: Tensor) -> tuple[Tensor, Grid]:
    """Returns an input as it is rounded, [samples, positions, channels], and its levels.

    They are computed a second time from the same input, as the layer itself did.
    """
    rows = given.rows(layer, x)
    shape = (int(x.shape[2]), int(x.shape[3])) if isinstance(layer, nn.Conv2d) else None
    return rows, given._grid(layer, rows, shape)  # pyright: ignore[reportPrivateUsage]
