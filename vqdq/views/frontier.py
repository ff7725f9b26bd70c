"""Models as points: cost to the right, quality up, and the front of those that none beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from vqdq.jobs.frontier import Frontier, Point, Scale
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import Style, View

_NAMED = 8
"""Points up to which each is named; of more only those on the front are."""
_EM = 0.55  # width of a letter over its height


def frontier(found: Frontier, style: Style, *, height: float = 400) -> View:
    """Returns the plot of `found.drawn`; a value without end (equal pictures) lies on the edge."""
    figure = look.figure(880, height, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    points = found.drawn
    _limits(axes, found)
    methods = methods_of(points)
    front = sorted((p for p in points if p.on_front), key=lambda p: p.cost or 0)
    if front:
        across, up = zip(
            *((c, _at(q.value, axes)) for c, q in (p.placed for p in front)), strict=True
        )
        axes.step(across, up, where="post", color=style.muted, linewidth=1.2)
    for point in points:
        cost, quality = point.placed
        colour = style.variant(1 + methods.index(point.method))
        low, high = (_at(end, axes) for end in (quality.low, quality.high))
        if high > low:
            axes.vlines(cost, low, high, color=colour, linewidth=1.5, alpha=0.7)
        axes.plot(
            cost,
            _at(quality.value, axes),
            "o",
            color=colour,
            markersize=10,
            markeredgecolor=style.text if point.on_front else colour,
            markeredgewidth=1.5,
            clip_on=False,
        )
    _reference(axes, found, style)
    _names(axes, points, style)
    axes.set_xlabel(_label(found.cost))
    better = "higher" if found.quality.more_is_better else "lower"
    look.title(axes, f"{_label(found.quality)}, {better} is better", style)
    return View(
        figure=figure,
        alt=_alt(found),
        caption=_caption(found),
        style=style,
        data=_table(found),
    )


def methods_of(points: Sequence[Point]) -> list[str]:
    """Returns the methods in the order of their colours."""
    return sorted({point.method for point in points})


def spots(view: View, found: Frontier) -> list[tuple[Point, float, float]]:
    """Returns where each point is: shares of the figure's width and height from the upper left.

    Known once the figure was drawn.
    """
    axes = view.figure.axes[0]
    box = axes.get_position()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    placed: list[tuple[Point, float, float]] = []
    for point in found.drawn:
        cost, quality = point.placed
        across, up = (cost - x0) / (x1 - x0), (_at(quality.value, axes) - y0) / (y1 - y0)
        left, bottom = box.x0 + box.width * across, box.y0 + box.height * up
        placed.append((point, float(left), float(1 - bottom)))
    return placed


def _limits(axes: Axes, found: Frontier) -> None:
    """From zero in cost, so that half as long is half the size; the spread of the quality."""
    points = found.drawn
    costs = [p.cost for p in points if p.cost is not None]
    if found.reference is not None and found.reference.cost is not None:
        costs.append(found.reference.cost)
    axes.set_xlim(0, 1.08 * max(costs, default=1.0))
    known = [p.quality for p in (*points, found.reference) if p is not None and p.quality]
    ends = [end for q in known for end in (q.low, q.value, q.high) if math.isfinite(end)]
    if not ends:
        axes.set_ylim(0, 1)
        return
    low, high = min(ends), max(ends)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    if found.quality.unit == "%":
        axes.set_ylim(max(-2.0, low - room), min(102.0, high + room))
        return
    endless = any(math.isinf(end) for q in known for end in (q.low, q.value, q.high))
    axes.set_ylim(low - room, high + room * (3 if endless else 1))


def _at(value: float, axes: Axes) -> float:
    """The place of a value: the edge for one without end."""
    low, high = axes.get_ylim()
    return float(np.clip(value, low, high))


def _reference(axes: Axes, found: Frontier, style: Style) -> None:
    reference = found.reference
    if reference is None or reference.cost is None:
        return
    bottom = axes.get_ylim()[0]
    axes.axvline(reference.cost, color=style.variant(0), linewidth=1.2, linestyle=(0, (4, 3)))
    if reference.quality is not None:
        axes.plot(reference.cost, _at(reference.quality.value, axes), "D", color=style.variant(0))
    axes.annotate(
        "FP16", (reference.cost, bottom), xytext=(-6, 6), textcoords="offset points", ha="right",
        va="bottom", color=style.muted, fontsize=look.SMALL,
    )  # fmt: skip


def _names(axes: Axes, points: Sequence[Point], style: Style) -> None:
    """Writes names where there is room: below the point, above it, further away, or not at all."""
    shown = points if len(points) <= _NAMED else [p for p in points if p.on_front]
    right, (low, high) = axes.get_xlim()[1], axes.get_ylim()
    width, height = axes.bbox.width, axes.bbox.height  # at 72 dots an inch, so in units
    places: dict[str, tuple[float, float]] = {}
    for point in points:
        cost, quality = point.placed
        up = height * (_at(quality.value, axes) - low) / (high - low)
        places[point.name] = (width * cost / right, up)
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    for point in sorted(shown, key=lambda p: (not p.on_front, p.placed[0])):
        equal = "" if math.isfinite(point.placed[1].value) else ": equal"
        text = _short(point.label, 24 if style.narrow else 40) + equal
        long = _EM * look.SMALL * len(text)
        across, up = places[point.name]
        end = across + long + 10 > width
        left = across - 10 - long if end else across + 10
        for shift in (-11, 11, -26, 26, -41, 41):
            box = (left, up + shift - 7, left + long, up + shift + 7)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                _name(axes, point, text, shift, style, end=end)
                break


def _name(axes: Axes, point: Point, text: str, shift: float, style: Style, *, end: bool) -> None:
    cost, quality = point.placed
    axes.annotate(
        look.drawable(text),
        (cost, _at(quality.value, axes)),
        xytext=(-10 if end else 10, shift),
        textcoords="offset points",
        ha="right" if end else "left",
        va="center",
        color=style.text,
        fontsize=look.SMALL,
    )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _label(scale: Scale) -> str:
    return f"{scale.title} ({scale.unit})" if scale.unit else scale.title


def _alt(found: Frontier) -> str:
    parts = [
        f"{p.label}: {digits(p.placed[0])} {found.cost.unit}, {digits(p.placed[1].value)}"
        f" {found.quality.unit}".rstrip()
        for p in found.drawn
    ]
    return f"{found.quality.title} against {found.cost.title.lower()}. {'; '.join(parts)}"


def _caption(found: Frontier) -> str:
    points = found.drawn
    counts = [p.count for p in points]
    if not counts:
        return "No model has been measured on this yet."
    joined = "The line joins the models that no other beats in both."
    if max(counts) == 1:
        return f"One picture of each model. {joined}"
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    plain = found.quality.name not in ("alignment", "blind")
    noun = {"blind": "decisive pairs"}.get(found.quality.name, "pictures")
    what = "Median" if plain else "Share"
    bars = "95 % interval, the whole range below six pictures" if plain else "95 % interval"
    return f"{what} over n = {span} {noun} a model; bars: {bars}. {joined}"


def _table(found: Frontier) -> data.Plotted:
    points = found.drawn
    unit = f"_{found.cost.unit.lower()}" if found.cost.unit else ""
    ends = [p.placed[1] for p in points]
    return data.table(
        model=[p.name for p in points],
        label=[p.label for p in points],
        method=[p.method for p in points],
        **{
            f"{found.cost.name}{unit}": [p.cost for p in points],
            found.quality.name: [end.value for end in ends],
            "low": [end.low for end in ends],
            "high": [end.high for end in ends],
            "level": [end.level for end in ends],
            "n": [p.count for p in points],
            "on_front": [p.on_front for p in points],
        },
    )
