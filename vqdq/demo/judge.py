"""Whether a picture shows what its caption asks, decided from pixels alone, by rule.

`detect` never sees the caption: it finds the background, separates objects from it by colour, and
names each object's colour, shape (the best of all shapes at the object's place and area), and size.
`judge` then compares what was found with what was asked. It is right on more than 99.5 % of
rendered scenes (tests/demo/test_judge.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vqdq.demo import scenes, shapes

_SIDE = 128  # every picture is judged at this size, so all lengths below are in scene units
_MIN_OBJECT = 60  # pixels; the smallest shape has about 500
_MIN_OVERLAP = 0.8  # intersection over union with the ideal shape
_MIN_PURE = 0.7  # share of an object's pixels that agree on its colour
_SHADOW = 14  # pixels around an object in which the background is not looked at
_FRAME = 6  # width of the border that tells the background's colour
_MAX_BACKGROUND_DISTANCE = 30.0  # sRGB levels, Euclidean
_UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An object in a picture; lengths in 1/128 of the picture's width, `overlap` in 0..1."""

    size: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Detection:
    """What a picture shows; a word is "unknown" where no rule decides."""

    objects: tuple[Found, ...]
    pattern: str
    background: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Which attributes of a caption a picture shows."""

    count: bool
    shapes: bool
    colours: bool
    sizes: bool
    relation: bool
    background: bool

    @property
    def passed(self) -> bool:
        """True where every attribute is right."""
        return (
            self.count
            and self.shapes
            and self.colours
            and self.sizes
            and self.relation
            and self.background
        )


def judge(image: NDArray[np.uint8], scene: scenes.Scene) -> Verdict:
    """The verdict on `image` (uint8 sRGB [h, w, 3], both at least 64) for the caption of `scene`.

    Objects are matched to the caption in the way that suits it best. `relation` holds for one
    object; with a missing object every attribute of objects fails.
    """
    seen = detect(image)
    asked = scene.objects
    best = (False, False, False, False)
    for chosen in itertools.permutations(seen.objects[:4], len(asked)):
        pairs = list(zip(chosen, asked, strict=True))
        match = (
            all(found.colour == item.colour for found, item in pairs),
            all(found.shape == item.shape for found, item in pairs),
            all(found.size == item.size for found, item in pairs),
            scene.relation is None or relation_of(chosen[0], chosen[1]) == scene.relation,
        )
        best = max(best, match, key=lambda held: (sum(held), held))
    return Verdict(
        count=len(seen.objects) == len(asked),
        colours=best[0],
        shapes=best[1],
        sizes=best[2],
        relation=best[3],
        background=(seen.pattern, seen.background) == (scene.pattern, scene.background),
    )


def detect(image: NDArray[np.uint8]) -> Detection:
    """What `image` (uint8 sRGB [h, w, 3]) shows, largest object first.

    Raises:
        ValueError: where a side is shorter than 64 pixels or the picture is not square.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[0] < 64:
        raise ValueError(
            f"a picture of shape {image.shape}; expected [n, n, 3] with n of 64 or more"
        )
    pixels = _resized(image)
    background = _background_colour(pixels)
    names, palette = _palette(background)
    nearest = _nearest(pixels, palette)
    foreground = nearest < len(scenes.OBJECT_COLOURS)
    labels, areas = _components(foreground)
    order = [int(label) for label in np.argsort(-areas) if areas[label] >= _MIN_OBJECT]
    objects = tuple(_found(labels == label, nearest, names) for label in order)
    pattern = _pattern(pixels, foreground, background) if background != _UNKNOWN else _UNKNOWN
    return Detection(objects=objects, pattern=pattern, background=background)


def relation_of(first: Found, second: Found) -> str:
    """Where `first` lies as seen from `second`."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"


def _resized(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    if image.shape[0] == _SIDE:
        return image.astype(np.float32)
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    mode = "area" if image.shape[0] > _SIDE else "bilinear"
    return functional.interpolate(batch, (_SIDE, _SIDE), mode=mode)[0].permute(1, 2, 0).numpy()


def _background_colour(pixels: NDArray[np.float32]) -> str:
    """The background whose colour is nearest to the median of the border."""
    inner = slice(_FRAME, -_FRAME)
    border = np.ones((_SIDE, _SIDE), bool)
    border[inner, inner] = False
    middle = np.median(pixels[border], axis=0)
    distance = {
        name: min(float(np.linalg.norm(middle - tone)) for tone in scenes.background_tones(name))
        for name in scenes.BACKGROUND_COLOURS
    }
    name = min(distance, key=distance.__getitem__)
    return name if distance[name] <= _MAX_BACKGROUND_DISTANCE else _UNKNOWN


@cache
def _palette(
    background: str,
) -> tuple[tuple[str, ...], tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Names of the object colours, and reference tones [n, 3] with the class [n] of each.

    Classes from 0 on are object colours; the class after the last one is the background, whose
    tones include its pattern and its shadow.
    """
    names = tuple(scenes.OBJECT_COLOURS)
    tones: list[NDArray[np.float32]] = []
    classes: list[int] = []
    for index, colour in enumerate(scenes.OBJECT_COLOURS.values()):
        for light in (0.85, 1.0, 1.13):
            tones.append(np.clip(np.array(colour, np.float32) * np.float32(light), 0, 255))
            classes.append(index)
    for tone in scenes.background_tones(background) if background != _UNKNOWN else ():
        for light in (0.66, 0.77, 0.88, 1.0):
            tones.append(tone * np.float32(light))
            classes.append(len(names))
    return names, (np.stack(tones), np.array(classes))


def _nearest(
    pixels: NDArray[np.float32], palette: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """The class [h, w] of the reference tone nearest to each pixel."""
    tones, classes = palette
    flat = pixels.reshape(-1, 3)
    distance = (tones**2).sum(1) - 2 * flat @ tones.T  # [pixels, tones], up to a constant
    return classes[distance.argmin(1)].reshape(pixels.shape[:2])


@numba.njit(cache=True)
def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels [h, w] of the 4-connected parts of `mask` (0 outside) and their areas (area of 0 is
    0)."""
    height, width = mask.shape
    labels = np.zeros((height, width), np.int64)
    areas = np.zeros(height * width // 2 + 2, np.int64)
    stack = np.empty((height * width, 2), np.int64)
    count = 0
    for row in range(height):
        for column in range(width):
            if not mask[row, column] or labels[row, column] != 0:
                continue
            count += 1
            labels[row, column] = count
            stack[0, 0], stack[0, 1] = row, column
            depth = 1
            while depth > 0:
                depth -= 1
                y, x = stack[depth, 0], stack[depth, 1]
                areas[count] += 1
                for step in range(4):
                    v = y + (step == 0) - (step == 1)
                    u = x + (step == 2) - (step == 3)
                    inside = 0 <= v < height and 0 <= u < width
                    if inside and mask[v, u] and labels[v, u] == 0:
                        labels[v, u] = count
                        stack[depth, 0], stack[depth, 1] = v, u
                        depth += 1
    return labels, areas[: count + 1]


def _found(mask: NDArray[np.bool_], nearest: NDArray[np.int64], names: tuple[str, ...]) -> Found:
    """The object that covers `mask`."""
    votes = np.bincount(nearest[mask], minlength=len(names))
    colour = names[int(votes.argmax())] if votes.max() >= _MIN_PURE * mask.sum() else _UNKNOWN
    rows, columns = np.nonzero(mask)
    area, x, y = len(rows), float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
    overlaps: dict[str, tuple[float, float]] = {}
    for shape, (unit_area, offset_x, offset_y) in _moments().items():
        radius = (area / unit_area) ** 0.5
        overlap = _overlap(mask, shape, x - offset_x * radius, y - offset_y * radius, radius)
        overlaps[shape] = (overlap, radius)
    shape = max(overlaps, key=lambda name: overlaps[name][0])
    overlap, radius = overlaps[shape]
    return Found(
        size=_size(radius),
        colour=colour,
        shape=shape if overlap >= _MIN_OVERLAP else _UNKNOWN,
        x=x,
        y=y,
        radius=radius,
        overlap=overlap,
    )


def _size(radius: float) -> str:
    """The nearest nominal size; a radius 6 units from both is neither."""
    name = min(scenes.SIZES, key=lambda size: abs(scenes.SIZES[size] - radius))
    return name if abs(scenes.SIZES[name] - radius) < 6 else _UNKNOWN


def _overlap(mask: NDArray[np.bool_], shape: str, x: float, y: float, radius: float) -> float:
    """Intersection over union of `mask` and the ideal `shape`, in 0..1."""
    reach = int(radius * 1.2) + 4
    left, top = max(0, int(x) - reach), max(0, int(y) - reach)
    window = (slice(top, int(y) + reach), slice(left, int(x) + reach))
    part = mask[window]
    columns = (np.arange(part.shape[1], dtype=np.float32) + (left + 0.5 - x)) / radius
    rows = (np.arange(part.shape[0], dtype=np.float32) + (top + 0.5 - y)) / radius
    ideal = shapes.SIGNED_DISTANCE[shape](columns[None, :], rows[:, None]) < 0
    both = int(np.count_nonzero(part & ideal))
    return both / max(1, int(mask.sum()) + int(ideal.sum()) - both)


@cache
def _moments() -> dict[str, tuple[float, float, float]]:
    """Area (in squared radii) and centroid x, y (in radii) of each shape, by fine sampling."""
    axis = (np.arange(480, dtype=np.float32) + 0.5) / 200 - np.float32(1.2)
    moments: dict[str, tuple[float, float, float]] = {}
    for name, distance in shapes.SIGNED_DISTANCE.items():
        inside = distance(axis[None, :], axis[:, None]) < 0
        rows, columns = np.nonzero(inside)
        area = len(rows) / 200**2
        moments[name] = (area, float(axis[columns].mean()), float(axis[rows].mean()))
    return moments


def _pattern(pixels: NDArray[np.float32], foreground: NDArray[np.bool_], background: str) -> str:
    """The pattern whose strength, fitted by least squares away from objects, is near its nominal
    one."""
    clear = ~_widened(foreground, _SHADOW)
    if clear.sum() < 400:
        return _UNKNOWN
    base, accent = scenes.background_tones(background)
    contrast = accent.mean() - base.mean()
    rows = np.linspace(-1, 1, _SIDE, dtype=np.float32)[:, None].repeat(_SIDE, 1)
    stripes, dots = _pattern_weights()
    design = np.stack([np.ones_like(rows), rows, stripes, dots], axis=-1)[clear]  # [pixels, 4]
    light = pixels.mean(-1)[clear] - base.mean()
    gram = design.T @ design
    strength = np.linalg.solve(gram + 1e-3 * np.eye(4), design.T @ light)[2:] / contrast
    present = [bool(value > 0.5) for value in strength]
    if all(abs(float(value)) < 0.3 for value in strength):
        return "plain"
    if present == [True, False]:
        return "striped"
    return "dotted" if present == [False, True] else _UNKNOWN


@cache
def _pattern_weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axis = np.arange(_SIDE, dtype=np.float32) + 0.5
    x, y = axis[None, :], axis[:, None]
    return scenes.pattern_weight("striped", x, y), scenes.pattern_weight("dotted", x, y)


def _widened(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """`mask` grown by `reach` pixels in each direction (a square neighbourhood), by running
    sums."""
    side = 2 * reach + 1
    sums = np.pad(mask.astype(np.int32), reach).cumsum(0).cumsum(1)
    sums = np.pad(sums, ((1, 0), (1, 0)))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return inside > 0
