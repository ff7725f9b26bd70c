"""Who gets the attention: by token, step and head, word by word, and inside the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vqdq.activations.scores import Scheme, Spread, score_levels
from vqdq.capture.attention_record import AttentionRecord, score_edges
from vqdq.capture.tokens import GROUPS
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import DIVERGING, ROLES, SEQUENTIAL, Style, View, share

Named = tuple[str, AttentionRecord]
Floats = npt.NDArray[np.float64]
_ROUNDED = 1e-3  # of a sum of scores in 16 bits


def token_mass(
    records: Sequence[Named],
    style: Style,
    *,
    by: str = "step",
    layer: str | None = None,
    half: str = "cond",
) -> View:
    """Returns the share of the attention that each token gets at each step, or in each head.

    Args:
        records: the reference and, optionally, a variant; a third panel shows the difference.
        by: "step", mean over layers and heads; "head", mean over layers and steps.
    """
    first = records[0][1]
    at = first.half(half)
    labels: tuple[str, ...] = first.tokens[at].labels
    shown = [index for index, label in enumerate(labels) if label != "<pad>"]
    names = [look.drawable(labels[index]) for index in shown]
    maps = {
        name: np.column_stack([found[:, shown], _padding(found, labels)])
        for name, found in ((name, _mass(record, by, layer, half)) for name, record in records)
    }
    names = [*names, "padding"]
    values = list(maps.values())
    panels = len(maps) + (1 if len(maps) == 2 else 0)
    figure = look.figure(880, 96 + 240 * panels, style)
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    top = 100 * max(float(np.nanmax(found)) for found in values)
    for index, (name, found) in enumerate(maps.items()):
        axes = grid[index]
        image = axes.imshow(
            100 * found, cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto", interpolation="none"
        )
        look.quiet(axes, style, frame=False)
        count = records[index][1].samples
        look.title(axes, f"{name} · {count} picture{'' if count == 1 else 's'}", style)
        look.colour_bar(figure.colorbar(image, ax=axes, pad=0.02), style, "attention (%)")
    if len(values) == 2:
        change = 100 * (values[1] - values[0])
        limit = max(float(np.nanmax(np.abs(change))), 1e-9)
        axes = grid[2]
        image = axes.imshow(
            change, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="none"
        )
        look.quiet(axes, style, frame=False)
        look.title(axes, "Difference", style)
        look.colour_bar(figure.colorbar(image, ax=axes, pad=0.02), style, "change (points)")
    for axes in grid:
        rows = values[0].shape[0]
        marks = list(range(0, rows, max(1, round(rows / 8))))
        axes.set_yticks(marks, [str(mark + 1) for mark in marks])
        axes.set_ylabel(by)
    grid[-1].set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    mean = np.nanmean(values[0], axis=0)
    words = f"{records[0][0]}: “{names[int(mean.argmax())]}” gets most, {share(float(mean.max()))}."
    return View(
        figure=figure,
        alt=f"Attention that each token gets, by {by}. {words}",
        caption=words,
        style=style,
        data=data.stacked(
            {
                name: data.table(
                    **{by: np.repeat(np.arange(1, len(found) + 1), len(names))},
                    token=np.tile(np.array(names), len(found)),
                    share=found,
                )
                for name, found in maps.items()
            }
        ),
    )


def drift_bars(drifts: Sequence[float], words: Sequence[str], style: Style) -> View:
    """Returns how much of each word's attention lies elsewhere, the most first.

    Args:
        drifts: of `attention.word_drift`; `words`: of the prompt, in the same order.
    """
    order = np.argsort(-np.asarray(drifts), kind="stable")
    found = 100 * np.asarray(drifts)[order]
    names = [look.drawable(str(words[int(index)])) for index in order]
    figure = look.figure(880, 64 + 24 * max(len(names), 1), style)
    axes = figure.subplots()
    look.quiet(axes, style)
    rows = np.arange(len(names))
    axes.barh(rows, found, color=style.variant(1), height=0.7)
    for row, value in zip(rows, found, strict=True):
        axes.annotate(
            f"{digits(float(value))} %",
            (float(value), float(row)),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=style.text,
            fontsize=look.SMALL,
        )
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(float(found.max(initial=0.0)), 0.1))
    axes.set_xlabel("attention that lies elsewhere (%)")
    sentence = (
        f"“{words[int(order[0])]}” moved most: {share(float(found[0]) / 100)}."
        if len(order)
        else "The prompt has no words."
    )
    return View(
        figure=figure,
        alt=f"How much of each word's attention lies elsewhere. {sentence}",
        caption=sentence,
        style=style,
        data=data.table(word=np.array(names), **{"attention elsewhere (%)": found}),
    )


def self_attention(
    records: Sequence[Named],
    style: Style,
    *,
    layer: str,
    step: int | None = None,
    half: str = "cond",
) -> View:
    """Returns the scores of a picture that looks at itself, and which places are looked at.

    Args:
        layer: of `record.self_layers`; `step`: of the scores, None for all.

    Raises:
        UserError: the layer was not recorded.
    """
    figure, grid = look.row(1 + len(records), 300, style, widths=[1.6, *[1.0] * len(records)])
    look.quiet(grid[0], style)
    edges = score_edges()
    tables: dict[str, data.Plotted] = {}
    maps = [record.self_map(layer) for _, record in records]
    top = max((float(values.max()) for values in maps if values is not None), default=1.0)
    sentences: list[str] = []
    tallest = 0.1
    for index, ((name, record), values) in enumerate(zip(records, maps, strict=True)):
        counts = record.self_counts(layer, step=step, half=half)
        parts = 100 * counts / max(float(counts.sum()), 1.0)
        label = f"{look.drawable(name)} · {int(counts.sum()):,} scores"
        grid[0].stairs(parts, edges, color=style.variant(index), linewidth=1.6, label=label)
        tables[name] = data.table(log2_from=edges[:-1], log2_to=edges[1:], scores_percent=parts)
        axes = grid[1 + index]
        look.bare(axes, style)
        look.title(axes, name, style, colour=style.variant(index))
        if values is not None:
            image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="none")
            if index == len(records) - 1:
                look.colour_bar(figure.colorbar(image, ax=axes, pad=0.03), style, "mean score")
        tallest = max(tallest, float(parts[1:].max()))
        sentences.append(f"{name}: {share(float(parts[0]) / 100)} of the scores are below 2⁻²⁴.")
    seen = np.flatnonzero(sum(table.columns["scores_percent"] for table in tables.values()) > 0)
    grid[0].set_xlim(float(edges[seen[0]]) if len(seen) else -24.5, 0.25)
    grid[0].set_ylim(0, 1.1 * tallest)  # the first bin is open, and may hold half of the scores
    grid[0].set_xlabel("log2 of the score")
    grid[0].set_ylabel("scores (%)")
    grid[0].legend(
        frameon=False,
        labelcolor=style.muted,
        fontsize=look.SMALL,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
    )
    words = " ".join(sentences)
    return View(
        figure=figure,
        alt=f"Self-attention of {layer}. {words}",
        caption=words,
        style=style,
        data=data.stacked(tables),
    )


def quantizer_marks(
    record: AttentionRecord,
    scheme: Scheme,
    bits: int,
    *,
    layer: str | None = None,
    step: int | None = None,
    half: str = "cond",
) -> Floats:
    """Returns the log2 of a score quantizer's levels above 0, rising; for a score axis.

    The quantizer takes its scale from the scores themselves. Of several layers or steps it is the
    largest peak and the mean of the means.
    """
    spread = record.spread[:, record.half(half)]  # [2, layers, steps]
    spread = spread if layer is None else spread[:, [record.row(layer)]]
    spread = spread if step is None else spread[:, :, [step]]
    found = Spread(peak=float(np.nanmax(spread[0])), mean=float(np.nanmean(spread[1])), count=1)
    levels = score_levels(found, scheme, bits).table().double().numpy()
    return np.sort(np.log2(levels[levels > 0]))


def role_mass(record: AttentionRecord, *, half: str = "cond") -> dict[str, Floats]:
    """Returns the share of each role at each step, mean over layers and heads, [steps].

    In joint attention the picture is one more: what it keeps for itself.
    """
    at = record.half(half)
    by_token = np.nanmean(record.mass[at].astype(np.float64), axis=(0, 2))  # [steps, tokens]
    tokens = record.tokens[at]
    found = {role: by_token[:, list(tokens.positions(role))].sum(axis=1) for role in GROUPS}
    picture = np.nanmean(record.picture_mass[at].astype(np.float64), axis=(0, 2))
    return found | ({"picture": picture} if picture.max() > _ROUNDED else {})


def role_steps(records: Sequence[Named], style: Style, *, half: str = "cond") -> View:
    """Returns the share of the start token, the words, the end and the padding over the steps,
    and of the picture where attention is joint.
    """
    figure = look.figure(880, 56 + 190 * len(records), style)
    grid = figure.subplots(len(records), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    tables: dict[str, data.Plotted] = {}
    sentences: list[str] = []
    for index, ((name, record), axes) in enumerate(zip(records, grid, strict=True)):
        found = role_mass(record, half=half)
        steps = np.arange(1, len(record.timesteps) + 1)
        look.quiet(axes, style)
        look.title(axes, name, style, colour=style.variant(index))
        colours = [ROLES.get(role, style.line) for role in found]
        parts = [100 * values for values in found.values()]
        axes.stackplot(steps, parts, labels=list(found), colors=colours, linewidth=0)
        axes.set_ylabel("attention (%)")
        look.whole_steps(axes)
        axes.set_ylim(0, 100)
        axes.set_xlim(1, max(len(steps), 2))
        tables[name] = data.table(step=steps, **found)
        who, told = "the start sign", found["start"]
        if not record.has_words:
            who, told = "the text", found["words"]
        sentences.append(
            f"{name}: {who} gets {share(float(told[0]))} at first, "
            f"{share(float(told[-1]))} at last."
        )
    grid[-1].set_xlabel("sampler step")
    look.roles(figure, grid[0], style, 1 + len(GROUPS))
    return View(
        figure=figure,
        alt="Attention by the token's role over the steps. " + " ".join(sentences),
        caption=" ".join(sentences),
        style=style,
        data=data.stacked(tables),
    )


def _mass(record: AttentionRecord, by: str, layer: str | None, half: str) -> Floats:
    """Shares of all tokens, [steps or heads, tokens]."""
    mass = record.mass[record.half(half)].astype(np.float64)  # [layers, steps, heads, tokens]
    mass = mass if layer is None else mass[[record.row(layer)]]
    return np.nanmean(mass, axis=(0, 1) if by == "head" else (0, 2))


def _padding(found: Floats, labels: Sequence[str]) -> Floats:
    where = [index for index, label in enumerate(labels) if label == "<pad>"]
    return found[:, where].sum(axis=1)
