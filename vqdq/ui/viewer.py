"""The light table: two pictures of the same prompt and seed, and what differs between them.

The markup holds every picture at once; the script only moves a divider or swaps which one is on
top, so
nothing loads or jumps when the mode changes. The state sits on the component's root, which Gradio
never
rewrites: a new comparison arrives under the same divider.
"""

from __future__ import annotations

from dataclasses import dataclass

from vqdq.ui import theme
from vqdq.ui.wording import escape

MODES = (
    ("slider", "Slider", "Drag, or use the arrow keys"),
    ("side", "Side by side", "Both pictures at full size"),
    ("flip", "Flip", "Space flips between the two"),
    ("difference", "Difference", "Where the pictures differ"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One drawn picture.

    Attributes:
        label: name of the model that drew it.
        url: address of the lossless PNG.
        colour: index of the variant's colour; 0 is the reference.
        difference: address of its difference map against the reference; "" for the reference.
    """

    label: str
    url: str
    colour: int
    difference: str = ""


def viewer(
    reference: Picture, variants: tuple[Picture, ...], *, prompt: str, chosen: int = 0
) -> str:
    """Returns the light table for a reference and its variants; `chosen` is the variant on top.

    Args:
        prompt: what was asked for; becomes the pictures' alternative text.
    """
    shown = variants[chosen]
    alt = escape(prompt)
    first = _image("a", reference, alt)
    second = _image("b", shown, alt)
    rest = _difference(shown)
    picks = "".join(
        f'<button type="button" class="vq-pick" data-act="variant" data-index="{i}"'
        f' aria-pressed="{str(i == chosen).lower()}">'
        f"{swatch(item.colour)}{escape(item.label)}</button>"
        for i, item in enumerate(variants)
    )
    choose = (
        f'<div class="vq-picks" role="group" aria-label="Compressed model">{picks}</div>'
        if len(variants) > 1
        else ""
    )
    return (
        f'{_modes()}<div class="vq-stage">'
        f'<div class="vq-pane vq-pane-main">{first}{second}'
        f'<input type="range" class="vq-split" min="0" max="100" step="1" value="50"'
        f' aria-label="Divider: {escape(reference.label)} on the left,'
        f' {escape(shown.label)} on the right">'
        f'<span class="vq-divider" aria-hidden="true"></span>'
        f"{_tag('a', reference)}{_tag('b', shown)}</div>"
        f'<div class="vq-pane vq-pane-other">{_image("c", shown, alt)}{rest}'
        f'<span class="vq-tag vq-tag-d">Difference</span>{_tag("c", shown)}</div></div>{choose}'
    )


def empty(sentence: str) -> str:
    """Returns the light table before its first picture: the same size, and one sentence."""
    return (
        f'{_modes(disabled=True)}<div class="vq-stage vq-stage-empty">'
        '<div class="vq-pane vq-pane-main vq-ghost"></div>'
        '<div class="vq-pane vq-pane-other vq-ghost"></div>'
        f'<p class="vq-stage-words">{escape(sentence)}</p></div>'
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
    return (
        f'{_modes(disabled=True)}<div class="vq-stage">{main}</div>'
        f'<div class="vq-pane vq-pane-other {other}"></div><div class="vq-over">{over}</div></div>'
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
    pixels = (
        '<button type="button" class="vq-mode vq-pixels" data-mode-pixels'
        f' title="Show the pixels as they are, without smoothing"{state}>Pixels</button>'
    )
    return f'<div class="vq-modes" role="group" aria-label="Way to compare">{buttons}{pixels}</div>'


def _image(place: str, picture: Picture, alt: str) -> str:
    return (
        f'<img class="vq-image vq-image-{place}" src="{escape(picture.url)}"'
        f' alt="{escape(picture.label)}: {alt}" draggable="false">'
    )


def _difference(picture: Picture) -> str:
    if not picture.difference:
        return '<span class="vq-image vq-image-d vq-ghost"></span>'
    return (
        f'<img class="vq-image vq-image-d" src="{escape(picture.difference)}"'
        f' alt="Difference of {escape(picture.label)} from the original" draggable="false">'
    )


def _tag(place: str, picture: Picture) -> str:
    return (
        f'<span class="vq-tag'
        f' vq-tag-{place}">{swatch(picture.colour)}{escape(picture.label)}</span>'
    )
