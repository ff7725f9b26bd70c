"""Activation quantizers on inputs with planted outliers, beside what theory says of each.

Every value is uniform on ± its size, and the sizes are planted: a few channels, or a few pixels, or
both, are larger than the rest. The embedded model is small and has few such outliers; large
text-to-image models have them in fixed channels and pixels (arXiv 2501.04304, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.timing import table
from vqdq import activations, kernels
from vqdq.activations.base import ActivationQuantizer, InputRanges, Site, fake_quantize
from vqdq.layers.execution import fixed_signs

POSITIONS, CHANNELS, SEEN, HELD_OUT = 256, 320, 16, 8
LARGE_CHANNELS, LARGE_PIXELS = (32, 16.0), (26, 8.0)  # how many, and how many times as large
BITS = (8, 6, 4)
BLOCK = 64
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one range", "minmax", {}),
    ("a range for each channel", "minmax", {"granularity": "channel"}),
    *((f"DGQ, {groups} groups", "dgq", {"groups": groups}) for groups in (2, 8)),
    *((f"sorted blocks of {size}", "sorted", {"block": size}) for size in (32, 128)),
    ("dynamic, a range for each token", "dynamic", {}),
    ("smoothed, dynamic", "smooth", {}),
    ("rotated, dynamic", "rotated", {"rotation": BLOCK}),
    ("smoothed and rotated, dynamic", "smooth", {"rotation": BLOCK}),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """Sizes of the channels [channels] and of the positions [positions]; their product counts."""

    channels: torch.Tensor
    positions: torch.Tensor

    @property
    def sizes(self) -> torch.Tensor:
        """[positions, channels]."""
        return self.positions[:, None] * self.channels

    def inputs(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Returns rows [count, positions, channels]."""
        rows = torch.rand(count, POSITIONS, CHANNELS, generator=generator) * 2 - 1
        return rows * self.sizes


def planted(channels: bool, pixels: bool) -> Planted:
    """Returns sizes with the outliers asked for, spread evenly over the places."""
    found = [torch.ones(CHANNELS), torch.ones(POSITIONS)]
    for part, wanted, (count, size) in zip(
        found, (channels, pixels), (LARGE_CHANNELS, LARGE_PIXELS), strict=True
    ):
        if wanted:
            part[torch.linspace(3, len(part) - 3, count).long()] = size
    return Planted(channels=found[0], positions=found[1])


def run() -> str:
    """Returns the table as Markdown."""
    rows: list[list[str]] = []
    for title, channels, pixels in (
        ("none", False, False),
        ("channels", True, False),
        ("pixels", False, True),
        ("both", True, True),
    ):
        case = planted(channels, pixels)
        generator = torch.Generator().manual_seed(0)
        seen, held_out = case.inputs(SEEN, generator), case.inputs(HELD_OUT, generator)
        for label, name, values in METHODS:
            row = [title, label]
            for bits in BITS:
                quantizer = activations.create(name, bits=bits, **values)
                found = measured(quantizer, seen, held_out)
                row += [f"{found:.2f}", f"{predicted(quantizer, case):.2f}"]
            rows.append(row)
            print(row, flush=True)
    head = ["outliers", "method"]
    head += [f"{bits} bits, {what}" for bits in BITS for what in ("dB", "theory")]
    return table(head, rows)


def measured(
    quantizer: ActivationQuantizer[Any], seen: torch.Tensor, held_out: torch.Tensor
) -> float:
    """Returns the signal-to-noise ratio of quantized inputs in dB, calibrated on others.

    Args:
        seen, held_out: [batch, positions, channels].
    """
    site = Site(channels=CHANNELS, positions=POSITIONS)
    factors = quantizer.smoothing(_ranges(seen), torch.ones(8, CHANNELS), site)
    if not len(factors):
        factors = torch.ones(CHANNELS)
    block = quantizer.rotation_block(site)
    signs = fixed_signs(CHANNELS)

    def turned(rows: torch.Tensor) -> torch.Tensor:
        rows = rows / factors
        return _hadamard(rows * signs, block) if block else rows

    stored = quantizer.calibrate(_ranges(turned(seen)), site) if quantizer.calibrated else {}
    there = turned(held_out)
    known = fake_quantize(there, quantizer.grid(there, stored, site, 500.0))
    back = (_hadamard(known, block) * signs if block else known) * factors
    power, error = held_out.double().square().mean(), (back - held_out).double().square().mean()
    return 10 * math.log10(float(power / error))


def predicted(quantizer: ActivationQuantizer[Any], case: Planted) -> float:
    """Returns the signal-to-noise ratio in dB that the sizes and the method's steps predict."""
    sizes, params = case.sizes.double(), quantizer.params
    if quantizer.name in ("dynamic", "smooth", "rotated"):
        error = _dynamic(quantizer, sizes)
    else:
        largest = sizes.max().expand_as(sizes)
        if quantizer.name == "dgq":
            largest = _grouped(case)
        elif quantizer.name == "sorted":
            order, largest = sizes.amax(0).argsort(stable=True), torch.empty_like(sizes)
            for members in order.split(params.block):
                largest[:, members] = sizes[:, members].max()
        elif params.granularity == "channel":
            largest = sizes.amax(0).expand_as(sizes)
        error = uniform_error(sizes, 2 * largest / ((1 << quantizer.bits) - 1))
    return 10 * math.log10(float((sizes.square() / 3).mean() / error.mean()))


def _grouped(case: Planted) -> torch.Tensor:
    """Returns the largest size in each value's group: outliers and others, on the axis of D."""
    sizes = case.sizes.double()
    spreads = [sizes.amax(axis).max() - sizes.amax(axis).min() for axis in (0, 1)]
    return sizes.amax(int(spreads[1] > spreads[0]), keepdim=True).expand_as(sizes)


def _dynamic(quantizer: ActivationQuantizer[Any], sizes: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared error of each value when every row has its own range.

    Smoothed, a value is of size m / f and its error is multiplied by f. Rotated, the values of a
    block are Gaussian with the block's mean power. The range is the expected one, 2 E[max].
    """
    factors = torch.ones(CHANNELS, dtype=torch.float64)
    if quantizer.smooths:
        factors = sizes.amax(0).sqrt()  # α = ½, columns of the weight alike
    site, levels = Site(channels=CHANNELS, positions=POSITIONS), (1 << quantizer.bits) - 1
    smoothed, block = sizes / factors, quantizer.rotation_block(site)
    if not block:
        steps = 2 * expected_largest(smoothed, _uniform_share) / levels
        return uniform_error(smoothed, steps[:, None]) * factors.square()
    powers = (smoothed.square() / 3).unflatten(1, (-1, block)).mean(2)  # [positions, blocks]
    deviations = powers.sqrt().repeat_interleave(block, 1)
    steps = 2 * expected_largest(deviations, _gaussian_share) / levels
    return gaussian_error(deviations, steps[:, None]) * factors.square()


def uniform_error(sizes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Returns the mean square of x − s round(x / s) for x uniform on ± its size.

    With n = round(size / s) and r = size − n s: (n s³ / 12 + r³ / 3) / size, about s² / 12.
    """
    whole = torch.round(sizes / steps)
    return (whole * steps**3 / 12 + (sizes - whole * steps) ** 3 / 3) / sizes


def gaussian_error(deviations: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Returns the mean square of x − s round(x / s) for Gaussian x.

    s²/12 + s²/π² Σ_k (−1)^k / k² exp(−2 π² k² σ² / s²), the Fourier series of the squared sawtooth
    (Sripad and Snyder 1977).
    """
    ratio = (deviations / steps).square()
    error = torch.full_like(ratio, 1 / 12)
    for k in range(1, 40):
        error = error + (-1) ** k / (math.pi * k) ** 2 * torch.exp(-2 * (math.pi * k) ** 2 * ratio)
    return error * steps**2


def expected_largest(
    sizes: torch.Tensor, share: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Returns E[max] of independent values, [rows]: the integral of 1 − Π F(x / size) over x > 0.

    Args:
        sizes: [rows, channels].
        share: F, the share of values below x where the size is 1.
    """
    different, which = sizes.unique(dim=0, return_inverse=True)
    parts = torch.linspace(0, 1, 1201, dtype=torch.float64)
    found: list[torch.Tensor] = []
    for row in different:
        end = 6 * row.max()
        below = share(parts[:, None] * end / row).log().sum(1).exp()
        found.append(torch.trapezoid(1 - below, parts) * end)
    return torch.stack(found)[which]


def _uniform_share(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) / 2).clamp(0, 1)


def _gaussian_share(x: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtr(x)


def _ranges(rows: torch.Tensor) -> InputRanges:
    return InputRanges(
        timesteps=torch.tensor([500.0]),
        channel_low=rows.amin((0, 1))[None],
        channel_high=rows.amax((0, 1))[None],
        position_low=rows.amin((0, 2))[None],
        position_high=rows.amax((0, 2))[None],
    )


def _hadamard(rows: torch.Tensor, block: int) -> torch.Tensor:
    return kernels.hadamard(rows.reshape(-1, CHANNELS).contiguous(), block).reshape(rows.shape)
