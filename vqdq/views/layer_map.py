"""Layers in the order they run against sampler steps, one number as colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vqdq.capture.records import ActivationRecord
from vqdq.capture.scalars import Scalars
from vqdq.errors import UserError
from vqdq.params import nearest
from vqdq.quantities import digits
from vqdq.views import data
from vqdq.views import style as look
from vqdq.views.style import DIVERGING, SEQUENTIAL, Style, View, share

Floats = npt.NDArray[np.float64]
_PLENTY_DB = 60.0  # from here on an output counts as the same: 0.1 % of its size
Scale = Literal["auto", "log", "linear"]
Order = Literal["run", "value", "name"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """What the colour can show.

    Attributes:
        label: with its unit, for the colour bar; `title`: short, for a button.
        help: one sentence.
        read: from the scalars, [halves, layers, steps].
        log: the colours are logarithmic unless asked otherwise; `low_is_bad`: the lowest is named.
        against: it compares with the reference.
    """

    label: str
    title: str
    help: str
    read: Callable[[Scalars], npt.NDArray[np.floating]]
    log: bool = False
    low_is_bad: bool = False
    against: bool = False


QUANTITIES = {
    "peak_ratio": Quantity(
        label="largest ÷ median |input|",
        title="Outliers",
        help="Largest over median magnitude of what goes into each layer",
        read=lambda scalars: scalars.peak_ratio,
        log=True,
    ),
    "absmax": Quantity(
        label="largest |input|",
        title="Largest value",
        help="Largest magnitude of what goes into each layer",
        read=lambda scalars: scalars.absmax,
        log=True,
    ),
    "tail_ratio": Quantity(
        label="99.99th ÷ 99th percentile of |input|",
        title="Tail",
        help="How far the largest ten thousandth lies beyond the largest hundredth",
        read=lambda scalars: scalars.tail_ratio,
        log=True,
    ),
    "kurtosis": Quantity(
        label="kurtosis",
        title="Kurtosis",
        help="3 for a bell curve, far more when few values stand out",
        read=lambda scalars: scalars.kurtosis,
        log=True,
    ),
    "channel_spread": Quantity(
        label="D over channels",
        title="D, channels",
        help="How far the extremes of channels lie apart (DGQ, arXiv 2501.04304, section 4.1)",
        read=lambda scalars: scalars.channel_spread,
        log=True,
    ),
    "position_spread": Quantity(
        label="D over pixels or tokens",
        title="D, pixels",
        help="How far the extremes of pixels or tokens lie apart (DGQ, section 4.1)",
        read=lambda scalars: scalars.position_spread,
        log=True,
    ),
    "paired_sqnr_db": Quantity(
        label="output against FP16, same inputs (dB)",
        title="SQNR",
        help="What comes out when both models are given the same latents: signal over error",
        read=lambda scalars: scalars.paired_sqnr_db,
        low_is_bad=True,
    ),
    "sqnr_db": Quantity(
        label="output against FP16 (dB)",
        title="Drift",
        help="What comes out when each model follows its own latents: signal over difference",
        read=lambda scalars: scalars.output_energy,  # replaced: it needs the reference
        low_is_bad=True,
        against=True,
    ),
    "clipped": Quantity(
        label="values beyond the levels (%)",
        title="Clipped",
        help="Share of the input that lies beyond the quantizer's levels",
        read=lambda scalars: 100 * scalars.clipped,
    ),
    "empty": Quantity(
        label="codes that never occur (%)",
        title="Empty codes",
        help="Share of the quantizer's levels that no value is rounded to",
        read=lambda scalars: 100 * scalars.empty_share,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapValues:
    """What a map shows.

    Attributes:
        layers: the rows' names; `values`: [layers, steps], NaN where unknown.
        label: of the values, with the unit.
        low, high: of the colours, the same for a reference and its variant.
        log: colours are logarithmic; `diverging`: they go both ways from 0.
    """

    layers: tuple[str, ...]
    values: Floats
    label: str
    low: float
    high: float
    log: bool
    diverging: bool = False


def map_values(
    record: ActivationRecord,
    quantity: str,
    *,
    reference: ActivationRecord | None = None,
    half: str = "cond",
    difference: bool = False,
    scale: Scale = "auto",
    order: Order = "run",
    match: str = "",
) -> MapValues:
    """Returns the values of a map, for the figure or for a page that draws its own.

    Args:
        record: whose numbers are shown; `reference`: what colours and differences relate to.
        difference: this record less the reference; the quotient in octaves where colours are
            logarithmic.
        order: rows as they run, by their largest value, or by name.
        match: a pattern of names ("down*"), or a part of them.

    Raises:
        UserError: no such quantity, a pattern that matches nothing, or a difference without a
            reference.
    """
    known = quantity_of(quantity)
    if (known.against or difference) and reference is None:
        raise UserError("there is no reference to compare with.", where=quantity)
    at = record.half(half)
    values = _read(record, known, reference)[at]
    layers = record.matching(match) if match else record.layers
    row = {name: index for index, name in enumerate(record.layers)}
    values = values[[row[name] for name in layers]]
    log = known.log if scale == "auto" else scale == "log"
    label = known.label
    others = np.zeros(0)
    if reference is not None and not known.against:
        others = _aligned(reference, known, layers, values.shape[1], half)
    if difference and not known.against:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log2(values / others) if log else values - others
        label = f"{label}: {'octaves above' if log else 'more than'} the reference"
        others, log = np.zeros(0), False
    values = np.where(np.isinf(values), np.nan, values)
    both = np.concatenate([values.ravel(), others.ravel()])
    both = both[np.isfinite(both) & ((both > 0) | (not log))]
    low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
    diverging = difference and not known.against
    if diverging:
        high = max(abs(low), abs(high), 1e-9)
        low = -high
    elif log:
        low = max(low, high / 1e5)
    elif known.low_is_bad:  # layers that are equal, or nearly, would take up the colours
        low, high = max(low, -10.0), min(max(high, low + 1), _PLENTY_DB)
    ranks = _order(values, layers, order, low_first=known.low_is_bad)
    return MapValues(
        layers=tuple(layers[index] for index in ranks),
        values=values[ranks],
        label=label,
        low=low,
        high=high,
        log=log,
        diverging=diverging,
    )


def layer_map(
    record: ActivationRecord,
    style: Style,
    *,
    quantity: str = "peak_ratio",
    reference: ActivationRecord | None = None,
    half: str = "cond",
    chosen: tuple[str, int] | None = None,
    difference: bool = False,
    scale: Scale = "auto",
    order: Order = "run",
    match: str = "",
    name: str = "",
) -> View:
    """Returns the map as a figure; see `map_values` for what can be shown.

    Args:
        chosen: layer and step to mark; `name`: of the model, for the title.
    """
    known = quantity_of(quantity)
    if known.against and reference is None:
        known, quantity = QUANTITIES["peak_ratio"], "peak_ratio"
    found = map_values(
        record,
        quantity,
        reference=reference,
        half=half,
        difference=difference,
        scale=scale,
        order=order,
        match=match,
    )
    shown = found.values
    with np.errstate(divide="ignore", invalid="ignore"):
        plotted = np.log10(np.maximum(shown, found.low)) if found.log else shown
    bounds = (
        (float(np.log10(found.low)), float(np.log10(found.high)))
        if found.log
        else (found.low, found.high)
    )
    figure = look.figure(880, _height(len(found.layers)), style)
    axes = figure.subplots()
    cmap = DIVERGING if found.diverging else "viridis_r" if known.low_is_bad else SEQUENTIAL
    image = axes.imshow(
        plotted, cmap=cmap, aspect="auto", interpolation="none", vmin=bounds[0], vmax=bounds[1]
    )
    look.quiet(axes, style)
    layers, steps = shown.shape
    samples = f"{layers} layers × {steps} steps"
    look.title(axes, samples if not name or style.narrow else f"{name} · {samples}", style)
    axes.set_xlabel("sampler step")
    marks = range(0, steps, max(1, round(steps / 10)))
    axes.set_xticks(list(marks), [str(mark + 1) for mark in marks])
    starts, names = _rows(found.layers, order)
    axes.set_yticks(starts, names)
    if chosen is not None and chosen[0] in found.layers:
        row = found.layers.index(chosen[0])
        axes.axhline(row, color=style.text, linewidth=1)
        axes.plot(chosen[1], row, "o", color=style.text, markersize=6, markerfacecolor="none")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=36)
    look.colour_bar(bar, style, found.label)
    if found.log:
        levels = look.round_levels(found.low, found.high)
        bar.set_ticks([float(np.log10(x)) for x in levels], labels=[f"{x:g}" for x in levels])
    sentence = _extreme(found, quantity, low_is_bad=known.low_is_bad)
    return View(
        figure=figure,
        alt=f"{found.label} of {layers} layers at {steps} steps. {sentence}",
        caption=sentence,
        style=style,
        data=data.table(
            layer=np.repeat(np.array(found.layers), steps),
            step=np.tile(np.arange(1, steps + 1), layers),
            **{found.label: shown},
        ),
    )


def quantity_of(name: str) -> Quantity:
    """Returns a quantity by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in QUANTITIES:
        raise UserError(
            f'there is no quantity "{name}".',
            where="map",
            remedy=nearest(name, tuple(QUANTITIES), "quantity"),
        )
    return QUANTITIES[name]


def _height(layers: int) -> float:
    """Four units a layer, more when there are few: a row can be pointed at; 640 at most."""
    return 80 + min(max(4 * layers, min(24 * layers, 340)), 560)


def _read(
    record: ActivationRecord, known: Quantity, reference: ActivationRecord | None
) -> npt.NDArray[np.floating]:
    if known.against and reference is not None:
        return record.sqnr_db(reference)
    return known.read(record.scalars).astype(np.float64)


def _aligned(
    reference: ActivationRecord, known: Quantity, layers: Sequence[str], steps: int, half: str
) -> Floats:
    """The reference's values in these rows, [layers, steps]; NaN where it has none."""
    values = known.read(reference.scalars)[reference.half(half)]
    row = {name: index for index, name in enumerate(reference.layers)}
    found = np.full((len(layers), steps), np.nan)
    width = min(steps, values.shape[1])
    for index, name in enumerate(layers):
        if name in row:
            found[index, :width] = values[row[name], :width]
    return found


def _order(values: Floats, layers: Sequence[str], order: Order, *, low_first: bool) -> list[int]:
    if order == "name":
        return sorted(range(len(layers)), key=lambda index: layers[index])
    if order == "run":
        return list(range(len(layers)))
    filled = np.nan_to_num(values, nan=np.inf if low_first else -np.inf)
    worst = filled.min(axis=1) if low_first else -filled.max(axis=1)
    return [int(index) for index in np.argsort(worst, kind="stable")]


def _extreme(found: MapValues, quantity: str, *, low_is_bad: bool) -> str:
    """One sentence about the cell to look at first."""
    shown = np.abs(found.values) if found.diverging else found.values
    if not np.isfinite(shown).any():
        return "Nothing to show: no such number was recorded."
    low = low_is_bad and not found.diverging
    pick = np.nanargmin(shown) if low else np.nanargmax(shown)
    row, column = np.unravel_index(int(pick), shown.shape)
    value = float(found.values[row, column])
    words = digits(value)
    if found.label.endswith("(%)"):
        words = share(value / 100)
    if quantity == "peak_ratio" and not found.diverging and value > 999:
        words = "1,000 or more"
    sense = "Lowest" if low else "Largest change" if found.diverging else "Highest"
    return f"{sense}: {found.layers[row]}, step {column + 1}, {words}."


def _rows(layers: Sequence[str], order: Order) -> tuple[list[int], list[str]]:
    """Rows to label: a new block of the model in the order of running, else the layers' names."""
    if order == "run" and len(layers) > 16:
        return _blocks(layers)
    rows = list(range(0, len(layers), max(1, -(-len(layers) // 16))))
    return rows, [short(layers[row]) for row in rows]


def short(layer: str) -> str:
    """Returns the last three parts of a layer's name, for an axis."""
    parts = layer.split(".")
    return layer if len(parts) <= 3 else "… " + ".".join(parts[-3:])


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
