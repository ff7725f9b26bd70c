"""A part of the picture that a person marked, as weights on what the denoiser predicts."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from vqdq.errors import UserError


def region_weights(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Returns how much of each place of a prediction lies in the region, float32, broadcastable.

    Args:
        mask: of the picture, [h, w], bool or 0 to 1. It may have any size: it is averaged over the
            pixels of each place, so a half-covered place counts half.
        shape: of the prediction: [batch, channels, h, w], or [batch, tokens, channels] of a
            transformer whose tokens are the rows of a grid in the mask's own proportions.

    Raises:
        UserError: a mask that is not two-dimensional, has values outside 0 to 1 or marks nothing;
            tokens that form no such grid.
    """
    if mask.ndim != 2 or not mask.numel():
        raise UserError(
            f"a mask of the shape {list(mask.shape)} is no picture.",
            where="region",
            remedy="Use one value a pixel, [height, width].",
        )
    values = mask.detach().float().cpu()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise UserError(
            "the mask has values outside 0 to 1.", where="region", remedy="Use 0 and 1."
        )
    side = _grid(shape, mask.shape[0] / mask.shape[1])
    weights = functional.adaptive_avg_pool2d(values[None, None], side)  # [1, 1, h, w]
    if float(weights.max()) == 0:
        raise UserError(
            "nothing is marked.", where="region", remedy="Draw over the part that looks wrong."
        )
    return weights if len(shape) == 4 else weights.reshape(1, -1, 1)


def _grid(shape: tuple[int, ...], proportion: float) -> tuple[int, int]:
    """Returns height and width of the places of a prediction."""
    if len(shape) == 4:
        return shape[2], shape[3]
    if len(shape) == 3:
        height = round(math.sqrt(shape[1] * proportion))
        if height > 0 and shape[1] % height == 0:
            return height, shape[1] // height
    raise UserError(
        f"predictions of the shape {list(shape)} have no places that a mask could mean.",
        where="region",
        remedy="Use a mask of the picture's own proportions.",
    )
