"""What a layer receives: bands by channel, a map by position, and layers against steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from vqdq.capture.records import LayerRecord
from vqdq.capture.streams import OUTLIER, bin_edges
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.layer_map import layer_map
from vqdq.views.overview import detailed, outlier_share
from vqdq.views.style import DIVERGING, SEQUENTIAL, Style, View, share

__all__ = ["Named", "channel_strip", "layer_map", "outliers", "position_map"]

Named = tuple[str, LayerRecord]
"""What a record is called on the page ("FP16", "demo-trellis-3bit"), and the record."""


def channel_strip(
    records: Sequence[Named],
    style: Style,
    *,
    half: str = "cond",
    by_size: bool = False,
    groups: npt.NDArray[np.integer] | None = None,
) -> View:
    """Returns the range of each channel: min to max, 1st to 99th percentile, median.

    Args:
        records: the reference, then its variants: strips under each other on one scale.
        half: which guidance half; `by_size`: channels sorted by the reference's largest magnitude.
        groups: of each channel, [channels], as a quantizer shares scales; drawn as a coloured rule.
    """
    first = records[0][1]
    at = first.half(half)
    order = np.arange(first.absmax.shape[1])
    if by_size:
        order = np.argsort(-first.absmax[at], kind="stable")
    low = min(float(record.minimum[at].min()) for _, record in records)
    high = max(float(record.maximum[at].max()) for _, record in records)
    figure = look.figure(880, 40 + 168 * len(records), style)
    grid = figure.subplots(len(records), 1, sharex=True, sharey=True, squeeze=False)
    for index, ((name, record), axes) in enumerate(zip(records, grid[:, 0], strict=True)):
        colour = style.variant(index)
        look.quiet(axes, style)
        count = f"{name} · {int(record.count[at]):,} values"
        look.title(axes, count, style, colour=colour)
        _bands(axes, record, at, order, colour, style)
        _scale(axes, low, high, style)
        axes.set_ylabel("input value")
        _mark_largest(axes, record, at, order, style)
        if groups is not None and len(groups) == len(order):
            _group_rule(axes, groups[order])
    inner = all(detailed(record) for _, record in records)
    bottom = grid[-1, 0]
    bottom.set_xlabel("channel, largest first" if by_size else "channel")
    bottom.set_xlim(-0.5, len(order) - 0.5)
    return View(
        figure=figure,
        alt=f"Range of the input values of each of {len(order)} channels of {first.name} at step "
        f"{first.step + 1}. {outliers(first, half=half)}",
        caption="Light: smallest to largest value."
        + (" Strong: 1st to 99th percentile. Line: median." if inner else "")
        + (" Colours below: channels that share a scale." if groups is not None else ""),
        style=style,
        data=data.stacked({name: _channels(record, at, order) for name, record in records}),
    )


def position_map(
    records: Sequence[Named], style: Style, *, half: str = "cond", labels: Sequence[str] = ()
) -> View | None:
    """Returns the largest magnitude at each place, and its change; None for a single vector.

    A layer that reads the text gets bars by token instead of a map; `labels` name the tokens.
    """
    first = records[0][1]
    if not first.positions:
        return None
    maps = [record.position_absmax[record.half(half)] for _, record in records]
    named = [name for name, _ in records]
    if len(first.positions) == 1:
        return _token_bars(named, maps, first, style, labels)
    top = max(float(values.max()) for values in maps)
    panels = len(maps) + (1 if len(maps) == 2 else 0)
    height, width = first.positions
    figure, grid = look.row(panels, 300, style, pictures=True)
    for index, (name, values) in enumerate(zip(named, maps, strict=True)):
        axes = grid[index]
        image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="none")
        _map_axes(axes, style, first.positions, rows=index == 0 or style.narrow)
        look.title(axes, name, style, colour=style.variant(index))
        if index == len(maps) - 1:
            look.colour_bar(figure.colorbar(image, ax=axes, pad=0.03), style, "largest |input|")
    if len(maps) == 2:
        difference = maps[1] - maps[0]
        limit = max(float(np.abs(difference).max()), 1e-9)
        axes = grid[2]
        image = axes.imshow(
            difference, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none"
        )
        _map_axes(axes, style, first.positions, border=True, rows=style.narrow)
        look.title(axes, f"{named[1]} − {named[0]}", style)
        look.colour_bar(figure.colorbar(image, ax=axes, pad=0.03), style, "change")
    row, column = np.unravel_index(int(maps[0].argmax()), maps[0].shape)
    return View(
        figure=figure,
        alt=f"Largest magnitude at each of {height} × {width} places of {first.name}; the peak of "
        f"{named[0]} is {digits(float(maps[0].max()))} at row {row + 1}, column {column + 1}.",
        caption="The largest magnitude over all channels at each place of the picture.",
        style=style,
        data=data.stacked(
            {
                name: data.of_map(values, "row", "column", "largest |input|")
                for name, values in zip(named, maps, strict=True)
            }
        ),
    )


def outliers(record: LayerRecord, *, half: str = "cond", name: str = "") -> str:
    """Returns one plain sentence about the values that stand out, with numbers."""
    at = record.half(half)
    absmax = record.absmax[at]
    channel = int(absmax.argmax())
    peak, median = float(absmax[channel]), float(record.median_abs[at])
    ratio = peak / max(median, 1e-12)
    who = f"{name}: channel" if name else "Channel"
    times = digits(ratio) if ratio < 1000 else "more than 1,000"
    largest = (
        f"{who} {channel} reaches {digits(peak)}, {times} times the median magnitude "
        f"({digits(median)})."
    )
    limit = digits(record.outlier_threshold)
    far, exact = beyond_median(record, half=half)
    most = f"{share(far)} reach" if far else "None reaches"
    thousand = f" {most} 1,000 times the median." if exact else ""
    beyond, channels = outlier_share(record, half)
    if not beyond:
        return f"{largest} No value has a magnitude of {limit} or more.{thousand}"
    return (
        f"{largest} {share(beyond)} of the values, in {channels} of {len(absmax)} channels, "
        f"have a magnitude of {limit} or more.{thousand}"
    )


def beyond_median(
    record: LayerRecord, *, half: str = "cond", times: float = 1000.0
) -> tuple[float, bool]:
    """Returns the share of values of at least `times` the median magnitude, and whether it says
    something: a median of zero for all purposes (inputs that are mostly shut) has no multiples.

    Counted in bins, so the limit is off by at most one bin (12.5 %).
    """
    at = record.half(half)
    median = float(record.median_abs[at])
    edges = bin_edges()
    inner = np.minimum(np.abs(edges[:-1]), np.abs(edges[1:]))
    inner[len(inner) // 2] = 0.0  # the bin around zero
    counts = record.histogram[at]
    found = float(counts[inner >= times * median].sum()) / max(float(counts.sum()), 1.0)
    return found, median > 1e-3


def _bands(
    axes: Axes,
    record: LayerRecord,
    at: int,
    order: npt.NDArray[np.intp],
    colour: str,
    style: Style,
) -> None:
    # Steps drawn by hand: each channel is as wide as any other, the first and last included.
    x = np.repeat(np.arange(len(order) + 1) - 0.5, 2)[1:-1]

    def steps(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.repeat(values[at][order], 2)

    axes.fill_between(
        x, steps(record.minimum), steps(record.maximum), color=colour, alpha=0.3, linewidth=0
    )
    axes.fill_between(
        x, steps(record.p01), steps(record.p99), color=colour, alpha=0.75, linewidth=0
    )
    axes.plot(x, steps(record.median), color=style.text, linewidth=0.8, alpha=0.8)


def _channels(record: LayerRecord, at: int, order: npt.NDArray[np.intp]) -> data.Plotted:
    return data.table(
        channel=order,
        minimum=record.minimum[at][order],
        p01=record.p01[at][order],
        median=record.median[at][order],
        p99=record.p99[at][order],
        maximum=record.maximum[at][order],
        mean=record.mean[at][order],
        values_of_magnitude_6_or_more=record.outliers[at][order],
    )


def _group_rule(axes: Axes, groups: npt.NDArray[np.integer]) -> None:
    """A thin rule under the channels, in one colour for each group."""
    colours = [look.GROUPS[int(group) % len(look.GROUPS)] for group in groups]
    place = axes.get_xaxis_transform()
    axes.bar(np.arange(len(groups)), 0.03, 1.0, color=colours, transform=place, linewidth=0)


def _scale(axes: Axes, low: float, high: float, style: Style) -> None:
    """A linear axis, or one that is logarithmic beyond ±1 when a few values dwarf the rest."""
    limit = max(abs(low), abs(high), 1e-6)
    if limit > 24:
        axes.set_yscale("symlog", linthresh=1.0, linscale=0.6)
        powers = 10.0 ** np.arange(0, int(np.ceil(np.log10(limit))) + 1)
        axes.set_yticks([*(-powers[::-1]), 0, *powers])
        axes.yaxis.set_major_formatter(lambda value, _: digits(float(value)))
        axes.minorticks_off()
    axes.set_ylim(low - 0.12 * (high - low), high + 0.16 * (high - low))
    for level in (-OUTLIER, OUTLIER):
        if low < level < high:
            axes.axhline(level, color=style.muted, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
    axes.axhline(0, color=style.line, linewidth=0.8, zorder=0)


def _mark_largest(
    axes: Axes, record: LayerRecord, at: int, order: npt.NDArray[np.intp], style: Style
) -> None:
    absmax = record.absmax[at]
    channel = int(absmax.argmax())
    place = int(np.flatnonzero(order == channel)[0])
    up = record.maximum[at][channel] >= -record.minimum[at][channel]
    value = float(record.maximum[at][channel] if up else record.minimum[at][channel])
    right = place < 0.85 * len(order)
    low, high = axes.get_ylim()
    gap = abs(value) - OUTLIER  # the dashed line there would cross the words
    beside = 0.0 if abs(gap) > 0.08 * (high - low) else 8.0 if (gap >= 0) == up else -8.0
    axes.annotate(
        f"channel {channel}: {digits(value)}",
        (place, value),
        xytext=(6 if right else -6, beside),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=style.text,
        fontsize=look.SMALL,
    )


def _map_axes(
    axes: Axes, style: Style, positions: tuple[int, ...], *, border: bool = False, rows: bool = True
) -> None:
    look.quiet(axes, style, frame=False)
    height, width = positions
    axes.set_xticks([0, width - 1], ["1", str(width)])
    axes.set_yticks([0, height - 1], ["1", str(height)])
    axes.set_xlabel("column")
    if rows:  # panels side by side have the same
        axes.set_ylabel("row", labelpad=-4)
    if border:
        for spine in axes.spines.values():
            spine.set_visible(True)


def _token_bars(
    names: Sequence[str],
    maps: Sequence[npt.NDArray[np.float32]],
    first: LayerRecord,
    style: Style,
    labels: Sequence[str],
) -> View:
    figure = look.figure(880, 240, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    tokens = first.positions[0]
    width = 0.8 / len(maps)
    for index, (name, values) in enumerate(zip(names, maps, strict=True)):
        x = np.arange(tokens) + (index - (len(maps) - 1) / 2) * width
        axes.bar(x, values, width, color=style.variant(index), label=look.drawable(name))
    axes.set_ylabel("largest |input|")
    if len(labels) == tokens <= 40:
        drawn = ["" if label == "<pad>" else look.drawable(label) for label in labels]
        axes.set_xticks(range(tokens), drawn, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlabel("token of the prompt, padding at the end")
    else:
        marks = range(0, tokens, max(1, round(tokens / 12)))
        axes.set_xticks(list(marks), [str(mark + 1) for mark in marks])
        axes.set_xlabel("token of the prompt, the start sign is 1")
    axes.set_xlim(-0.6, tokens - 0.4)
    if len(maps) > 1:
        axes.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL, ncols=len(maps))
    peak = int(maps[0].argmax())
    return View(
        figure=figure,
        alt=f"Largest magnitude at each of {tokens} tokens read by {first.name}; the peak is token "
        f"{peak + 1} with {digits(float(maps[0].max()))}.",
        caption="This layer reads the text: the largest magnitude over all channels at each token.",
        style=style,
        data=data.stacked(
            {
                name: data.table(token=np.arange(1, tokens + 1), **{"largest |input|": values})
                for name, values in zip(names, maps, strict=True)
            }
        ),
    )
