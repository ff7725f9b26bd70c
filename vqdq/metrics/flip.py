"""ꟻLIP: how visible a difference is when a person flips between two pictures.

Andersson, Nilsson, Akenine-Möller, Oskarsson, Åström and Fairchild, "ꟻLIP: A Difference Evaluator
for Alternating Images", Proc. ACM Comput. Graph. Interact. Tech. 3(2), 2020, the version for low
dynamic range. Every function names its section there. The measure looks at pictures as an eye
does from a distance: what is too fine to be seen is filtered away first, then colours are
compared, and differences on edges and points count for more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vqdq.metrics.images import Map, Picture, pair

PIXELS_PER_DEGREE = 67.0
"""A 4K screen 0.7 m wide, seen from 0.7 m: the paper's default, 0.7 · 3840 / 0.7 · π / 180."""

_QC, _PC, _PT, _QF = 0.7, 0.4, 0.95, 0.5  # section 4.1.3 (q_c, p_c, p_t) and 4.3 (q_f)
_FEATURE_DEGREES = 0.082  # width of an edge detector, section 4.2
_CONTRAST = {  # a1, b1, a2, b2 of each opponent channel, table 1
    "A": (1.0, 0.0047, 0.0, 1e-5),
    "RG": (1.0, 0.0053, 0.0, 1e-5),
    "BY": (34.1, 0.04, 13.5, 0.025),
}
_TO_XYZ = torch.tensor(  # linear sRGB to XYZ, D65, as the paper's own code has it
    [
        [10135552 / 24577794, 8788810 / 24577794, 4435075 / 24577794],
        [2613072 / 12288897, 8788810 / 12288897, 887015 / 12288897],
        [1425312 / 73733382, 8788810 / 73733382, 70074185 / 73733382],
    ],
    dtype=torch.float64,
)
_WHITE = _TO_XYZ.sum(dim=1)[:, None, None]  # XYZ of (1, 1, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """Visible difference of two pictures: `error`, [h, w] in 0 ... 1, and its mean."""

    error: Map
    mean: float


def flip(
    reference: Picture, test: Picture, *, pixels_per_degree: float = PIXELS_PER_DEGREE
) -> Flip:
    """Returns the visible difference of each pixel in 0 ... 1, and the mean; 0 for equal pictures.

    Args:
        reference, test: sRGB or grey pictures of one size; the order does not matter.
        pixels_per_degree: pixels in one degree of the viewer's sight.

    Raises:
        UserError: pictures of different sizes.
        ValueError: `pixels_per_degree` is not positive.
    """
    if not pixels_per_degree > 0:
        raise ValueError(f"{pixels_per_degree} pixels per degree")
    first, second = (_opponent(values) for values in pair(reference, test))
    colour = _colour_difference(first, second, pixels_per_degree)
    feature = _feature_difference(first[:1], second[:1], pixels_per_degree)
    error = colour.pow(1 - feature)[0].numpy()  # section 4.3
    return Flip(error=error, mean=float(error.mean()))


def _colour_difference(first: Tensor, second: Tensor, ppd: float) -> Tensor:
    """Section 4.1: HyAB distance of what the eye resolves, spread over 0 ... 1; [1, h, w]."""
    distance = _hyab(_uniform(_seen(first, ppd)), _uniform(_seen(second, ppd))).pow(_QC)
    # The largest distance in sRGB is between green and blue.
    green, blue = (torch.tensor(c, dtype=torch.float64)[:, None, None] for c in _EXTREMES)
    largest = float(_hyab(_uniform(green), _uniform(blue)).pow(_QC))
    knee = _PC * largest
    low = distance * (_PT / knee)
    high = _PT + (distance - knee) / (largest - knee) * (1 - _PT)
    return torch.where(distance < knee, low, high)


_EXTREMES = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def _feature_difference(first: Tensor, second: Tensor, ppd: float) -> Tensor:
    """Section 4.2: what became an edge or a point, or stopped being one; [1, h, w] in 0 ... 1."""
    edges, points = (
        (_strength(first, kind, ppd) - _strength(second, kind, ppd)).abs() for kind in (1, 2)
    )
    return (torch.maximum(edges, points) / math.sqrt(2)).pow(_QF)


def _strength(luminance: Tensor, order: int, ppd: float) -> Tensor:
    """Length of the first (edges) or second (points) derivative of a Gaussian's response."""
    values = (luminance + 16) / 116  # to 0 ... 1
    deviation = 0.5 * _FEATURE_DEGREES * ppd
    x = _offsets(math.ceil(3 * deviation))
    bell = (-(x**2) / (2 * deviation**2)).exp()
    slope = (-x if order == 1 else x**2 / deviation**2 - 1) * bell
    # Positive weights sum to 1 and negative ones to -1.
    slope = torch.where(slope < 0, slope / -slope[slope < 0].sum(), slope / slope[slope > 0].sum())
    bell = bell / bell.sum()
    across, along = _filtered(values, slope, bell), _filtered(values, bell, slope)
    return (across.square() + along.square()).sqrt()


def _seen(opponent: Tensor, ppd: float) -> Tensor:
    """Section 4.1.1: YCxCz after the eye's contrast sensitivity, as linear RGB, clipped."""
    planes = [
        _sensitivity(opponent[i : i + 1], channel, ppd) for i, channel in enumerate(_CONTRAST)
    ]
    return _to_linear(torch.cat(planes)).clamp(0, 1)


def _sensitivity(plane: Tensor, channel: str, ppd: float) -> Tensor:
    """One opponent channel filtered: a sum of Gaussians, each of which is separable."""
    widest = max(b for _, b1, _, b2 in _CONTRAST.values() for b in (b1, b2))
    x = _offsets(math.ceil(3 * math.sqrt(widest / (2 * math.pi**2)) * ppd)) / ppd  # degrees
    a1, b1, a2, b2 = _CONTRAST[channel]
    parts: list[tuple[float, Tensor]] = []
    for a, b in ((a1, b1), (a2, b2)):
        if a:
            parts.append((a * math.sqrt(math.pi / b), (-(math.pi**2) * x**2 / b).exp()))
    total = sum(weight * float(bell.sum()) ** 2 for weight, bell in parts)
    filtered = [_filtered(plane, bell, bell) * (weight / total) for weight, bell in parts]
    return torch.stack(filtered).sum(dim=0)


def _uniform(linear: Tensor) -> Tensor:
    """Section 4.1.2: linear RGB to L*a*b* with Hunt's adjustment, [3, ...]."""
    ratio = torch.einsum("ij,jhw->ihw", _TO_XYZ, linear) / _WHITE
    delta = 6 / 29
    curve = torch.where(
        ratio > delta**3, ratio.clamp(min=0).pow(1 / 3), ratio / (3 * delta**2) + 4 / 29
    )
    x, y, z = curve
    lightness = 116 * y - 16
    fades = 0.01 * lightness  # colours fade in the dark
    return torch.stack((lightness, fades * 500 * (x - y), fades * 200 * (y - z)))


def _hyab(first: Tensor, second: Tensor) -> Tensor:
    """Section 4.1.3: city-block distance in lightness plus Euclidean in colour, [1, ...]."""
    difference = first - second
    return difference[:1].abs() + difference[1:].norm(dim=0, keepdim=True)


def _opponent(values: Map) -> Tensor:
    """sRGB [h, w, 1 or 3] in 0 ... 1 to YCxCz [3, h, w] (section 4.1.1)."""
    picture = torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)
    picture = picture[:3] if picture.shape[0] >= 3 else picture[:1].expand(3, -1, -1)
    linear = torch.where(
        picture > 0.04045, ((picture.clamp(min=0) + 0.055) / 1.055).pow(2.4), picture / 12.92
    )
    x, y, z = torch.einsum("ij,jhw->ihw", _TO_XYZ, linear) / _WHITE
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)))


def _to_linear(opponent: Tensor) -> Tensor:
    """YCxCz to linear RGB, [3, h, w]."""
    luminance, red, blue = opponent
    y = (luminance + 16) / 116
    xyz = torch.stack((y + red / 500, y, y - blue / 200)) * _WHITE
    return torch.einsum("ij,jhw->ihw", _from_xyz(), xyz)


@cache
def _from_xyz() -> Tensor:
    return torch.linalg.inv(_TO_XYZ)


def _offsets(radius: int) -> Tensor:
    return torch.arange(-radius, radius + 1, dtype=torch.float64)


def _filtered(plane: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """[1, h, w] correlated with `across` along rows and `down` along columns; edges repeat."""
    radius = across.numel() // 2
    padded = torch.nn.functional.pad(plane[None], (radius,) * 4, mode="replicate")
    rows = torch.nn.functional.conv2d(padded, across[None, None, None, :])
    return torch.nn.functional.conv2d(rows, down[None, None, :, None])[0]
