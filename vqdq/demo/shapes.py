"""Signed distances of the shapes that scenes are made of.

Each function takes coordinates in radii (x to the right, y down) and returns the distance to the
outline in radii, negative inside. Formulas after Inigo Quilez, "2D distance functions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating[Any]]


def circle(x: Plane, y: Plane) -> Plane:
    """Distance to a circle of radius 0.98."""
    return np.hypot(x, y) - np.float32(0.98)


def ring(x: Plane, y: Plane) -> Plane:
    """Distance to a ring between radii 0.44 and 1."""
    return np.abs(np.hypot(x, y) - np.float32(0.72)) - np.float32(0.28)


def square(x: Plane, y: Plane) -> Plane:
    """Distance to a square of half width 0.88, corners rounded by 0.04."""
    dx = np.abs(x) - np.float32(0.84)
    dy = np.abs(y) - np.float32(0.84)
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(0.04)


def triangle(x: Plane, y: Plane) -> Plane:
    """Distance to a triangle that points up, two radii wide and 1.8 high."""
    return polygon(x, y, _TRIANGLE)


def star(x: Plane, y: Plane) -> Plane:
    """Distance to a star of five points, one of them up."""
    return polygon(x, y, _STAR)


def heart(x: Plane, y: Plane) -> Plane:
    """Distance to a heart about two radii wide."""
    scale = np.float32(0.61)  # Quilez's heart is 1.2 wide and 1.1 high, its tip at the origin, y up
    u = np.abs(x) * scale
    v = np.float32(0.56) - y * scale
    lobe = np.hypot(u - np.float32(0.25), v - np.float32(0.75)) - np.float32(np.sqrt(2) / 4)
    half = np.float32(0.5) * np.maximum(u + v, 0)
    near = np.minimum(np.hypot(u, v - 1), np.hypot(u - half, v - half))
    return np.where(u + v > 1, lobe, near * np.sign(u - v)) / scale


def polygon(x: Plane, y: Plane, corners: Plane) -> Plane:
    """Distance to a closed polygon with `corners` [n, 2]."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    nearest = np.full(shape, np.inf, np.float32)
    inside = np.zeros(shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        crosses = (y >= ay) != (y >= by)
        inside ^= crosses & ((ex * wy - ey * wx > 0) != (by > ay))
    return np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)


def _star_corners() -> NDArray[np.float32]:
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.5)
    corners = np.stack([radius * np.sin(angle), 0.06 - radius * np.cos(angle)], axis=1)
    return corners.astype(np.float32)


_STAR = _star_corners()
_TRIANGLE = np.array([[0.0, -0.98], [1.04, 0.82], [-1.04, 0.82]], np.float32)

SIGNED_DISTANCE: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "ring": ring,
}
"""The shapes of the world by name."""
