"""How far a picture is from the reference's: every number, and the two maps of where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from vqdq.jobs.draw import save_png
from vqdq.jobs.results import Distance
from vqdq.metrics import images
from vqdq.metrics.flip import Flip, flip
from vqdq.metrics.images import Map

if TYPE_CHECKING:
    from PIL.Image import Image

ERROR_SCALE = 0.25  # a channel error that is drawn at full brightness; larger ones are as bright
_MAGMA = (
    "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779"
    " d0416f e75263 f56b5c fc8961 fea772 fec488 fde2a3 fcfdbf"
)
"""Magma at 17 equal places (Smith and van der Walt, CC0): black is no error, light is the most."""


def between(
    first: Image, second: Image, latents: tuple[torch.Tensor, torch.Tensor]
) -> tuple[Distance, Flip]:
    """Returns the numbers for two pictures and their final latents, and the FLIP error by pixel.

    Raises:
        UserError: pictures of different sizes.
    """
    found = images.compare(first, second).to_json()
    seen = flip(first, second)
    a, b = latents
    comparable = a.shape == b.shape and a.numel() > 0
    distance = Distance(
        psnr=found["psnr_db"],
        ssim=cast(float, found["ssim"]),
        mean_error=cast(float, found["mean_error"]),
        max_error=cast(float, found["max_error"]),
        changed=cast(float, found["changed"]),
        flip=seen.mean,
        latent_cosine=images.cosine(a, b) if comparable else None,
    )
    return distance, seen


def save_error_map(path: Path, first: Image, second: Image) -> None:
    """Writes the mean absolute channel error: black is equal, white is `ERROR_SCALE` or more.

    Raises:
        UserError: pictures of different sizes, or a full disk.
    """
    from PIL import Image as pil

    error = images.error_map(first, second)  # [h, w] in 0 ... 1
    grey = np.round(255 * np.clip(error / ERROR_SCALE, 0, 1)).astype(np.uint8)
    save_png(path, pil.fromarray(grey))


def save_flip_map(path: Path, error: Map) -> None:
    """Writes a FLIP error of 0 ... 1 in the colours of magma.

    Raises:
        UserError: a full disk.
    """
    from PIL import Image as pil

    save_png(path, pil.fromarray(magma(error)))


def magma(values: Map) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns values of 0 ... 1 as colours, [h, w, 3]; within 3 of 255 of the published table."""
    stops = np.array([list(bytes.fromhex(code)) for code in _MAGMA.split()], dtype=np.float64)
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, places, stops[:, i]) for i in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
