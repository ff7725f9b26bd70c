"""Results of a blind test: votes counted, win rates with intervals, who can tell, how few bits.

Nothing is drawn sharper than it is known: every dot has its interval, and what would be chance or
"equally good" is marked before the dots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from vqdq.jobs.outcome import Comparison
from vqdq.metrics.bradley_terry import Standing
from vqdq.metrics.proportions import Interval
from vqdq.metrics.staircase import Threshold
from vqdq.metrics.verdict import Detection
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import Style, View

ROW = 46  # units of one row
_BAR = 0.52


def preferences(
    rows: Sequence[tuple[str, Comparison]],
    colours: Mapping[str, int],
    margin: float,
    style: Style,
) -> View:
    """Returns, for each comparison, its pairs as a bar and its win rate with the interval.

    Args:
        rows: what a row is called, and its numbers.
        colours: of a model by its name; 0 is full precision.
        margin: how far from one half is still "equally good"; drawn as a band.
    """
    figure, (left, right) = look.row(
        2, 84 + ROW * len(rows), style, widths=None if style.narrow else (3, 2)
    )
    places = range(len(rows))
    for place, (_, row) in zip(places, rows, strict=True):
        tally = row.preference.tally
        parts = (
            (tally.wins, style.variant(colours.get(row.first, 0)), 1.0),
            (tally.ties, style.line, 1.0),
            (tally.both_bad, style.muted, 0.5),
            (tally.losses, style.variant(colours.get(row.second, 1)), 1.0),
        )
        start = 0
        for count, colour, opacity in parts:
            left.barh(place, count, _BAR, left=start, color=colour, alpha=opacity)
            if count:
                left.text(
                    start + count / 2,
                    place,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=look.SMALL,
                    color="#14181f" if opacity == 1 and colour != style.line else style.text,
                )
            start += count
        winner = row.verdict.winner
        colour = style.variant(colours.get(winner, 0)) if winner else style.text
        shown = row.preference.clustered if row.preference.repeats_prompts else None
        _dot(right, place, shown or row.preference.win_rate, colour)
    for axes in (left, right):
        look.quiet(axes, style)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(list(places))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    left.set_yticklabels([look.drawable(name) for name, _ in rows], color=style.text)
    right.set_yticklabels([look.drawable(name) for name, _ in rows] if style.narrow else [])
    left.set_xlabel("pairs")
    look.whole_steps(left)
    _shares(right, style)
    right.axvspan(0.5 - margin, 0.5 + margin, color=style.line, alpha=0.5, zorder=0)
    right.set_xlabel("win rate, equal ones left out")
    first, second = _sides(rows)
    keys = [
        Patch(color=style.variant(colours.get(first, 0)), label=look.drawable(f"{first} won")),
        Patch(color=style.line, label="equal"),
        Patch(color=style.muted, alpha=0.5, label="both bad"),
        Patch(color=style.variant(colours.get(second, 1)), label=look.drawable(f"{second} won")),
    ]
    left.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2 if style.narrow else 4,
        frameon=False,
        labelcolor=style.text,
        fontsize=look.SMALL,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
    look.title(right, f"How often {first} wins", style)
    words = " ".join(f"{name}: {row.verdict.words}" for name, row in rows)
    caption = (
        "Lines: 95 % interval (Wilson; by resampling prompts where they repeat). Band: the stated"
        f" margin of “equally good”, ±{100 * margin:g} points."
    )
    return View(
        figure=figure,
        alt=f"Preferences. {words}",
        caption=caption,
        style=style,
        data=_preference_table(rows),
    )


def detections(rows: Sequence[tuple[str, Detection]], style: Style) -> View:
    """Returns the share of right answers of each person with its interval; 50 % is guessing."""
    figure, (axes,) = look.row(1, 84 + ROW * len(rows), style)
    for place, (_, found) in enumerate(rows):
        _dot(axes, place, found.correct, style.variant(1) if place else style.text)
    _rows(axes, [name for name, _ in rows], style)
    _shares(axes, style)
    axes.set_xlabel("right answers")
    look.title(axes, "Told apart", style)
    return View(
        figure=figure,
        alt="Right answers. " + " ".join(f"{name}: {found.words}" for name, found in rows),
        caption="Lines: 95 % interval (Wilson). At 50 % somebody is guessing.",
        style=style,
        data=data.table(
            person=[name for name, _ in rows],
            trials=[found.trials for _, found in rows],
            right_share=[found.correct.value for _, found in rows],
            low=[found.correct.low for _, found in rows],
            high=[found.correct.high for _, found in rows],
            p_value=[found.p_value for _, found in rows],
        ),
    )


def thresholds(
    rows: Sequence[tuple[str, Threshold]], levels: Sequence[float], style: Style
) -> View:
    """Returns the bits at which each person is just able to tell, with the interval.

    Args:
        levels: bits of the models that were shown; marked on the axis.
    """
    figure, (axes,) = look.row(1, 84 + ROW * len(rows), style)
    for level in levels:
        axes.axvline(level, color=style.line, linewidth=1, zorder=0)
    for place, (_, found) in enumerate(rows):
        _dot(axes, place, found.bits, style.variant(1))
    _rows(axes, [name for name, _ in rows], style)
    axes.set_xlim(min(levels) - 1.1, max(levels) + 1.1)
    axes.set_xlabel("bits a weight")
    look.title(axes, "The difference is just seen at", style)
    return View(
        figure=figure,
        alt="Just-noticeable bits. " + " ".join(f"{name}: {found.words}" for name, found in rows),
        caption="Dots: where half of the differences are seen. Lines: 95 % interval of the"
        " posterior. Thin lines: the models that were shown.",
        style=style,
        data=data.table(
            person=[name for name, _ in rows],
            trials=[found.trials for _, found in rows],
            bits=[found.bits.value for _, found in rows],
            low=[found.bits.low for _, found in rows],
            high=[found.bits.high for _, found in rows],
        ),
    )


def ranking(rows: Sequence[Standing], colours: Mapping[str, int], style: Style) -> View:
    """Returns the strengths of three or more models, best first, with intervals by prompt."""
    figure, (axes,) = look.row(1, 84 + ROW * len(rows), style)
    for place, row in enumerate(rows):
        _dot(axes, place, row.by_prompt, style.variant(colours.get(row.model, 0)))
    _rows(axes, [row.model for row in rows], style)
    axes.axvline(0, color=style.line, linewidth=1, zorder=0)
    axes.set_xlabel("log strength (Bradley–Terry with ties)")
    look.title(axes, "Order of the models", style)
    words = ", ".join(
        f"{row.rank}. {row.model} ({look.digits(row.strength.value)})" for row in rows
    )
    return View(
        figure=figure,
        alt=f"Order of the models: {words}.",
        caption="Lines: 95 % interval by resampling prompts; the order is by their lower ends.",
        style=style,
        data=data.table(
            model=[row.model for row in rows],
            rank=[row.rank for row in rows],
            log_strength=[row.strength.value for row in rows],
            low=[row.by_prompt.low for row in rows],
            high=[row.by_prompt.high for row in rows],
        ),
    )


def _dot(axes: Axes, place: int, found: Interval, colour: str) -> None:
    """One estimate with its interval; nothing where nothing is known."""
    if math.isnan(found.value):
        return
    options: dict[str, Any] = {"color": colour, "clip_on": False}
    axes.plot([found.low, found.high], [place, place], linewidth=2.4, zorder=2, **options)
    axes.plot([found.value], [place], "o", markersize=9, zorder=3, **options)


def _rows(axes: Axes, names: Sequence[str], style: Style) -> None:
    look.quiet(axes, style)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels([look.drawable(name) for name in names], color=style.text)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _shares(axes: Axes, style: Style) -> None:
    axes.set_xlim(0, 1)
    ticks = np.linspace(0, 1, 5)
    axes.set_xticks(ticks)
    axes.set_xticklabels([f"{100 * tick:.0f} %" for tick in ticks])
    axes.axvline(0.5, color=style.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def _sides(rows: Sequence[tuple[str, Comparison]]) -> tuple[str, str]:
    """What both sides are called: the models, or "the first" where they differ by row."""
    pairs = {(row.first, row.second) for _, row in rows}
    return next(iter(pairs)) if len(pairs) == 1 else ("the first", "the second")


def _preference_table(rows: Sequence[tuple[str, Comparison]]) -> data.Plotted:
    found = [(row, row.preference, row.preference.tally) for _, row in rows]
    return data.table(
        question=[row.question for row, _, _ in found],
        first=[row.first for row, _, _ in found],
        second=[row.second for row, _, _ in found],
        wins=[tally.wins for _, _, tally in found],
        ties=[tally.ties for _, _, tally in found],
        both_bad=[tally.both_bad for _, _, tally in found],
        losses=[tally.losses for _, _, tally in found],
        win_rate=[item.win_rate.value for _, item, _ in found],
        wilson_low=[item.win_rate.low for _, item, _ in found],
        wilson_high=[item.win_rate.high for _, item, _ in found],
        by_prompt_low=[item.clustered.low for _, item, _ in found],
        by_prompt_high=[item.clustered.high for _, item, _ in found],
        p_sign_test=[item.p_value for _, item, _ in found],
        p_holm=[item.adjusted for _, item, _ in found],
        p_equivalent=[item.p_equivalent for _, item, _ in found],
    )
