"""Which layers cost a picture most: their ranking, when they do, and what mending them gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from vqdq.jobs.blame_result import brief
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import DIVERGING, Style, View, share

if TYPE_CHECKING:
    from vqdq.jobs.blame_result import Offer
    from vqdq.models.blame_report import BlameReport, By

TOP = 15
_AREAS = ("the whole picture", "the marked region")
_ROW = 22.0


def figures(found: BlameReport, offers: Sequence[Offer], style: Style) -> dict[str, View]:
    """Returns every figure of a finished search by the name of its file."""
    views: dict[str, View] = {}
    for area in range(found.areas):
        end = "-region" if area else ""
        views[f"ranking{end}"] = ranking(found, style, area=area)
        views[f"layers-and-steps{end}"] = layer_steps(found, style, area=area)
    if offers:
        views["repairs"] = repairs(offers, style)
    return views


def ranking(
    found: BlameReport, style: Style, *, area: int = 0, by: By = "share", top: int = TOP
) -> View:
    """Returns what the worst layers cost both ways, with standard errors over calls.

    Left: dB regained when each alone is put back to 16 bits. Right: the SQNR of the reference when
    each alone is compressed, where low is bad.
    """
    places = list(found.ranked(by, area)[:top])
    gain, damage = found.gain_db(area), found.damage_db(area)
    gain_error, damage_error = found.gain_error_db(area), found.damage_error_db(area)
    height = _ROW * len(places) + 76
    figure, (left, right) = look.row(2, height, style, widths=[1.6, 1])
    rows = np.arange(len(places))
    left.barh(rows, _finite(gain[places]), height=0.62, color=style.variant(1))
    _whiskers(left, gain[places], gain_error[places], rows, style)
    right.plot(_finite(damage[places]), rows, "o", color=style.variant(2), markersize=6)
    _whiskers(right, damage[places], damage_error[places], rows, style)
    names = [look.drawable(brief(found.names[place])) for place in places]
    for axes in (left, right):
        look.quiet(axes, style)
        axes.set_ylim(len(places) - 0.4, -0.6)
        own = axes is left or style.narrow
        axes.set_yticks(list(rows), names if own else [""] * len(names))
    left.set_xlabel("regained when put back to 16 bits (dB)")
    right.set_xlabel("SQNR with it alone compressed (dB)")
    left.axvline(0, color=style.line, linewidth=1)
    calls = found.error.shape[1]
    look.title(left, f"{_AREAS[area].capitalize()} · {calls} calls", style)
    words = "No layer was measured."
    if places:
        first = places[0]
        words = (
            f"{brief(found.names[first])} has {share(float(found.share(area)[first]))} of the "
            f"error: {digits(float(gain[first]))} dB when it is put back, "
            f"{digits(float(damage[first]))} dB with it alone."
        )
    return View(
        figure=figure,
        alt=f"The {len(places)} worst layers in {_AREAS[area]}. {words}",
        caption=f"{words} Whiskers: one standard error over the calls.",
        style=style,
        data=data.table(
            layer=np.array([found.names[place] for place in places]),
            share=found.share(area)[places],
            gain_db=gain[places],
            gain_standard_error_db=gain_error[places],
            alone_sqnr_db=damage[places],
            alone_standard_error_db=damage_error[places],
            bytes=np.array(found.bytes)[places],
            bytes_to_16_bits=np.array(found.repair_bytes)[places],
            calls=calls,
        ),
    )


def layer_steps(
    found: BlameReport, style: Style, *, area: int = 0, by: By = "share", top: int = 20
) -> View:
    """Returns the dB that each of the worst layers regains at each step that was measured."""
    places = list(found.ranked(by, area)[:top])
    steps, gains = found.by_step(area)
    shown = gains[:, places].T  # [layers, steps]
    figure = look.figure(880, _ROW * len(places) + 96, style)
    axes = figure.subplots()
    finite = np.abs(shown[np.isfinite(shown)])
    limit = float(np.sqrt(max(float(finite.max()) if finite.size else 0.0, 1e-9)))
    image = axes.imshow(
        np.sign(shown) * np.sqrt(np.abs(shown)),  # the small ones can be told apart too
        cmap=DIVERGING,
        aspect="auto",
        interpolation="none",
        vmin=-limit,
        vmax=limit,
    )
    look.quiet(axes, style)
    axes.set_yticks(range(len(places)), [look.drawable(brief(found.names[at])) for at in places])
    marks = range(0, len(steps), 2 if style.narrow and len(steps) > 4 else 1)
    axes.set_xticks(list(marks), [str(steps[mark] + 1) for mark in marks])
    axes.set_xlabel("sampler step")
    samples = f"{len(places)} layers × {len(steps)} steps"
    look.title(axes, samples if style.narrow else f"{samples} · {_AREAS[area]}", style)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=36)
    look.colour_bar(bar, style, "regained (dB)")
    parts = np.array([-1, -0.25, -0.0625, 0, 0.0625, 0.25, 1])
    bar.set_ticks(
        list(np.sign(parts) * np.sqrt(np.abs(parts)) * limit),
        labels=[digits(float(part * limit**2)) for part in parts],
    )
    words = "No layer was measured."
    if finite.size:
        row, column = np.unravel_index(int(np.nanargmax(shown)), shown.shape)
        words = (
            f"Most is regained at step {steps[int(column)] + 1} by "
            f"{brief(found.names[places[int(row)]])}: {digits(float(shown[row, column]))} dB."
        )
    return View(
        figure=figure,
        alt=f"Decibels regained by layer and step in {_AREAS[area]}. {words}",
        caption=f"{words} Worst layers first; blue: putting the layer back made it worse there.",
        style=style,
        data=data.table(
            layer=np.repeat(np.array([found.names[place] for place in places]), len(steps)),
            step=np.tile(np.array(steps) + 1, len(places)),
            gain_db=shown,
        ),
    )


def repairs(offers: Sequence[Offer], style: Style) -> View:
    """Returns what each set of repairs adds to the file against the quality measured with it."""
    figure = look.figure(880, 320, style)
    axes = figure.subplots()
    look.quiet(axes, style)
    kinds = list(dict.fromkeys(each["bits"] for each in offers))
    for index, bits in enumerate(kinds):
        mine = [each for each in offers if each["bits"] == bits]
        mine.sort(key=lambda each: each["added_bytes"])
        sizes = [each["added_bytes"] / 1e6 for each in mine]
        axes.plot(
            sizes,
            [each["after_db"] for each in mine],
            "o-",
            color=style.variant(index + 1),
            markersize=6,
            linewidth=1.8,
            label=bits_in_words(bits),
        )
        for label, size, after in _counts(mine, offers):
            axes.annotate(
                label,
                (size, after),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=look.SMALL,
                color=style.muted,
            )
    before = offers[0]["before_db"]
    axes.axhline(before, color=style.muted, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(y=0.15)
    axes.set_xlabel("added to the file (MB)")
    axes.set_ylabel("SQNR (dB)")
    look.title(axes, "Layers repaired together, measured", style)
    axes.legend(frameon=False, labelcolor=style.muted, fontsize=look.SMALL, loc="center right")
    best = max(offers, key=lambda each: each["gain_db"])
    words = (
        f"Most is regained by {len(best['layers'])} layers: {digits(best['gain_db'])} dB for "
        f"{digits(best['added_bytes'] / 1e6)} MB."
    )
    return View(
        figure=figure,
        alt=f"Quality against added bytes for {len(offers)} sets of repairs. {words}",
        caption=f"{words} Dashed: without a repair, {digits(before)} dB. Numbers: how many layers.",
        style=style,
        data=data.table(
            layers=np.array([len(each["layers"]) for each in offers]),
            bits=np.array([bits_in_words(each["bits"]) for each in offers]),
            added_bytes=np.array([each["added_bytes"] for each in offers]),
            before_sqnr_db=np.array([each["before_db"] for each in offers]),
            measured_sqnr_db=np.array([each["after_db"] for each in offers]),
            predicted_gain_db=np.array([each["predicted_gain_db"] for each in offers]),
            names=np.array([" ".join(each["layers"]) for each in offers]),
        ),
    )


def _counts(mine: Sequence[Offer], offers: Sequence[Offer]) -> list[tuple[str, float, float]]:
    """Returns how many layers each set of one kind repairs, and where: MB, dB.

    Sets that lie on each other get one label at the highest of them: "1–7".
    """
    places = np.array([(each["added_bytes"] / 1e6, each["after_db"]) for each in offers])
    near = 0.04 * np.maximum(np.ptp(places, axis=0), 1e-9)
    heaps: list[list[Offer]] = []
    for each in mine:
        last = heaps[-1][-1] if heaps else None
        if (
            last is not None
            and abs(each["added_bytes"] - last["added_bytes"]) / 1e6 < near[0]
            and abs(each["after_db"] - last["after_db"]) < near[1]
        ):
            heaps[-1].append(each)
        else:
            heaps.append([each])
    found: list[tuple[str, float, float]] = []
    for heap in heaps:
        counts = sorted({len(each["layers"]) for each in heap})
        label = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
        top = max(heap, key=lambda each: each["after_db"])
        found.append((label, top["added_bytes"] / 1e6, top["after_db"]))
    return found


def bits_in_words(bits: int | None) -> str:
    """Returns what a set of repairs does to its layers: "8 bits", "input in 16 bits", "mixed"."""
    if bits is None:
        return "mixed"
    return f"{bits} bits" if bits else "input in 16 bits"


def _whiskers(
    axes: Axes,
    values: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int_],
    style: Style,
) -> None:
    """One standard error to each side, where there is one."""
    known = np.isfinite(values) & np.isfinite(errors)
    axes.hlines(
        rows[known],
        (values - errors)[known],
        (values + errors)[known],
        color=style.muted,
        linewidth=1.2,
    )


def _finite(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)
