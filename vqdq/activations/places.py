"""Which calibrated position each position of an input stands for, at any resolution."""

from __future__ import annotations

from math import isqrt, log

import torch


def places(known: int, given: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
    """Returns the calibrated position of each position, int64 [given].

    Feature maps are resized by nearest neighbour: those of a convolution by their shape, tokens as
    square maps where both counts are squares, else along the raster where the calibrated count is a
    square. Other tokens are text: each keeps its place, and those beyond take the last one.

    Args:
        known: positions that were calibrated, at least 1.
        given: positions now.
        shape: height and width now, of a convolution's feature map; None for tokens.
    """
    if shape is not None:
        height, width = _map(known, shape)
        down, across = _nearest(height, shape[0]), _nearest(width, shape[1])
        return (down[:, None] * width + across).reshape(-1)
    side = isqrt(known)
    if given == known or side * side != known:
        return torch.arange(given).clamp_max(known - 1)
    now = isqrt(given)
    if now * now != given:
        return _nearest(known, given)
    line = _nearest(side, now)
    return (line[:, None] * side + line).reshape(-1)


def _map(known: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of the calibrated map: square where it can be, else the pair of

    factors whose ratio is nearest to that of `shape`.
    """
    side = isqrt(known)
    if side * side == known:
        return side, side
    wanted = log(shape[0] / shape[1])
    heights = [part for part in range(1, known + 1) if known % part == 0]
    height = min(heights, key=lambda part: abs(log(part * part / known) - wanted))
    return height, known // height


def _nearest(known: int, given: int) -> torch.Tensor:
    """Returns the cell of `known` that holds the centre of each of `given` cells, int64 [given]."""
    return (2 * torch.arange(given) + 1) * known // (2 * given)
