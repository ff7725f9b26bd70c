"""The light table: pictures of the same prompt and seed, and what differs between them.

The markup holds every picture at once; the script only moves a divider, a lens or a view, or swaps
which picture is on top, so nothing loads or jumps when the mode or the variant changes. The state
sits on the component's root, which Gradio never rewrites: a new comparison arrives under the same
divider, zoom and variant.
"""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.ui import theme
from vqdq.ui.wording import escape

MODES = (
    ("slider", "Slider", "Drag the divider, or use the arrow keys"),
    ("side", "Side by side", "All pictures, zoomed and moved together"),
    ("blink", "Blink", "One picture over the other; Space swaps them"),
    ("difference", "Difference", "How far each pixel is off"),
    ("flip", "FLIP", "How visible each difference is to an eye"),
    ("loupe", "Loupe", "A lens that shows the other pictures at the same place"),
)
_LEGENDS = {
    "slider": "Drag, or ← →. Scroll or pinch to zoom, + − 0 on the keyboard.",
    "side": "Scroll or pinch to zoom, drag to move: all pictures follow.",
    "difference": "Black: equal. White: a channel is off by 25% or more. [ and ] change the model.",
    "flip": "Black: no visible difference. The lighter, the more an eye notices.",
}
_ON_MAPS = {"error": "Difference", "flip": "FLIP"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One drawn picture.

    Attributes:
        label: name of the model that drew it.
        url: address of the lossless PNG.
        colour: index of the variant's colour; 0 is the reference.
        difference, flip: addresses of its maps against the reference; "" where there is none.
        note: a number beside its name, "".
    """

    label: str
    url: str
    colour: int
    difference: str = ""
    flip: str = ""
    note: str = ""


def viewer(reference: Picture, variants: tuple[Picture, ...], *, prompt: str) -> str:
    """Returns the light table for a reference and its variants; the script shows one of them.

    Args:
        prompt: what was asked for; becomes the pictures' alternative text.
    """
    alt = escape(prompt)
    layers = "".join(
        f'<span class="vq-layer vq-layer-b vq-of" data-of="{i}">{_image("b", item, alt)}</span>'
        for i, item in enumerate(variants)
    )
    tags = _tag("a", reference) + "".join(_tag("b", item, i) for i, item in enumerate(variants))
    beside = "".join(
        f'<div class="vq-pane vq-pane-side">{_image("c", item, alt)}{_tag("c", item)}</div>'
        for item in variants
    )
    return (
        f'{_modes()}<div class="vq-stage" data-count="{len(variants)}">'
        f'<div class="vq-pane vq-pane-main"><span class="vq-layer">{_image("a", reference, alt)}'
        f'</span>{layers}<input type="range" class="vq-split" min="0" max="100" step="1"'
        f' value="50" aria-label="Divider: {escape(reference.label)} on the left, the compressed'
        f' model on the right"><span class="vq-divider" aria-hidden="true"></span>{tags}'
        f"{_lens(variants)}</div>"
        f'<div class="vq-pane vq-pane-other">{_maps(variants)}{_tiles(reference, variants)}</div>'
        f"{beside}</div>{_foot()}{_picks(variants)}"
    )


def empty(sentence: str) -> str:
    """Returns the light table before its first picture: the same size, and one sentence."""
    return (
        f'{_modes(disabled=True)}<div class="vq-stage vq-stage-empty">'
        '<div class="vq-pane vq-pane-main vq-ghost"></div>'
        '<div class="vq-pane vq-pane-other vq-ghost"></div>'
        f'<p class="vq-stage-words">{escape(sentence)}</p></div>{_foot(empty=True)}'
    )


def loading(over: str, preview: str | None = None) -> str:
    """Returns the light table while its pictures are drawn: same size, live preview.

    Args:
        over: ready HTML that lies on the table: the progress.
        preview: address of the picture so far.
    """
    picture = f'<img class="vq-image" src="{escape(preview)}" alt="Preview">' if preview else ""
    return _covered(over, '<div class="vq-pane vq-pane-main vq-skeleton">' + picture, "vq-skeleton")


def covered(over: str) -> str:
    """Returns the light table without pictures and with ready HTML on it: why there are none."""
    return _covered(over, '<div class="vq-pane vq-pane-main vq-ghost">', "vq-ghost")


def _covered(over: str, main: str, other: str) -> str:
    empty = " vq-stage-empty" if other == "vq-ghost" else ""
    return (
        f'{_modes(disabled=True)}<div class="vq-stage{empty}">{main}</div>'
        f'<div class="vq-pane vq-pane-other {other}"></div><div class="vq-over">{over}</div></div>'
        f"{_foot(empty=True)}"
    )


def swatch(colour: int) -> str:
    """Returns the small square in a variant's colour."""
    index = 0 if colour == 0 else 1 + (colour - 1) % (len(theme.VARIANT_COLOURS) - 1)
    return f'<i class="vq-swatch vq-swatch-{index}" aria-hidden="true"></i>'


def _modes(*, disabled: bool = False) -> str:
    state = " disabled" if disabled else ""
    buttons = "".join(
        f'<button type="button" class="vq-mode" data-mode="{name}" title="{escape(help_)}"{state}>'
        f"{escape(label)}</button>"
        for name, label, help_ in MODES
    )
    zoom = "".join(
        f'<button type="button" class="vq-mode vq-zoom" data-zoom="{name}" title="{help_} ({key})"'
        f' aria-label="{help_}"{state}>{sign}</button>'
        for name, sign, help_, key in (
            ("out", "−", "Zoom out", "−"),
            ("fit", "1×", "Whole picture", "0"),
            ("in", "+", "Zoom in", "+"),
        )
    )
    pixels = (
        '<button type="button" class="vq-mode" data-mode-pixels'
        f' title="Show the pixels as they are, without smoothing"{state}>Pixels</button>'
    )
    return (
        f'<div class="vq-modes" role="group" aria-label="Way to compare">{buttons}'
        f'<span class="vq-view">{pixels}{zoom}</span></div>'
    )


def _foot(*, empty: bool = False) -> str:
    """The line below the pictures: what a mode has to set, else what is seen. Of one height."""
    if empty:
        return '<div class="vq-foot"></div>'
    legends = "".join(
        f'<span class="vq-only" data-only="{mode}">{escape(words)}</span>'
        for mode, words in _LEGENDS.items()
    )
    return (
        f'<div class="vq-foot vq-small vq-muted">{legends}'
        '<span class="vq-only" data-only="blink"><button type="button"'
        ' class="vq-button vq-button-small" data-blink>Pause</button><label class="vq-rate">'
        '<input type="range" min="1" max="4" step="0.5" value="2" data-rate'
        ' aria-label="Swaps a second"><span data-rate-words>2 a second</span></label></span>'
        '<span class="vq-only" data-only="loupe"><button type="button"'
        ' class="vq-button vq-button-small" data-shape>Square lens</button>'
        "<span>Move the pointer, a finger or the arrow keys.</span></span></div>"
    )


def _picks(variants: tuple[Picture, ...]) -> str:
    if len(variants) < 2:
        return ""
    picks = "".join(
        f'<button type="button" class="vq-pick" data-pick="{i}" aria-pressed="false">'
        f"{swatch(item.colour)}<span>{escape(item.label)}</span>"
        f'<span class="vq-muted">{escape(item.note)}</span></button>'
        for i, item in enumerate(variants)
    )
    return f'<div class="vq-picks" role="group" aria-label="Compressed model">{picks}</div>'


def _lens(variants: tuple[Picture, ...]) -> str:
    pictures = "".join(
        f'<img class="vq-lens-image vq-of" data-of="{i}" src="{escape(item.url)}" alt=""'
        ' draggable="false">'
        for i, item in enumerate(variants)
    )
    return f'<span class="vq-lens" aria-hidden="true">{pictures}</span>'


def _maps(variants: tuple[Picture, ...]) -> str:
    found = ""
    for i, item in enumerate(variants):
        for kind, url, words in (
            ("error", item.difference, "Difference of"),
            ("flip", item.flip, "Visible difference (FLIP) of"),
        ):
            if url:
                found += (
                    f'<img class="vq-image vq-map vq-map-{kind} vq-of" data-of="{i}"'
                    f' src="{escape(url)}" alt="{words} {escape(item.label)} from the original"'
                    ' draggable="false">'
                )
    return found + "".join(
        f'<span class="vq-tag vq-tag-map vq-tag-{kind}">{words}</span>'
        for kind, words in _ON_MAPS.items()
    )


def _tiles(reference: Picture, variants: tuple[Picture, ...]) -> str:
    """The lens' place in every picture at once; free places show the maps of the first variants."""
    shown = [(item.url, item.label, item.colour) for item in (reference, *variants)]
    for i, item in enumerate(variants):
        for url, label in ((item.flip, "FLIP"), (item.difference, "Difference")):
            if url and len(shown) < 4 and len(variants) == 1:
                shown.append((url, label, i + 1))
    columns = 2 if len(shown) <= 4 else 3
    tiles = "".join(
        f'<span class="vq-tile"><img src="{escape(url)}" alt="" draggable="false">'
        f'<span class="vq-tag">{swatch(colour)}{escape(label)}</span></span>'
        for url, label, colour in shown
    )
    return f'<span class="vq-tiles" aria-hidden="true" style="--vq-k:{columns}">{tiles}</span>'


def _image(place: str, picture: Picture, alt: str) -> str:
    return (
        f'<img class="vq-image vq-image-{place}" src="{escape(picture.url)}"'
        f' alt="{escape(picture.label)}: {alt}" draggable="false">'
    )


def _tag(place: str, picture: Picture, of: int | None = None) -> str:
    which = "" if of is None else f' vq-of" data-of="{of}'
    return (
        f'<span class="vq-tag vq-tag-{place}{which}">'
        f"{swatch(picture.colour)}{escape(picture.label)}</span>"
    )
