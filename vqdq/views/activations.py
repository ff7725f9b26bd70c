"""What a layer receives: bands by channel, a map by position, and layers against steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from vqdq.capture.records import ActivationRecord, LayerRecord
from vqdq.views import style as look
from vqdq.views.style import DIVERGING, SEQUENTIAL, Style, View, digits, share

Named = tuple[str, LayerRecord]
"""What a record is called on the page ("FP16", "demo-trellis-3bit"), and the record."""


def channel_strip(
    records: Sequence[Named], style: Style, *, half: str = "cond", by_size: bool = False
) -> View:
    """Returns the range of each channel: min to max, 1st to 99th percentile, median.

    Args:
        records: the reference, then its variants: strips under each other on one scale.
        half: which guidance half; `by_size`: channels sorted by the reference's largest magnitude.
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
        look.title(axes, name, style, colour=colour)
        _bands(axes, record, at, order, colour, style)
        _scale(axes, low, high, style)
        axes.set_ylabel("input value")
        _mark_largest(axes, record, at, order, style)
    bottom = grid[-1, 0]
    bottom.set_xlabel("channel, largest first" if by_size else "channel")
    bottom.set_xlim(-0.5, len(order) - 0.5)
    return View(
        figure=figure,
        alt=f"Range of the input values of each of {len(order)} channels of {first.name} at step "
        f"{first.step + 1}. {outliers(first, half=half)}",
        caption="Light: smallest to largest value. Strong: 1st to 99th percentile. Line: median.",
        style=style,
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
    figure = look.figure(880, 300, style, pictures=True)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for index, (name, values) in enumerate(zip(named, maps, strict=True)):
        axes = grid[index]
        image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="none")
        _map_axes(axes, style, first.positions)
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
        _map_axes(axes, style, first.positions, border=True)
        look.title(axes, f"{named[1]} − {named[0]}", style)
        look.colour_bar(figure.colorbar(image, ax=axes, pad=0.03), style, "change")
    row, column = np.unravel_index(int(maps[0].argmax()), maps[0].shape)
    return View(
        figure=figure,
        alt=f"Largest magnitude at each of {height} × {width} places of {first.name}; the peak of "
        f"{named[0]} is {digits(float(maps[0].max()))} at row {row + 1}, column {column + 1}.",
        caption="The largest magnitude over all channels at each place of the picture.",
        style=style,
    )


def layer_map(
    record: ActivationRecord,
    style: Style,
    *,
    quantity: str = "peak_ratio",
    reference: ActivationRecord | None = None,
    half: str = "cond",
    chosen: tuple[str, int] | None = None,
) -> View:
    """Returns layers in the order they run against sampler steps, one number as colour.

    Args:
        quantity: "absmax", "peak_ratio" (largest over median magnitude), "kurtosis", or "sqnr_db"
            (drift of the output against `reference`).
        chosen: layer and step to mark.
    """
    values, label, log = _quantity(record, quantity, reference)
    at = record.halves.index(half) if half in record.halves else len(record.halves) - 1
    shown = values[at].astype(float)  # [layers, steps]
    shown = np.where(np.isposinf(shown), np.nan, shown)
    plotted = np.log10(np.maximum(shown, 1e-6)) if log else shown
    figure = look.figure(880, 420, style)
    axes = figure.subplots()
    cmap = "viridis_r" if quantity == "sqnr_db" else SEQUENTIAL
    finite = plotted[np.isfinite(plotted)]
    bounds = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    image = axes.imshow(
        plotted, cmap=cmap, aspect="auto", interpolation="none", vmin=bounds[0], vmax=bounds[1]
    )
    look.quiet(axes, style)
    axes.set_xlabel("sampler step")
    steps = shown.shape[1]
    marks = range(0, steps, max(1, round(steps / 10)))
    axes.set_xticks(list(marks), [str(mark + 1) for mark in marks])
    starts, names = _blocks(record.layers)
    axes.set_yticks(starts, names)
    if chosen is not None and chosen[0] in record.layers:
        row = record.layers.index(chosen[0])
        axes.axhline(row, color=style.text, linewidth=1)
        axes.plot(chosen[1], row, "o", color=style.text, markersize=6, markerfacecolor="none")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=36)
    look.colour_bar(bar, style, label)
    if log:
        levels = look.round_levels(10 ** bounds[0], 10 ** bounds[1])
        bar.set_ticks([float(np.log10(x)) for x in levels], labels=[f"{x:g}" for x in levels])
    row, column = np.unravel_index(int(np.nanargmax(plotted)), plotted.shape)
    sense = "lowest" if quantity == "sqnr_db" else "highest"
    if quantity == "sqnr_db" and finite.size:
        row, column = np.unravel_index(int(np.nanargmin(plotted)), plotted.shape)
    extreme = digits(float(shown[row, column]))
    if quantity == "peak_ratio" and shown[row, column] > 999:
        extreme = "1,000 or more"
    return View(
        figure=figure,
        alt=f"{label} of {len(record.layers)} layers at {steps} steps; {sense} in "
        f"{record.layers[row]} at step {column + 1}: {extreme}.",
        caption=f"{sense.capitalize()}: {record.layers[row]}, step {column + 1}, {extreme}.",
        style=style,
    )


def outliers(record: LayerRecord, *, half: str = "cond", name: str = "") -> str:
    """Returns one plain sentence about the values that stand out, with numbers."""
    at = record.half(half)
    absmax = record.absmax[at]
    channel = int(absmax.argmax())
    peak, median = float(absmax[channel]), float(record.median_abs[at])
    ratio = peak / max(median, 1e-12)
    beyond = record.outliers[at]
    who = f"{name}: channel" if name else "Channel"
    times = digits(ratio) if ratio < 1000 else "more than 1,000"
    largest = (
        f"{who} {channel} reaches {digits(peak)}, {times} times the median magnitude "
        f"({digits(median)})."
    )
    limit = digits(record.outlier_threshold)
    if int(beyond.sum()) == 0:
        return f"{largest} No value has a magnitude of {limit} or more."
    part = share(float(beyond.sum()) / max(int(record.count[at]), 1))
    channels = int((beyond > 0).sum())
    return (
        f"{largest} {part} of the values, in {channels} of {len(absmax)} channels, "
        f"have a magnitude of {limit} or more."
    )


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
    for level in (-6.0, 6.0):
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
    axes.annotate(
        f"channel {channel}: {digits(value)}",
        (place, value),
        xytext=(6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        color=style.text,
        fontsize=look.SMALL,
    )


def _map_axes(
    axes: Axes, style: Style, positions: tuple[int, ...], *, border: bool = False
) -> None:
    look.quiet(axes, style, frame=False)
    height, width = positions
    axes.set_xticks([0, width - 1], ["1", str(width)])
    axes.set_yticks([0, height - 1], ["1", str(height)])
    axes.set_xlabel("column")
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
    )


def _quantity(
    record: ActivationRecord, quantity: str, reference: ActivationRecord | None
) -> tuple[npt.NDArray[np.floating], str, bool]:
    scalars = record.scalars
    if quantity == "sqnr_db" and reference is not None:
        return record.sqnr_db(reference), "output against FP16 (dB)", False
    if quantity == "absmax":
        return scalars.absmax, "largest |input|", True
    if quantity == "kurtosis":
        return scalars.kurtosis, "kurtosis", True
    return scalars.peak_ratio, "largest ÷ median |input|", True


def _blocks(layers: Sequence[str]) -> tuple[list[int], list[str]]:
    """Rows at which another block of the model begins, and the blocks' names."""
    rows: list[int] = []
    names: list[str] = []
    for row, layer in enumerate(layers):
        parts = layer.split(".")
        block = " ".join(parts[:2]) if parts[0].endswith("blocks") else parts[0]
        block = block.replace("_blocks", "").replace("_block", "").replace("_", " ")
        if names and (names[-1] == block or (rows and row - rows[-1] < 6)):
            continue
        rows.append(row)
        names.append(block)
    return rows, names
