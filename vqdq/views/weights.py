"""A layer's weight before and after: its values, how its codes are used, and where the error is."""

from __future__ import annotations

import numpy as np

from vqdq.capture.weights import WeightRecord
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import Style, View, share


def weight_histogram(record: WeightRecord, style: Style) -> View:
    """Returns the values of the weight as they were and as they are stored."""
    figure = look.figure(880, 280, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    parts = {"FP16": record.reference, record.codec or "stored": record.variant}
    width = np.diff(record.edges)
    densities = {
        name: counts / max(float(counts.sum()), 1.0) / width for name, counts in parts.items()
    }
    for index, (name, density) in enumerate(densities.items()):
        axes.stairs(
            density,
            record.edges,
            fill=index == 0,
            color=style.variant(index),
            alpha=0.5 if index == 0 else 1.0,
            linewidth=1.5,
            label=name,
        )
    look.log_y(axes)
    axes.set_ylabel("share of weights per unit")
    axes.set_xlabel("weight")
    look.title(axes, f"{record.rows:,} × {record.columns:,} weights", style)
    axes.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL)
    words = f"Weights of {record.name} from {digits(float(record.edges[0]))} to " + digits(
        float(record.edges[-1])
    )
    return View(
        figure=figure,
        alt=f"Histogram: {words}.",
        caption=f"{words}.",
        style=style,
        data=data.table(
            weight_from=record.edges[:-1],
            weight_to=record.edges[1:],
            **{f"{name}: share per unit": density for name, density in densities.items()},
        ),
    )


def code_use(record: WeightRecord, style: Style) -> View | None:
    """Returns how often each code occurs, codebooks side by side; None where there are none."""
    if not record.use.size:
        return None
    books, codes = record.use.shape
    figure, grid = look.row(books, 260, style)
    portion = 100 * record.use / np.maximum(record.use.sum(axis=1, keepdims=True), 1)
    for book, axes in enumerate(grid):
        look.quiet(axes, style)
        edges = np.arange(codes + 1) - 0.5
        axes.stairs(portion[book], edges, fill=True, color=style.variant(1))
        axes.set_xlabel(record.use_label)
        axes.set_xlim(-0.5, codes - 0.5)
        if books > 1:
            look.title(axes, f"codebook {book + 1}", style)
    top = 1.05 * float(portion.max())
    for axes in grid:
        axes.set_ylim(0, top)
    grid[0].set_ylabel("codes (%)")
    unused = int((record.use == 0).sum())
    words = (
        f"{books * codes - unused:,} of {books * codes:,} are used "
        f"({share(1 - unused / (books * codes))}), {int(record.use.sum()):,} codes in all."
    )
    book, code = np.indices(record.use.shape)
    return View(
        figure=figure,
        alt=f"How often each {record.use_label} of {record.name} occurs. {words}",
        caption=words,
        style=style,
        data=data.table(codebook=book + 1, code=code, count=record.use),
    )


def row_error(record: WeightRecord, style: Style) -> View:
    """Returns the error of each output row, in dB of the row's power."""
    values = record.row_error_db
    finite = values[np.isfinite(values)]
    figure = look.figure(880, 240, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    axes.plot(np.arange(len(values)), values, ".", color=style.variant(1), markersize=4)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel(f"output row ({len(values)} rows)")
    axes.set_ylabel("error (dB)")
    words = "The stored weight is the weight itself."
    if finite.size:
        middle, worst = float(np.median(finite)), int(np.nanargmax(values))
        axes.axhline(middle, color=style.muted, linewidth=0.8, linestyle=(0, (4, 4)))
        words = (
            f"Median {digits(middle)} dB; the worst is row {worst} with "
            f"{digits(float(values[worst]))} dB."
        )
    return View(
        figure=figure,
        alt=f"Error of each row of the weight of {record.name}. {words}",
        caption=words,
        style=style,
        data=data.table(row=np.arange(len(values)), **{"error (dB)": values}),
    )
