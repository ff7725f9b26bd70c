"""What every activation quantizer is: input ranges in, stored parameters out, a grid at run time.

A quantizer sees a layer's input as rows [batch, positions, channels]: the tokens of a linear layer,
the pixels of a convolution's feature map, or the rows of q, k and v with heads folded into the
batch. Nothing here knows a layer: `layers` computes with the codes, in integers or 8-bit floats
where a kernel can and in float ("simulated") where none can, and both compute the same sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from vqdq.errors import UserError
from vqdq.kernels import fp8
from vqdq.params import Params
from vqdq.tensors import TensorSpec

Axis = Literal["tensor", "sample", "row", "channel", "group"]
Code = Literal["integer", "fp8"]
"""What a code is: a whole number, or an 8-bit float (OCP e4m3, see `vqdq.kernels.fp8`)."""
SMALLEST_SCALE = 1e-12  # of an input that is constant zero
FEWEST_PRODUCTS = 1 << 22
"""Of a layer for one picture: with fewer, what a call costs (20 µs, and the codes twice as much) is
more than integers save. With guidance, two pictures a call, the embedded model is fastest when the
layers below 6 to 8 million products a call are left in float (on one core and on two)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where an input is quantized.

    Attributes:
        channels: values of one position; the head's width for q, k and v.
        positions: tokens or pixels at the model's own size; 0 when it is not known.
        taps: of the convolution that reads them; 1 otherwise.
    """

    channels: int
    positions: int = 0
    taps: int = 1


def is_small(site: Site, outputs: int) -> bool:
    """Returns whether a layer has fewer than `FEWEST_PRODUCTS`; False where that is not known."""
    products = site.positions * site.taps * site.channels * outputs
    return 0 < products < FEWEST_PRODUCTS


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRanges:
    """Extremes of a site's input over calibration, float32; exact, over every prompt and both
    guidance halves.

    Attributes:
        timesteps: of the steps as the denoiser was told them, falling, [steps].
        channel_low, channel_high: over positions, [steps, channels].
        position_low, position_high: over channels, [steps, positions].
    """

    timesteps: torch.Tensor
    channel_low: torch.Tensor
    channel_high: torch.Tensor
    position_low: torch.Tensor
    position_high: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Levels of an input: x̂ = scale · (q − zero), q a whole number in 0 … 2^bits − 1, so that they
    are even; or x̂ = scale · q, q an 8-bit float, with 8 levels to each power of two.

    Attributes:
        bits: of a code.
        axis: what has a scale of its own, and so the shape of `scale` and `zero`: "tensor" [],
            "sample" [batch], "row" [batch, positions] or [positions] (alike in the batch),
            "channel" [channels], "group" [groups] of channels.
        scale: float32, positive; zero: float32 whole numbers, 0 for 8-bit floats.
        index: group of each channel, int64 [channels]; only for "group".
        code: what q is.
    """

    bits: int
    axis: Axis
    scale: torch.Tensor
    zero: torch.Tensor
    index: torch.Tensor | None = None
    code: Code = "integer"

    @property
    def highest(self) -> int:
        """The largest whole number that is a code."""
        return (1 << self.bits) - 1

    def wide(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns scale and zero in a shape that broadcasts over [batch, positions, channels]."""
        scale, zero = self.scale, self.zero
        if self.index is not None:
            return scale[self.index], zero[self.index]
        if self.axis == "sample":
            return scale[:, None, None], zero[:, None, None]
        if self.axis == "row":
            return scale[..., None], zero[..., None]
        return scale, zero


def ranged(
    low: torch.Tensor, high: torch.Tensor, bits: int, *, with_zero: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scale and zero of the even grid over [low, high], float32, elementwise.

    scale = (high − low) / (2^bits − 1), zero = round(−low / scale) (Jacob et al., arXiv 1712.05877,
    section 2.1).

    Args:
        with_zero: widens the range to hold 0, so that 0 is a level: padding and silent inputs then
            stay exactly 0. Without it, as DGQ published it, the zero may lie outside the codes.
    """
    low, high = low.float(), high.float()
    if with_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / ((1 << bits) - 1)).clamp_min(SMALLEST_SCALE)
    return scale, torch.round(-low / scale)


def quantize(rows: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the codes of [batch, positions, channels] as float32.

    Whole numbers q = clamp(round(x · (1/scale)) + zero, 0, 2^bits − 1), or 8-bit floats
    q = e4m3(clamp(x · (1/scale), −448, 448)); the reciprocal rounded to float32 and ties to even:
    every kernel does exactly this.
    """
    scale, zero = grid.wide()
    if grid.code == "fp8":
        return fp8.codes_of(rows.float(), scale).float()
    return (torch.round(rows.float() * scale.reciprocal()) + zero).clamp_(0, grid.highest)


def dequantize(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns scale · (q − zero), float32 [batch, positions, channels]."""
    scale, zero = grid.wide()
    return (codes - zero) * scale


def fake_quantize(rows: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns what the codes of `rows` stand for, float32, same shape."""
    return dequantize(quantize(rows, grid), grid)


def interpolated(timesteps: torch.Tensor, values: torch.Tensor, timestep: float) -> torch.Tensor:
    """Returns `values` at a noise level, linear between the levels known and constant beyond.

    The noise level is what the denoiser is told, its timestep: the same for every scheduler and
    number of steps.

    Args:
        timesteps: falling, [levels]; `values`: [levels, …].
    """
    rising, turned = timesteps.flip(0), values.flip(0)
    at = int(torch.searchsorted(rising, torch.tensor(timestep, dtype=rising.dtype)))
    if at == 0:
        return turned[0]
    if at == len(rising):
        return turned[-1]
    left, right = float(rising[at - 1]), float(rising[at])
    return torch.lerp(turned[at - 1], turned[at], (timestep - left) / (right - left))


def noise_levels(steps: int, count: int) -> torch.Tensor:
    """Returns which of `steps` calibration steps are kept as noise levels: ends in, evenly spread.

    int64 [min(count, steps)]; fewer steps than levels repeat the last, so it is always `count`.
    """
    return torch.linspace(0, steps - 1, count).round().long()


def at_levels(ranges: InputRanges, count: int, *, pooled: bool = True) -> InputRanges:
    """Returns the ranges at `count` noise levels (`noise_levels`).

    Args:
        pooled: each level takes the extremes of every step up to the levels beside it, so that what
            is interpolated between two levels holds every step between them; False takes those of
            its own step alone.
    """
    steps = len(ranges.timesteps)
    kept = noise_levels(steps, count).tolist()
    before, after = [-1, *kept[:-1]], [*kept[1:], steps]
    spans = [
        slice(min(left + 1, at), max(right, at + 1)) if pooled else slice(at, at + 1)
        for left, at, right in zip(before, kept, after, strict=True)
    ]

    def least(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[span].amin(0) for span in spans])

    def most(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values[span].amax(0) for span in spans])

    return InputRanges(
        timesteps=ranges.timesteps[kept].float(),
        channel_low=least(ranges.channel_low),
        channel_high=most(ranges.channel_high),
        position_low=least(ranges.position_low),
        position_high=most(ranges.position_high),
    )


P = TypeVar("P", bound=Params)


class ActivationQuantizer(ABC, Generic[P]):
    """An activation quantizer with fixed settings. Subclasses are final and use `@register`.

    Class attributes: `name` (registered), `title` (for people), `summary` (one sentence),
    `reference` (arXiv id and section), `settings` (its `Params` class, with `bits`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    settings: ClassVar[type[Params]]

    def __init__(self, params: P) -> None:
        self.params = params

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits of a code, 4 to 8."""

    @property
    def code(self) -> Code:
        """What a code is; that of every grid."""
        return "integer"

    @property
    def calibrated(self) -> bool:
        """Whether the grid comes from stored parameters; else it comes from the input itself."""
        return True

    def spares(self, site: Site, outputs: int) -> bool:
        """Whether a layer's input stays in 16 bits because 8 would not make it faster."""
        del site, outputs
        return False

    def rotation_block(self, site: Site) -> int:
        """Returns the block of the Hadamard rotation of the input and the weight; 0 for none."""
        del site
        return 0

    def own_axis(self, site: Site) -> Axis | None:
        """Returns "row" or "sample" where `grid` is `ranged` over the extremes of just that, with 0
        in it (8-bit floats: "row", with `fp8.scales_of`), so that a kernel may measure and round a
        row in one visit; None otherwise.
        """
        del site
        return None

    def smoothing(self, ranges: InputRanges, weight: torch.Tensor, site: Site) -> torch.Tensor:
        """Returns what each channel of the input is divided by, and the weight's column multiplied
        by before it is encoded, float32 [channels]; empty for nothing.

        Args:
            weight: [out, taps * channels].
        """
        del ranges, weight, site
        return torch.empty(0)

    @property
    def smooths(self) -> bool:
        """Whether `smoothing` gives something: its factors are stored beside the weight."""
        return False

    @abstractmethod
    def layout(self, site: Site) -> tuple[TensorSpec, ...]:
        """Returns the exact tensors that `calibrate` gives, in closed form; () when dynamic."""

    def calibrate(self, ranges: InputRanges, site: Site) -> dict[str, torch.Tensor]:
        """Returns the parameters to store, exactly those of `layout`.

        The ranges are those of the input as it is quantized: smoothed, rotated.
        """
        del ranges, site
        return {}

    @abstractmethod
    def grid(
        self,
        rows: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        site: Site,
        timestep: float | None,
        shape: tuple[int, int] | None = None,
    ) -> Grid:
        """Returns the levels for an input.

        Args:
            rows: [batch, positions, channels], perhaps a strided view; quantizers that are
                `calibrated` read only its shape.
            stored: the tensors of `calibrate`.
            timestep: what the denoiser was told; None takes what covers every noise level.
            shape: height and width of a convolution's feature map; None for tokens.
        """


def axis_at(quantizer: ActivationQuantizer[Any], site: Site) -> Axis:
    """Returns what has a scale of its own at a site, as far as it is known before calibration."""
    stored = {
        spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in quantizer.layout(site)
    }
    side = round(site.positions**0.5)
    shape = (side, side) if site.taps > 1 and side * side == site.positions else None
    rows = torch.zeros(1, max(1, site.positions), 1).expand(1, -1, site.channels)
    return quantizer.grid(rows, stored, site, None, shape).axis


def finite(ranges: InputRanges, where: str) -> InputRanges:
    """Returns the ranges after checking them.

    Raises:
        UserError: NaN or infinite extremes, or none at all; the layer is named.
    """
    parts = (ranges.channel_low, ranges.channel_high, ranges.position_low, ranges.position_high)
    if not len(ranges.timesteps):
        raise UserError(
            "was never run on the calibration prompts, so its input ranges are not known.",
            where=where,
            remedy="Keep its activations in 16 bits, or use a dynamic method.",
        )
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise UserError(
            "its input is NaN or infinite on the calibration prompts.",
            where=where,
            remedy="Run the model in 32 bits, or use another checkpoint.",
        )
    return ranges
