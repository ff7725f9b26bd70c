"""How a figure looks: its colours, its type, and what comes back with it.

One unit of a figure is one pixel on the page: 880 × 320 with type of 13 is shown at that size.
`PAGE` draws with stand-in colours that `View.svg` replaces by the page's own variables, so one
drawing is sharp at any zoom and follows light and dark. `LIGHT` and `DARK` are for files.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, NullFormatter

from vqdq.quantities import digits
from vqdq.views.data import Plotted

# Text stays text: the page's own typeface, selectable, and a third of the size of outlines.
mpl.rcParams["svg.fonttype"] = "none"
mpl.rcParams["axes.unicode_minus"] = True

NARROW = 600
TYPE = 13.0
SMALL = 12.0
MANY_MARKS = 12
RASTER_DPI = 144  # of what an SVG holds as pixels: a surface of thousands of facets


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Colours of a figure, `#rrggbb`.

    Attributes:
        ground: behind the figure; None leaves it transparent.
        text, muted, line: as on the page.
        variants: FP16 first; a variant keeps its colour everywhere.
        variables: what stands for a colour on the page ("var(--vq-text)").
        width: of a figure, in units; 390 for a phone, where panels stand below each other.
    """

    ground: str | None
    text: str
    muted: str
    line: str
    variants: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    width: float = 880

    @property
    def narrow(self) -> bool:
        """Whether panels stand below each other instead of side by side."""
        return self.width < NARROW

    def phone(self) -> Style:
        """Returns the same colours for a figure that is read at 390 px."""
        return replace(self, width=390)

    def showing(self, index: int) -> Style:
        """Returns the same colours for FP16 and variant `index` alone, which keeps its own."""
        return replace(self, variants=(self.variants[0], self.variant(index)))

    def variant(self, index: int) -> str:
        """Returns the colour of a variant; 0 is FP16, and the set repeats after its last."""
        if index == 0:
            return self.variants[0]
        return self.variants[1 + (index - 1) % (len(self.variants) - 1)]


_VARIANTS = ("#8b94a1", "#4c8dd6", "#e08a3c", "#3fa47a", "#a879c9")
DARK = Style(ground="#161b22", text="#e6e9ee", muted="#9aa4b2", line="#2a313c", variants=_VARIANTS)
LIGHT = Style(ground="#ffffff", text="#14181f", muted="#566070", line="#d9dee6", variants=_VARIANTS)
PAGE = Style(
    ground=None,
    text="#01fe01",
    muted="#01fe02",
    line="#01fe03",
    variants=_VARIANTS,
    variables={
        "#01fe01": "var(--vq-text)",
        "#01fe02": "var(--vq-muted)",
        "#01fe03": "var(--vq-line)",
    },
)

_STAND_INS = {  # of the page's variables where there is no page
    "var(--vq-text)": LIGHT.text,
    "var(--vq-muted)": LIGHT.muted,
    "var(--vq-line)": LIGHT.line,
}

ROLES = {"start": "#d9a441", "words": "#c65a72", "end": "#4fa39c", "padding": "#8791a0"}
"""Colours of a token's role; none of them is a variant's."""

GROUPS = (  # of channels that share a scale: Okabe and Ito's colours, told apart by everyone
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#7f7f7f",
)
SEQUENTIAL = "viridis"
DIVERGING = LinearSegmentedColormap.from_list(
    "drift",
    [
        (0.0, (0.13, 0.44, 0.71, 1.0)),
        (0.5, (0.5, 0.5, 0.5, 0.0)),  # the ground shows through: white or black at zero
        (1.0, (0.85, 0.37, 0.10, 1.0)),
    ],
)


PEN = threading.Lock()
"""Held while figures are drawn: matplotlib's fonts and layout are not made for threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A figure, the same in words for those who cannot see it, what to look for, its numbers."""

    figure: Figure
    alt: str
    caption: str
    style: Style
    data: Plotted = field(default_factory=Plotted)

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Where the first axes are: left, top, width and height as shares of the figure.

        Known once the figure was drawn; a page lays what can be clicked over it.
        """
        box = self.figure.axes[0].get_position()
        return float(box.x0), float(1 - box.y1), float(box.width), float(box.height)

    def png(self, scale: float = 2.0) -> bytes:
        """Returns the figure as PNG, `scale` pixels for each unit."""
        buffer = io.BytesIO()
        self.figure.savefig(
            buffer, format="png", dpi=72 * scale, facecolor=self.style.ground or "none"
        )
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """Returns what a notebook shows for a view."""
        return self.png()

    def svg_file(self) -> bytes:
        """Returns the figure as an SVG document of its own: sized, with a typeface and a title."""
        buffer = io.StringIO()
        ground = self.style.ground or "none"
        self.figure.savefig(buffer, format="svg", dpi=RASTER_DPI, facecolor=ground)
        text = buffer.getvalue()
        for colour, variable in self.style.variables.items():
            text = text.replace(colour, _STAND_INS[variable])
        return text.encode()

    def content(self, kind: str) -> bytes:
        """Returns the file of the figure: "png", "svg", or "csv", the plotted data."""
        if kind == "png":
            return self.png()
        return self.svg_file() if kind == "svg" else self.data.to_csv().encode()

    def svg(self) -> str:
        """Returns the figure as an `<svg>` element to stand in a page."""
        buffer = io.StringIO()
        self.figure.dpi = RASTER_DPI
        FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        self.figure.dpi = 72
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        for colour, variable in self.style.variables.items():
            text = text.replace(colour, variable)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        # The page's typeface, and a label instead of a fixed size.
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
        text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
        label = self.alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
        return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def figure(width: float, height: float, style: Style, *, pictures: bool = False) -> Figure:
    """Returns an empty figure of that many units; `pictures` keeps square cells close together.

    It is no wider than the style allows.
    """
    width = min(width, style.width)
    layout = "compressed" if pictures else "constrained"
    made = Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)
    made.set_facecolor(style.ground or "none")
    made.get_layout_engine().set(w_pad=4 / 72, h_pad=4 / 72, wspace=0.02, hspace=0.02)  # pyright: ignore
    return made


def row(
    count: int, height: float, style: Style, *, pictures: bool = False, widths: Any = None
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels side by side, or below each other where it is narrow.

    Args:
        height: of one row; `widths`: relative ones.
    """
    if style.narrow:
        made = figure(style.width, height * count, style, pictures=pictures)
        grid = made.subplots(count, 1, squeeze=False)
    else:
        made = figure(style.width, height, style, pictures=pictures)
        grid = made.subplots(1, count, squeeze=False, width_ratios=widths)
    return made, list(grid.flat)


def whole_steps(axes: Axes) -> None:
    """Puts marks of the x axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def quiet(axes: Axes, style: Style, *, frame: bool = True) -> None:
    """Dresses axes in the page's language: two thin lines, muted numbers, no ticks that shout."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(frame and side in ("left", "bottom"))
        spine.set_color(style.line)
    axes.tick_params(which="both", colors=style.muted, labelsize=SMALL, length=3, color=style.line)
    axes.xaxis.label.set_color(style.muted)
    axes.yaxis.label.set_color(style.muted)
    axes.xaxis.label.set_fontsize(TYPE)
    axes.yaxis.label.set_fontsize(TYPE)


def bare(axes: Axes, style: Style) -> None:
    """Dresses axes that hold a picture: a thin frame and no numbers."""
    quiet(axes, style)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


def roles(figure: Figure, axes: Axes, style: Style, names: int) -> None:
    """Puts the names of stacked parts above axes, at their right; under the figure on a phone."""
    options: dict[str, Any] = {
        "frameon": False,
        "labelcolor": style.muted,
        "fontsize": SMALL,
        "ncols": names,
        "handlelength": 0.9,
        "handleheight": 0.9,
        "columnspacing": 1.4,
    }
    if style.narrow:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", **options)
    else:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, **options)


def below(axes: Axes) -> Any:
    """Returns the transform of x as data and y as a share of the axes, for marks at the bottom."""
    return axes.get_xaxis_transform()


def log_y(axes: Axes) -> None:
    """Makes the y axis logarithmic with labels at powers of ten only."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / max(low, 1e-300) >= 10:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_minor_formatter(lambda value, _: digits(float(value)))


def title(axes: Axes, text: str, style: Style, *, colour: str | None = None) -> None:
    """Puts a heading at the upper left of axes, a variant's colour as a mark before it."""
    text = drawable(text)
    if colour is None:
        axes.set_title(text, loc="left", fontsize=TYPE, color=style.text, pad=8)
        return
    options: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    # An empty title keeps the room; the mark and the words have places of their own.
    axes.set_title(" ", loc="left", fontsize=TYPE, pad=8)
    axes.annotate("■", (0, 1), xytext=(0, 9), color=colour, fontsize=9, **options)
    axes.annotate(text, (0, 1), xytext=(14, 8), color=style.text, fontsize=TYPE, **options)


def colour_bar(bar: Colorbar, style: Style, label: str) -> None:
    """Dresses a colour bar: no outline, muted numbers, a label with the unit."""
    bar.outline.set_visible(False)  # pyright: ignore
    bar.ax.set_facecolor("none")  # a diverging map is clear at zero
    bar.ax.tick_params(colors=style.muted, labelsize=SMALL, length=3, color=style.line)
    bar.set_label(label, color=style.muted, fontsize=TYPE)


def drawable(text: str) -> str:
    """Returns `text` as the figure's font can draw it: unknown signs as □, no formula between $."""
    font = get_font(findfont("DejaVu Sans"))
    known = "".join(sign if font.get_char_index(ord(sign)) else "□" for sign in text)
    return known.replace("$", r"\$")


def share(value: float) -> str:
    """Returns a share as percent in three digits, "< 0.001 %" when it is tiny but not zero."""
    if 0 < value < 1e-5:
        return "< 0.001 %"
    return f"{digits(100 * value)} %"


def round_levels(low: float, high: float) -> list[float]:
    """Returns 1, 2, 5, 10, … between two positive bounds; the bounds when there are few."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [lead * 10.0**power for power in powers for lead in (1, 2, 5)]
    inside = [level for level in found if low <= level <= high]
    if len(inside) > MANY_MARKS:
        inside = [level for level in inside if f"{level:e}".startswith("1.0")]
    return inside if len(inside) > 1 else [low, high]


def rgb(picture: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.float64]:
    """Returns a uint8 or float picture as floats in 0 ... 1, at most `size` wide, [h, w, 3]."""
    values = picture.astype(np.float64) / (255.0 if picture.dtype == np.uint8 else 1.0)
    if values.ndim == 2:
        values = np.repeat(values[:, :, None], 3, axis=2)
    step = max(1, -(-max(values.shape[:2]) // size))
    return values[::step, ::step, :3]
