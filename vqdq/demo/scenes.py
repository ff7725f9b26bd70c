"""Captioned pictures of a small world, so that a picture can be checked against its caption by
rule.

A scene is one or two shapes on a coloured background. The world is small on purpose: few words,
well separated colours and sizes, little variation that the caption does not name. That is what a
diffusion model of 12 M weights can learn completely on two CPU cores.

Geometry is given in units of a picture 128 wide; `render` scales it to any size. Patterns repeat
every 16 or 32 units, so they line up with the 8-pixel grid of the autoencoder.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from vqdq.demo import shapes
from vqdq.errors import UserError

Split = Literal["train", "unseen", "held-out"]
"""`train`: what training may see. `unseen`: captions never trained, of trained shape-colour pairs.
`held-out`: captions with at least one shape-colour pair that was never trained."""

OBJECT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 52),
    "orange": (245, 124, 16),
    "yellow": (250, 208, 40),
    "green": (40, 158, 70),
    "teal": (20, 184, 190),
    "blue": (44, 98, 226),
    "purple": (132, 56, 190),
    "pink": (248, 134, 182),
}
"""sRGB, 0-255, of the middle of a shape."""

BACKGROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (246, 245, 241),
    "grey": (172, 178, 187),
    "sand": (232, 211, 174),
    "mint": (186, 226, 206),
    "navy": (30, 38, 74),
}
PATTERNS = ("plain", "striped", "dotted")
SHAPES = tuple(shapes.SIGNED_DISTANCE)
SIZES: dict[str, float] = {"small": 19.0, "large": 27.0}
"""Radius of a shape in units of 1/128 of the picture's width."""

RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Direction (x, y; y points down) from the second object to the first."""

HELD_OUT_PAIRS = frozenset(
    {
        ("red", "star"),
        ("yellow", "square"),
        ("green", "heart"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("orange", "ring"),
    }
)
"""Pairs of colour and shape that no training picture shows."""

VOCABULARY: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(OBJECT_COLOURS),
    "shape": SHAPES,
    "relation": tuple(RELATIONS),
    "pattern": PATTERNS,
    "background": tuple(BACKGROUND_COLOURS),
}
"""The words of the world by category."""

SYNONYMS: dict[str, str] = {
    "big": "large",
    "little": "small",
    "gray": "grey",
    "violet": "purple",
    "disc": "circle",
    "to the left of": "left of",
    "to the right of": "right of",
    "under": "below",
    "over": "above",
    "the": "a",
    "an": "a",
}
"""Other words the grammar understands, and the word each stands for."""

EXAMPLE_PROMPTS = (
    "a large red circle above a small blue square on a striped grey background",
    "a large pink heart on a plain navy background",
    "a small yellow star right of a large purple triangle on a dotted mint background",
    "a large teal ring left of a small orange circle on a plain sand background",
    "a small green square below a large yellow star on a plain navy background",
    "a large blue heart left of a large orange triangle on a dotted white background",
    "a small red heart above a large teal square on a striped mint background",
    "a large green ring on a dotted grey background",
)

_MARGIN = 3.0  # units between the middle of the picture and the nearest edge of an object
_JITTER = 3.0  # units an object may move in each direction
_SIZE_JITTER = 0.8  # units a radius may differ from its nominal value
_TWO_OBJECTS = 0.65  # share of scenes with two objects
_UNSEEN_SHARE = 16  # one caption in this many is kept out of training


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One shape of a scene."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a picture shows: one or two objects and a background.

    `relation` says where the first object is as seen from the second; None where there is one
    object.
    """

    objects: tuple[Item, ...]
    relation: str | None
    pattern: str
    background: str

    def __post_init__(self) -> None:
        if len(self.objects) not in (1, 2) or (self.relation is not None) != (
            len(self.objects) == 2
        ):
            raise ValueError(
                "a scene has one object and no relation, or two objects and a relation"
            )


def caption(scene: Scene) -> str:
    """The sentence that describes `scene`; `parse` reads it back."""
    first, *rest = (f"a {item.size} {item.colour} {item.shape}" for item in scene.objects)
    second = f" {scene.relation} {rest[0]}" if rest else ""
    return f"{first}{second} on a {scene.pattern} {scene.background} background"


def paraphrase(scene: Scene, generator: torch.Generator) -> str:
    """The caption of `scene` with some words replaced by synonyms; `parse` reads it to the same
    scene."""
    words = caption(scene)
    for synonym, word in SYNONYMS.items():
        if (
            word != "a"
            and f" {word} " in words
            and torch.rand((), generator=generator).item() < 0.5
        ):
            words = words.replace(f" {word} ", f" {synonym} ", 1)
    if torch.rand((), generator=generator).item() < 0.5:
        words = words.replace(" plain ", " ")
    return words


def parse(text: str) -> Scene:
    """The scene that `text` asks for.

    Raises:
        UserError: naming the first word that does not fit the grammar and what would.
    """
    words = " ".join(text.lower().replace(",", " ").rstrip(" .").split())
    padded = f" {words} "
    for synonym, word in SYNONYMS.items():
        while f" {synonym} " in padded:
            padded = padded.replace(f" {synonym} ", f" {word} ")
    reader = _Reader(padded.split(), text)
    objects = [reader.item()]
    relation = None
    if reader.peek() != "on":
        relation = reader.relation()
        objects.append(reader.item())
    reader.expect("on")
    reader.expect("a")
    pattern = reader.one_of("pattern", PATTERNS) if reader.peek() in PATTERNS else "plain"
    background = reader.one_of("background colour", tuple(BACKGROUND_COLOURS))
    reader.expect("background")
    reader.end()
    return Scene(objects=tuple(objects), relation=relation, pattern=pattern, background=background)


def sample_scene(
    generator: torch.Generator, split: Split = "train", *, two_objects: float = _TWO_OBJECTS
) -> Scene:
    """A scene drawn uniformly from `split`; with probability `two_objects` it has two objects."""
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; use one of {get_args(Split)}")
    count = 2 if torch.rand((), generator=generator).item() < two_objects else 1
    while True:
        scene = _any_scene(generator, count)
        if split_of(scene) == split:
            return scene


def split_of(scene: Scene) -> Split:
    """The split that `scene` belongs to; a pure function of its caption."""
    if any((item.colour, item.shape) in HELD_OUT_PAIRS for item in scene.objects):
        return "held-out"
    unseen = zlib.crc32(caption(scene).encode()) % _UNSEEN_SHARE == 0
    return "unseen" if unseen else "train"


def render(scene: Scene, generator: torch.Generator, size: int = 128) -> NDArray[np.uint8]:
    """A picture of `scene`, sRGB [size, size, 3]; `generator` draws exact places and radii."""
    unit = 128.0 / size
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(unit)
    x, y = axis[None, :], axis[:, None]
    picture = background(scene, x, y)
    for item, (centre_x, centre_y, radius) in zip(
        scene.objects, _places(scene, generator), strict=True
    ):
        # Half an object's light: brighter at the upper left, darker at the lower right.
        across = ((x - centre_x) + (y - centre_y)) / np.float32(radius)
        light = np.clip(1.0 - 0.11 * across, 0.8, 1.2)[..., None]
        colour = np.clip(np.array(OBJECT_COLOURS[item.colour], np.float32) * light, 0, 255)
        distance = shapes.SIGNED_DISTANCE[item.shape]
        shadow = distance((x - centre_x - 1.5) / radius, (y - centre_y - 3.5) / radius) * radius
        picture *= 1.0 - 0.34 * _smooth(2.0 - shadow, 9.0)[..., None]
        edge = distance((x - centre_x) / radius, (y - centre_y) / radius) * radius
        cover = np.clip(0.5 - edge / np.float32(unit), 0.0, 1.0)[
            ..., None
        ]  # one pixel of antialiasing
        picture += cover * (colour - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _any_scene(generator: torch.Generator, count: int) -> Scene:
    objects = tuple(
        Item(
            size=_pick(tuple(SIZES), generator),
            colour=_pick(tuple(OBJECT_COLOURS), generator),
            shape=_pick(SHAPES, generator),
        )
        for _ in range(count)
    )
    return Scene(
        objects=objects,
        relation=_pick(tuple(RELATIONS), generator) if count == 2 else None,
        pattern=_pick(PATTERNS, generator),
        background=_pick(tuple(BACKGROUND_COLOURS), generator),
    )


def _pick(words: tuple[str, ...], generator: torch.Generator) -> str:
    return words[int(torch.randint(len(words), (), generator=generator))]


def nominal_places(scene: Scene) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius of each object before any jitter, in units."""
    direction = RELATIONS[scene.relation] if scene.relation else (0, 0)
    # The nominal centre lies in the middle of its half: the outer margin equals the inner one.
    return [
        (64.0 + sign * 30.0 * direction[0], 64.0 + sign * 30.0 * direction[1], SIZES[item.size])
        for sign, item in zip((1, -1), scene.objects, strict=False)
    ]


def _places(scene: Scene, generator: torch.Generator) -> list[tuple[float, float, float]]:
    """Centre x, centre y and radius of each object, in units."""
    jitter = (torch.rand(len(scene.objects), 3, generator=generator) * 2 - 1).tolist()
    places = [
        (x + _JITTER * dx, y + _JITTER * dy, radius + _SIZE_JITTER * dr)
        for (x, y, radius), (dx, dy, dr) in zip(nominal_places(scene), jitter, strict=True)
    ]
    return _apart(places, RELATIONS[scene.relation]) if scene.relation else places


def _apart(
    places: list[tuple[float, float, float]], direction: tuple[int, int]
) -> list[tuple[float, float, float]]:
    """`places` moved along `direction` until each object keeps the margin to the middle."""
    moved: list[tuple[float, float, float]] = []
    for sign, (x, y, radius) in zip((1, -1), places, strict=True):
        inside = (x - 64) * sign * direction[0] + (y - 64) * sign * direction[1] - radius
        push = max(0.0, _MARGIN - inside) * sign
        moved.append((x + push * direction[0], y + push * direction[1], radius))
    return moved


def background_tones(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The colour [3] of a background and that of the stripes or dots on it, sRGB 0-255."""
    base = np.array(BACKGROUND_COLOURS[name], np.float32)
    return base, base + np.float32(26) if base.mean() < 128 else base * np.float32(0.885)


def pattern_weight(pattern: str, x: shapes.Plane, y: shapes.Plane) -> shapes.Plane:
    """Share [h, w] of the second tone of a background at `x` [1, w] and `y` [h, 1], in units."""
    if pattern == "striped":
        # Diagonal bands, 16 units wide along x.
        return np.clip(8.5 - np.abs((x + y) % 32.0 - 16.0), 0.0, 1.0)
    if pattern == "dotted":
        # Two interleaved grids of dots, 16 units apart.
        first = np.hypot((x + 4.0) % 16.0 - 8.0, (y + 4.0) % 16.0 - 8.0)
        second = np.hypot((x - 4.0) % 16.0 - 8.0, (y - 4.0) % 16.0 - 8.0)
        return np.clip(3.4 - np.minimum(first, second), 0.0, 1.0)
    return np.zeros((y.shape[0], x.shape[1]), np.float32)


def background(scene: Scene, x: shapes.Plane, y: shapes.Plane) -> NDArray[np.float32]:
    """The background of `scene` without objects at `x` [1, w] and `y` [h, 1] (units), [h, w, 3]."""
    base, accent = background_tones(scene.background)
    weight = pattern_weight(scene.pattern, x, y)[..., None]
    fade = 1.03 - 0.06 * (y / 128.0) * np.ones_like(x)  # a little brighter at the top
    return ((base + weight * (accent - base)) * fade[..., None]).astype(np.float32)


def _smooth(value: shapes.Plane, width: float) -> shapes.Plane:
    """0 below -width, 1 above width, a smooth cubic between."""
    t = np.clip(value / (2 * width) + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


class _Reader:
    """Words of a caption, read once from left to right."""

    def __init__(self, words: list[str], text: str) -> None:
        self._words = words
        self._text = text
        self._at = 0

    def peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def expect(self, word: str) -> None:
        if self.peek() != word:
            self._fail(f'"{word}"')
        self._at += 1

    def one_of(self, category: str, words: tuple[str, ...]) -> str:
        if self.peek() not in words:
            self._fail(f"a {category} ({', '.join(words)})")
        self._at += 1
        return self._words[self._at - 1]

    def item(self) -> Item:
        self.expect("a")
        return Item(
            size=self.one_of("size", tuple(SIZES)),
            colour=self.one_of("colour", tuple(OBJECT_COLOURS)),
            shape=self.one_of("shape", SHAPES),
        )

    def relation(self) -> str:
        two = " ".join(self._words[self._at : self._at + 2])
        found = two if two in RELATIONS else self.peek()
        if found not in RELATIONS:
            self._fail(f'a relation ({", ".join(RELATIONS)}) or "on"')
        self._at += len(found.split())
        return found

    def end(self) -> None:
        if self.peek():
            self._fail("the end of the sentence")

    def _fail(self, wanted: str) -> None:
        found = f'"{self.peek()}"' if self.peek() else "the end of the sentence"
        raise UserError(
            f"the demo model does not know this sentence: found {found}, expected {wanted}",
            where=self._text,
            remedy=f'Say it like "{EXAMPLE_PROMPTS[0]}".',
        )
