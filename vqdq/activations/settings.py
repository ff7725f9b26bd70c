"""What several quantizers share: settings with one wording, and ranges kept at noise levels."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vqdq.activations.base import interpolated
from vqdq.params import param
from vqdq.tensors import TensorSpec


def bits_setting() -> int:
    """Returns the declaration of an activation's bits."""
    return param(8, label="Bits of an activation", unit="bits", low=4, high=8)


def levels_setting(what: str = "Ranges") -> int:
    """Returns the declaration of the number of noise levels."""
    return param(
        8,
        label="Noise levels",
        help=f"{what} are kept at so many noise levels, and interpolated between them.",
        low=1,
        high=64,
        advanced=True,
    )


def scale_setting() -> str:
    """Returns the declaration of what shares a range in a plain quantizer."""
    return param(
        "token",
        label="A range for each",
        help="Token (before a convolution: picture, or pixel, which is slower) as it comes, or the"
        " tensor, calibrated.",
        choices=("token", "pixel", "tensor"),
    )


def small_setting() -> bool:
    """Returns the declaration of the switch that leaves small layers alone."""
    return param(
        True,
        label="Small layers too",
        help="Off: layers with fewer than 4 million products a picture, which 8 bits make no"
        " faster, keep 16 bits.",
        advanced=True,
    )


def range_specs(levels: int, *shape: int) -> list[TensorSpec]:
    """Returns the stored tensors of ranges [levels, *shape] with the timesteps of the levels."""
    return [
        TensorSpec(name="timesteps", dtype=torch.float32, shape=(levels,)),
        TensorSpec(name="low", dtype=torch.float32, shape=(levels, *shape)),
        TensorSpec(name="high", dtype=torch.float32, shape=(levels, *shape)),
    ]


def range_at(
    stored: Mapping[str, torch.Tensor], timestep: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns low and high at a timestep, interpolated; without one, what covers all levels."""
    low, high = stored["low"], stored["high"]
    if timestep is None:
        return low.amin(0), high.amax(0)
    times = stored["timesteps"]
    return interpolated(times, low, timestep), interpolated(times, high, timestep)
