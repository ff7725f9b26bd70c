"""Two pictures of one seed, compared: PSNR, SSIM, the error map; latents by angle and SQNR.

Full-reference metrics on values in 0 ... 1. They say how much a picture changed, not whether it
became worse.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vqdq.errors import UserError

Picture: TypeAlias = Image.Image | npt.NDArray[np.generic] | Tensor
"""PIL, or [h, w] or [h, w, channels] as uint8 in 0 ... 255 or as floats in 0 ... 1."""

Map: TypeAlias = npt.NDArray[np.float64]

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMetrics:
    """Distance between two pictures.

    Attributes:
        psnr_db: inf for equal pictures; `ssim`: 1 for equal pictures.
        mean_error, max_error: absolute difference of channels in 0 ... 1.
        changed: share of the pixels that differ at all.
    """

    psnr_db: float
    ssim: float
    mean_error: float
    max_error: float
    changed: float

    @property
    def identical(self) -> bool:
        """True when every pixel is the same."""
        return self.changed == 0

    def to_json(self) -> dict[str, float | None]:
        """Returns the numbers as JSON values; null where JSON has no infinity."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def compare(a: Picture, b: Picture) -> ImageMetrics:
    """Returns the distance between two pictures of one size.

    Raises:
        UserError: sizes that differ, or pictures smaller than the SSIM window.
    """
    first, second = pair(a, b)
    difference = np.abs(first - second)
    return ImageMetrics(
        psnr_db=psnr(first, second),
        ssim=ssim(first, second),
        mean_error=float(difference.mean()),
        max_error=float(difference.max()),
        changed=float((difference.max(axis=2) > 0).mean()),
    )


def psnr(a: Picture, b: Picture) -> float:
    """Returns 10·log10(1 / mean squared error) in dB over all channels; inf for equal pictures.

    Raises:
        UserError: sizes that differ.
    """
    first, second = pair(a, b)
    error = float(np.square(first - second).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Picture, b: Picture) -> float:
    """Returns the mean structural similarity over positions and channels; 1 for equal pictures.

    Wang, Bovik, Sheikh and Simoncelli 2004 (IEEE TIP 13(4), section III-C): 11×11 Gaussian window
    with σ = 1.5, K1 = 0.01, K2 = 0.03, population variances, only windows inside the picture.
    Deviation: the paper takes luminance of 8 bits, this is the mean over the channels.

    Raises:
        UserError: sizes that differ, or pictures smaller than the window.
    """
    return float(ssim_map(a, b).mean())


def ssim_map(a: Picture, b: Picture) -> Map:
    """Returns the structural similarity at each window, mean over channels, [h - 10, w - 10].

    Raises:
        UserError: as `ssim`.
    """
    first, second = pair(a, b)
    if min(first.shape[:2]) < _WINDOW:
        raise UserError(
            f"SSIM looks at windows of {_WINDOW} pixels, the picture has "
            f"{first.shape[1]} × {first.shape[0]}.",
            where="picture",
            remedy=f"Compare pictures of at least {_WINDOW} × {_WINDOW} pixels.",
        )
    mean_a, mean_b = _blur(first), _blur(second)
    var_a = _blur(first * first) - mean_a**2
    var_b = _blur(second * second) - mean_b**2
    cov = _blur(first * second) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(axis=2)


def error_map(a: Picture, b: Picture) -> Map:
    """Returns the absolute difference of each pixel, mean over channels, [h, w] in 0 ... 1.

    Raises:
        UserError: sizes that differ.
    """
    first, second = pair(a, b)
    return np.abs(first - second).mean(axis=2)


def cosine(a: Tensor, b: Tensor) -> float:
    """Returns the cosine of the angle between two latents of any shape; NaN when one is zero."""
    x, y = a.detach().double().flatten(), b.detach().double().flatten()
    norm = float(x.norm() * y.norm())
    return float(x @ y) / norm if norm > 0 else math.nan


def sqnr_db(reference: Tensor, changed: Tensor) -> float:
    """Returns 10·log10(‖x‖² / ‖x − x̂‖²) in dB; inf when nothing changed."""
    x, y = reference.detach().double(), changed.detach().double()
    noise = float((x - y).square().sum())
    signal = float(x.square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def pair(a: Picture, b: Picture) -> tuple[Map, Map]:
    """Returns both pictures as float64 in 0 ... 1, [h, w, channels].

    Raises:
        UserError: sizes that differ.
    """
    first, second = _values(a), _values(b)
    if first.shape != second.shape:
        sizes = [f"{x.shape[1]} × {x.shape[0]} × {x.shape[2]}" for x in (first, second)]
        raise UserError(
            f"The pictures have different sizes: {sizes[0]} and {sizes[1]}.",
            where="picture",
            remedy="Draw both at one size.",
        )
    return first, second


def _values(picture: Picture) -> Map:
    """The picture as float64 in 0 ... 1, [h, w, channels]."""
    if isinstance(picture, Image.Image):
        mode = picture.mode if picture.mode in ("L", "RGB") else "RGB"
        picture = np.asarray(picture.convert(mode))
    elif isinstance(picture, Tensor):
        picture = cast(npt.NDArray[np.generic], picture.detach().cpu().numpy())
    values = picture.astype(np.float64)
    if picture.dtype == np.uint8:
        values = values / 255
    return values[:, :, None] if values.ndim == 2 else values


def _blur(x: Map) -> Map:
    """Gaussian means of the windows inside the picture, [h - 10, w - 10, channels]."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = torch.from_numpy(weights / weights.sum())
    planes = torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[:, None]
    rows = torch.nn.functional.conv2d(planes, kernel[None, None, :, None])
    both = torch.nn.functional.conv2d(rows, kernel[None, None, None, :])
    return both[:, 0].permute(1, 2, 0).numpy()
