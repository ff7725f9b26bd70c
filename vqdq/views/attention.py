"""Where the words of a prompt are looked at: scores by role in octaves, maps on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from vqdq.capture.attention_record import FLOOR_OCTAVES, AttentionRecord, score_edges
from vqdq.capture.tokens import GROUPS, PromptTokens
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import DIVERGING, ROLES, SEQUENTIAL, Style, View, share

Named = tuple[str, AttentionRecord]
Picture = npt.NDArray[np.generic]


def score_histogram(
    records: Sequence[Named],
    style: Style,
    *,
    layer: str | None = None,
    step: int | None = None,
    half: str = "cond",
    levels: npt.NDArray[np.floating] | None = None,
) -> View:
    """Returns how often scores of each size occur, stacked by the role of the token.

    Args:
        records: the reference, then its variants, one panel each on one scale.
        layer: one cross-attention layer, else all; `step`: one step, else all.
        levels: log2 of a quantizer's levels, drawn as ticks (`attention_mass.quantizer_marks`).
    """
    edges = score_edges()
    figure = look.figure(880, 56 + 190 * len(records), style)
    grid = figure.subplots(len(records), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    lowest, tallest, sentences = 0.0, 1.0, list[str]()
    bases: list[npt.NDArray[np.float64]] = []
    tables: dict[str, data.Plotted] = {}
    for index, ((name, record), axes) in enumerate(zip(records, grid, strict=True)):
        counts = _counts(record, layer, step, half)  # [groups, bins]
        parts = 100 * counts / max(float(counts.sum()), 1.0)
        look.quiet(axes, style)
        count = f"{name} · {int(counts.sum()):,} scores"
        look.title(axes, count, style, colour=style.variant(index))
        if levels is not None:
            fine = 0.8 if len(levels) <= 64 else 0.3
            place = look.below(axes)
            axes.vlines(levels, 0, 0.06, color=style.text, linewidth=fine, transform=place)
        base = np.zeros(len(edges) - 1)
        for group, role in enumerate(GROUPS):
            above = base + parts[group]  # one outline for all bins: no seams between them
            axes.stairs(above, edges, baseline=base, fill=True, color=ROLES[role], label=role)
            base = above
        tables[name] = data.table(
            log2_from=edges[:-1], log2_to=edges[1:], **dict(zip(GROUPS, parts, strict=True))
        )
        tallest = max(tallest, float(base[1:].max()))
        bases.append(base)
        seen = np.flatnonzero(base > 0.005)
        lowest = min(lowest, float(edges[seen[0]]) if len(seen) else 0.0)
        axes.set_ylabel("scores (%)")
        sentences.append(f"{name}: {_mass_words(record, layer, step, half)}")
    floor = max(-24.5, np.floor(lowest) - 1)
    # The first bin is open: all that is smaller than 2^-24 can be a third of the scores.
    grid[0].set_ylim(0, 1.25 * tallest)
    for base, axes in zip(bases, grid, strict=True):
        if base[0] > 1.25 * tallest:
            axes.annotate(
                f" {base[0]:.0f} % are below {_power(-FLOOR_OCTAVES)}",
                (float(edges[1]), 1.12 * tallest),
                color=style.text,
                fontsize=look.SMALL,
                va="center",
            )
    bottom = grid[-1]
    bottom.set_xlim(floor, 0.25)
    marks = [
        mark for mark in range(-24, 1) if mark >= floor and mark % (2 if floor > -14 else 4) == 0
    ]
    bottom.set_xticks(marks, [_power(mark) for mark in marks])
    bottom.set_xlabel(
        "attention score, log2 axis: each mark is four times the one before"
        if floor > -14
        else "attention score, log2 axis"
    )
    look.roles(figure, grid[0], style, len(GROUPS))
    return View(
        figure=figure,
        alt="Histogram of cross-attention scores by the token's role, from small to 1. "
        + " ".join(sentences),
        caption=" ".join(sentences)
        + ("" if levels is None else f" Ticks below: {len(levels)} levels of the quantizer."),
        style=style,
        data=data.stacked(tables),
    )


def word_map(
    records: Sequence[Named],
    pictures: Sequence[Picture],
    word: int,
    style: Style,
    *,
    layer: str | None = None,
    step: int | None = None,
) -> View:
    """Returns the map of one word over the pictures: reference, variant, drift.

    Args:
        records, pictures: the reference and, optionally, one variant; pictures [h, w, 3].
        word: its index in `record.prompt.words`.
        layer: one layer over all steps; `step`: one step over all layers; neither: the mean.
    """
    prompt = records[0][1].prompt
    tokens = prompt.words[word].tokens
    maps = [record.token_map(tokens, layer=layer, step=step) for _, record in records]
    top = max(float(values.max()) for values in maps)
    panels = len(maps) + (1 if len(maps) == 2 else 0)
    figure, grid = look.row(panels, 288, style, pictures=True)
    for index, ((name, _), values) in enumerate(zip(records, maps, strict=True)):
        over = _blend(pictures[index], values, top)
        _picture(grid[index], over, style)
        look.title(grid[index], name, style, colour=style.variant(index))
    scale = ScalarMappable(Normalize(0, top), SEQUENTIAL)
    bar = figure.colorbar(scale, ax=grid[len(maps) - 1], pad=0.03)
    look.colour_bar(bar, style, f"attention to “{look.drawable(prompt.words[word].text)}”")
    words = f"Attention to “{prompt.words[word].text}”. {_peak(records[0][0], maps[0])}"
    if len(maps) == 2:
        drift = maps[1] - maps[0]
        limit = max(float(np.abs(drift).max()), 1e-9)
        axes = grid[2]
        image = axes.imshow(drift, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="none")
        look.bare(axes, style)
        look.title(axes, "Drift", style)
        look.colour_bar(figure.colorbar(image, ax=axes, pad=0.03), style, "change")
        words += f" {_drift(maps[0], maps[1])}"
    tables = {
        name: data.of_map(values, "row", "column", "attention")
        for (name, _), values in zip(records, maps, strict=True)
    }
    return View(figure=figure, alt=words, caption=words, style=style, data=data.stacked(tables))


def moved(reference: npt.NDArray[np.floating], variant: npt.NDArray[np.floating]) -> float:
    """Returns the share of a map that lies elsewhere in the other: total variation, 0 ... 1."""
    first = reference / max(float(reference.sum()), 1e-12)
    second = variant / max(float(variant.sum()), 1e-12)
    return float(np.abs(first - second).sum() / 2)


def word_drift(
    reference: AttentionRecord, variant: AttentionRecord, *, layer: str | None = None
) -> tuple[float, ...]:
    """Returns `moved` for each word of the prompt."""
    return tuple(
        moved(
            reference.token_map(word.tokens, layer=layer),
            variant.token_map(word.tokens, layer=layer),
        )
        for word in reference.prompt.words
    )


def shares(
    record: AttentionRecord,
    *,
    layer: str | None = None,
    step: int | None = None,
    half: str = "cond",
) -> dict[str, float]:
    """Returns the share of the attention that each role gets, 1 in total."""
    at = record.half(half)
    mass = record.mass[at] if layer is None else record.mass[at, [record.row(layer)]]
    mass = mass if step is None else mass[:, [step]]
    by_token = np.nanmean(mass, axis=(0, 1, 2))
    tokens: PromptTokens = record.tokens[at]
    return {role: float(by_token[list(tokens.positions(role))].sum()) for role in GROUPS}


def _counts(
    record: AttentionRecord, layer: str | None, step: int | None, half: str
) -> npt.NDArray[np.floating]:
    counts = record.histogram[record.half(half)]  # [layers, steps, groups, bins]
    counts = counts if layer is None else counts[[record.row(layer)]]
    counts = counts if step is None else counts[:, [step]]
    return counts.sum(axis=(0, 1), dtype=np.float64)


def _mass_words(record: AttentionRecord, layer: str | None, step: int | None, half: str) -> str:
    found = shares(record, layer=layer, step=step, half=half)
    return (
        f"the start sign gets {share(found['start'])} of the attention, the words "
        f"{share(found['words'])}, the end sign {share(found['end'])}, padding "
        f"{share(found['padding'])}."
    )


def _power(exponent: int) -> str:
    return "1" if exponent == 0 else f"$2^{{{exponent}}}$"


def _peak(name: str, values: npt.NDArray[np.floating]) -> str:
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    vertical = ("top", "middle", "bottom")[min(2, 3 * int(row) // values.shape[0])]
    across = ("left", "centre", "right")[min(2, 3 * int(column) // values.shape[1])]
    place = "centre" if (vertical, across) == ("middle", "centre") else f"{vertical} {across}"
    return (
        f"{name}: strongest at the {place} with {digits(float(values.max()))}, "
        f"{digits(float(values.max()) / max(float(values.mean()), 1e-12))} times its mean."
    )


def _drift(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> str:
    return f"{share(moved(first, second))} of it lies elsewhere after compression."


def _blend(
    picture: Picture, values: npt.NDArray[np.floating], top: float
) -> npt.NDArray[np.floating]:
    """The map over a grey picture; strong attention is opaque, none lets the picture through."""
    base = look.rgb(picture, 512)
    if max(base.shape[:2]) < 256:
        base = np.kron(base, np.ones((256 // max(base.shape[:2]),) * 2 + (1,)))
    grey = (base @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    height, width = base.shape[:2]
    level = np.clip(_resize(values, height, width) / max(top, 1e-12), 0, 1)
    colour = colormaps[SEQUENTIAL](level)[:, :, :3]
    weight = (0.25 + 0.6 * level)[:, :, None]
    return (1 - weight) * (0.15 + 0.7 * grey) + weight * colour


def _resize(values: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.floating]:
    """Bilinear, cell centres aligned: what lies between two cells lies between their values."""
    y = np.clip((np.arange(height) + 0.5) * values.shape[0] / height - 0.5, 0, values.shape[0] - 1)
    x = np.clip((np.arange(width) + 0.5) * values.shape[1] / width - 0.5, 0, values.shape[1] - 1)
    rows = np.stack([np.interp(x, np.arange(values.shape[1]), row) for row in values])
    return np.stack([np.interp(y, np.arange(values.shape[0]), column) for column in rows.T], axis=1)


def _picture(axes: Axes, values: npt.NDArray[np.floating], style: Style) -> None:
    axes.imshow(values, interpolation="none")
    look.bare(axes, style)
