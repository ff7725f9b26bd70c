"""The values of one layer's input: their histogram with the quantizer's levels, their surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from mpl_toolkits.mplot3d.axes3d import Axes3D

from vqdq.capture.codes import CodesRecord
from vqdq.capture.kept import KeptTensor
from vqdq.capture.records import LayerRecord
from vqdq.capture.streams import bin_edges
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import SEQUENTIAL, Style, View, share

Floats = npt.NDArray[np.float64]
_CELLS = 320
COMBS = 8  # scales whose levels are drawn one below the other; of more, the finest to the coarsest


def value_histogram(
    records: Sequence[tuple[str, LayerRecord]],
    style: Style,
    *,
    half: str = "cond",
    codes: CodesRecord | None = None,
) -> View:
    """Returns how often values occur, on a log axis, with the quantizer's levels below as a comb.

    Args:
        records: the reference, a variant, or one input before and after its rotation or smoothing;
            outlines on one scale.
        codes: of the last record, when its input is quantized.
    """
    edges = bin_edges()
    figure = look.figure(880, 320 if codes is None else 400, style)
    combed = codes is not None
    axes, comb = (
        figure.subplots(2, 1, sharex=True, height_ratios=[5, 1.6])
        if combed
        else (figure.subplots(), None)
    )
    look.quiet(axes, style)
    tables: dict[str, data.Plotted] = {}
    low, high, floor = 0.0, 0.0, np.inf
    for index, (name, record) in enumerate(records):
        at = record.half(half)
        cut, density = _density(record, at, edges)
        first = len(records) == 1
        axes.stairs(
            density,
            cut,
            fill=first,
            color=style.variant(index),
            alpha=0.8 if first else 1.0,
            linewidth=1.5,
            label=f"{look.drawable(name)} · {int(record.count[at]):,} values",
        )
        low, high = min(low, float(cut[0])), max(high, float(cut[-1]))
        floor = min(floor, float(density[density > 0].min())) if (density > 0).any() else floor
        tables[name] = data.table(value_from=cut[:-1], value_to=cut[1:], share_per_unit=density)
    look.log_y(axes)
    axes.set_ylabel("share of values per unit")
    if np.isfinite(floor):
        axes.set_ylim(floor / 2, 8 * axes.get_ylim()[1])  # room for the names
    margin = 0.03 * max(high - low, 1e-9)
    axes.set_xlim(low - margin, high + margin)
    axes.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL, loc="upper right")
    bottom: Axes = axes
    words = ""
    if codes is not None and comb is not None:
        _comb(comb, codes, style)
        bottom = comb
        words = code_words(codes, half=half, halves=records[-1][1].halves)
        for value in codes.levels(0)[[0, -1]] if len(codes.scale) == 1 else ():
            axes.axvline(float(value), color=style.text, linewidth=0.8, linestyle=(0, (4, 4)))
    bottom.set_xlabel("input value")
    name, record = records[-1]
    return View(
        figure=figure,
        alt=f"Histogram of the input values of {record.name} at step {record.step + 1}, from "
        f"{digits(low)} to {digits(high)}. {words}".strip(),
        caption=words or f"{name}: from {digits(low)} to {digits(high)}.",
        style=style,
        data=data.stacked(tables),
    )


def code_words(codes: CodesRecord, *, half: str, halves: Sequence[str]) -> str:
    """Returns one sentence: how many levels, how many never occur, how much lies beyond them."""
    at = halves.index(half) if half in halves else len(halves) - 1
    total = codes.total
    empty = total - int((codes.counts[at] > 0).sum())
    scales = len(codes.scale)
    each = "" if scales == 1 else f" for each of {scales} scales ({codes.axis})"
    return (
        f"{total} levels{each}: {empty} never occur ({share(empty / total)}), "
        f"{share(float(codes.clipped[at]))} of the {int(codes.counted[at]):,} values counted lie "
        "beyond them."
    )


def before_after(
    before: LayerRecord,
    after: LayerRecord,
    style: Style,
    *,
    half: str = "cond",
    done: str = "after rotation",
) -> View:
    """Returns the largest magnitude of each channel before and after an input is turned, sorted.

    Args:
        after: of the same layer and step (`ActivationRecord.turned`); `done`: what was done.
    """
    at = before.half(half)
    sides = {"before": np.sort(before.absmax[at])[::-1], done: np.sort(after.absmax[at])[::-1]}
    figure = look.figure(880, 300, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    for index, (name, values) in enumerate(sides.items()):
        axes.step(
            np.arange(len(values)),
            values,
            where="mid",
            color=style.variant(index),
            linewidth=2,
            label=name,
        )
    look.log_y(axes)
    axes.set_ylabel("largest |input|")
    axes.set_xlabel(f"channel, largest first ({len(before.absmax[at])} channels)")
    axes.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL)
    ratios = [float(values[0]) / max(float(np.median(values)), 1e-12) for values in sides.values()]
    words = (
        f"The largest channel reached {digits(ratios[0])} times the median channel, "
        f"{done} {digits(ratios[1])} times."
    )
    return View(
        figure=figure,
        alt=f"Largest magnitude of the channels of {before.name}. {words}",
        caption=words,
        style=style,
        data=data.table(
            rank=np.arange(1, len(before.absmax[at]) + 1),
            **{f"{name}: largest |input|": values for name, values in sides.items()},
        ),
    )


def surface(
    records: Sequence[tuple[str, LayerRecord]],
    style: Style,
    *,
    half: str = "cond",
    flat: bool = True,
    kept: KeptTensor | None = None,
) -> View:
    """Returns |input| over channels and tokens or pixels: a flat log map, or a surface.

    Args:
        records: the reference, then its variants, side by side on one scale.
        flat: a map in logarithmic colours, which hides nothing; else a surface seen from above.
        kept: the values themselves, instead of the first record's coarser surface.
    """
    maps: dict[str, npt.NDArray[np.floating]] = {}
    for index, (name, record) in enumerate(records):
        own = kept is not None and index == 0
        whole = cast(KeptTensor, kept).surface if own else record.surface
        maps[name] = whole[record.half(half)]  # [positions, channels]
    top = max(max(float(values.max()) for values in maps.values()), 1e-9)
    first = records[0][1]
    channels, places = first.absmax.shape[1], int(np.prod(first.positions, dtype=np.int64))
    height = 340 if flat else 420
    figure = look.figure(880, height * (len(maps) if style.narrow else 1), style)
    shape = (len(maps), 1) if style.narrow else (1, len(maps))
    place = "token" if len(first.positions) == 1 else "pixel"
    for index, (name, values) in enumerate(maps.items()):
        extent = (0.0, float(channels), float(places), 0.0)
        if flat:
            axes = figure.add_subplot(*shape, index + 1)
            logs = np.log10(np.maximum(values, top / 1e4))
            image = axes.imshow(
                logs,
                cmap=SEQUENTIAL,
                aspect="auto",
                interpolation="none",
                extent=extent,
                vmin=np.log10(top) - 4,
                vmax=np.log10(top),
            )
            look.quiet(axes, style, frame=False)
            axes.set_xlabel("channel")
            if index == 0 or style.narrow:
                axes.set_ylabel(place)
            look.title(axes, name, style, colour=style.variant(index))
            if index == len(maps) - 1:
                bar = figure.colorbar(image, ax=axes, pad=0.03)
                look.colour_bar(bar, style, "|input|")
                marks = np.ceil(np.log10(top)) - np.arange(5)
                marks = marks[(marks <= np.log10(top)) & (marks >= np.log10(top) - 4)]
                bar.set_ticks(list(marks), labels=[f"{10.0**mark:g}" for mark in marks])
        else:
            axes = figure.add_subplot(*shape, index + 1, projection="3d")
            _raise(axes, values, extent, top, style)
            axes.set_ylabel(place, color=style.muted, fontsize=look.SMALL)
            axes.set_title(look.drawable(name), fontsize=look.TYPE, color=style.text)
    name, values = next(iter(maps.items()))
    at = first.half(half)  # the surface's cells hold several: the exact ones are known
    at_channel, at_place = int(first.absmax[at].argmax()), int(first.position_absmax[at].argmax())
    words = (
        f"{name}: the peak of {digits(float(values.max()))} is at {place} {at_place + 1}, "
        f"channel {at_channel}."
    )
    return View(
        figure=figure,
        alt=f"Largest magnitude by {place} and channel of {first.name}. {words}",
        caption=words,
        style=style,
        data=data.stacked(
            {
                label: data.of_map(each, f"{place} cell", "channel cell", "largest |input|")
                for label, each in maps.items()
            }
        ),
    )


def _density(record: LayerRecord, at: int, edges: Floats) -> tuple[Floats, Floats]:
    """Cells that hold something, their outer edges at the exact extremes, and share per unit."""
    counts = record.histogram[at].astype(np.float64)
    seen = np.flatnonzero(counts)
    if not len(seen):
        return np.array([-1.0, 1.0]), np.zeros(1)
    cut = edges[seen[0] : seen[-1] + 2].copy()
    cut[0] = float(record.minimum[at].min())
    cut[-1] = max(float(record.maximum[at].max()), cut[0] + 1e-9)
    cut = np.maximum.accumulate(cut)
    found = counts[seen[0] : seen[-1] + 1]
    # Bins near zero are far finer than a figure: neighbours join until they are a pixel wide.
    cells = np.floor((cut[:-1] - cut[0]) / max(float(cut[-1] - cut[0]), 1e-12) * _CELLS)
    starts = np.flatnonzero(np.diff(cells, prepend=-1.0) > 0)
    joined = np.add.reduceat(found, starts)
    edges = np.append(cut[starts], cut[-1])
    return edges, joined / counts.sum() / np.maximum(np.diff(edges), 1e-12)


def _comb(axes: Axes, codes: CodesRecord, style: Style) -> None:
    """The levels of each scale as teeth; of many scales, some from the finest to the coarsest."""
    order = np.argsort(codes.scale, kind="stable")
    if len(order) > COMBS:
        order = order[np.linspace(0, len(order) - 1, COMBS).round().astype(int)]
    for row, scale in enumerate(order):
        colour = look.GROUPS[row % len(look.GROUPS)] if len(order) > 1 else style.text
        teeth = np.repeat(codes.levels(int(scale)), 3)  # one path for all: up, and on to the next
        ends = np.tile([row + 0.1, row + 0.9, np.nan], len(teeth) // 3)
        axes.plot(teeth, ends, color=colour, linewidth=0.7)
    look.quiet(axes, style)
    axes.set_ylim(0, len(order))
    axes.set_yticks([])
    axes.set_ylabel("levels")


def _raise(
    axes: Axes3D,
    values: npt.NDArray[np.floating],
    extent: tuple[float, float, float, float],
    top: float,
    style: Style,
) -> None:
    """The surface: peaks stand up, all else is a floor."""
    for axis, most in ((0, 64), (1, 128)):  # the largest of neighbours: no peak is left out
        stride = -(-values.shape[axis] // most)
        values = np.maximum.reduceat(values, range(0, values.shape[axis], stride), axis=axis)
    rows, columns = values.shape
    x, y = np.meshgrid(np.linspace(0, extent[1], columns), np.linspace(0, extent[2], rows))
    axes.plot_surface(
        x,
        y,
        values,
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=top,
        rcount=rows,
        ccount=columns,
        linewidth=0,
        rasterized=True,
    )
    axes.set_zlim(0, top)
    axes.set_facecolor((0, 0, 0, 0))
    axes.set_xlabel("channel", color=style.muted, fontsize=look.SMALL)
    axes.set_zlabel("|input|", color=style.muted, fontsize=look.SMALL)
    axes.tick_params(colors=style.muted, labelsize=look.SMALL - 2)
    for side in cast(tuple[Any, ...], (axes.xaxis, axes.yaxis, axes.zaxis)):
        side.set_pane_color((0, 0, 0, 0))
        side._axinfo["grid"]["color"] = style.line  # what the 3D axes read; no public way
