"""The map of all layers and steps: what its colour shows, and the cells that open a layer."""

from __future__ import annotations

import json
import math

import numpy as np

from vqdq.capture import ActivationRecord
from vqdq.errors import UserError
from vqdq.quantities import digits
from vqdq.ui.inspect_figures import Plot, drawn, figure, picks
from vqdq.ui.inspection import Capture
from vqdq.ui.look import HALVES, Look
from vqdq.ui.wording import escape
from vqdq.views.layer_map import QUANTITIES, MapValues, Scale, layer_map, map_values
from vqdq.views.style import Style, View

OF_VARIANTS = ("paired_sqnr_db", "sqnr_db", "clipped", "empty")
"""Quantities that a 16-bit model does not have."""
DEFAULT = "peak_ratio"


def section(capture: Capture, look: Look, *, narrow: bool) -> str:
    """Returns the map with its choices; a filter that matches nothing says so in its place."""
    quantity, which = shown(capture, look)
    known = tuple((name, QUANTITIES[name].title, QUANTITIES[name].help) for name in _known(capture))
    try:
        found = _values(capture, look)
        place = drawn(capture, MAP, look, narrow=narrow)
        assert place is not None
        over, below = _grid(look, found, place.frame), _reading(look, found)
        body = figure(capture, MAP, look, narrow=narrow, over=over, below=below)
        log = found.log or (found.diverging and QUANTITIES[quantity].log and look.scale != "linear")
        scale = "log" if log else "linear"
    except UserError as error:
        scale = look.scale
        body = (
            f'<div class="vq-nothing"><h3>No layer of that name</h3><p>{escape(error.what)} '
            f"{escape(error.remedy)}</p></div>"
        )
    rows = [picks("quantity", known, quantity, "What the colour shows")]
    more = [
        picks("scale", (("log", "Log", ""), ("linear", "Linear", "")), scale, "Colours"),
        picks(
            "order",
            (("run", "As they run", ""), ("value", "Worst first", "")),
            look.order,
            "Order of the layers",
        ),
        halves(look, capture),
    ]
    variant = capture.variant(look)
    if variant is not None:
        names = (
            ("variant", variant.label, "What goes into the layers of this model"),
            ("reference", "FP16", "The same of the 16-bit model, on the same scale"),
            ("difference", "Difference", "This model less the 16-bit model"),
        )
        off = "This compares with FP16 already" if quantity in OF_VARIANTS else ""
        more.insert(0, picks("which", names, which, "Whose values", off=off))
    help_words = QUANTITIES[quantity].help
    return (
        f'<p class="vq-muted vq-lead">{escape(help_words)}.</p>{"".join(rows)}'
        f'<div class="vq-pick-rows">{"".join(more)}</div>{body}'
    )


def shown(capture: Capture, look: Look) -> tuple[str, str]:
    """Returns the quantity and whose it is: what was chosen where that makes sense."""
    known = _known(capture)
    quantity = look.quantity if look.quantity in known else DEFAULT
    if capture.variant(look) is None:
        return quantity, "reference"
    which = look.which if look.which in ("reference", "difference") else "variant"
    return quantity, "variant" if quantity in OF_VARIANTS else which


def halves(look: Look, capture: Capture) -> str:
    """Returns the choice between the halves of guidance; "" without guidance."""
    if len(capture.reference.activity.halves) == 1:
        return ""
    known = tuple((name, words, "") for name, words in HALVES)
    return picks("half", known, look.half, "Half of the guidance")


def _known(capture: Capture) -> tuple[str, ...]:
    """The quantities that some model of the capture has."""
    records = [side.activity for side in capture.sides]
    found: list[str] = []
    for name, quantity in QUANTITIES.items():
        if name in OF_VARIANTS and len(records) == 1:
            continue
        if quantity.against or any(
            np.isfinite(quantity.read(record.scalars)).any() for record in records
        ):
            found.append(name)
    return tuple(found)


def _records(capture: Capture, look: Look) -> tuple[str, ActivationRecord, ActivationRecord | None]:
    """Name and record on display, and the one that shares its colours."""
    variant, reference = capture.variant(look), capture.reference
    if variant is None:
        return reference.label, reference.activity, None
    if shown(capture, look)[1] == "reference":
        return reference.label, reference.activity, variant.activity
    return variant.label, variant.activity, reference.activity


def _scale(look: Look) -> Scale:
    return "log" if look.scale == "log" else "linear" if look.scale == "linear" else "auto"


def _values(capture: Capture, look: Look) -> MapValues:
    quantity, which = shown(capture, look)
    _, record, other = _records(capture, look)
    return map_values(
        record,
        quantity,
        reference=other,
        half=look.half,
        difference=which == "difference",
        scale=_scale(look),
        order="value" if look.order == "value" else "run",
        match=look.match,
    )


def _draw(capture: Capture, look: Look, style: Style) -> View:
    quantity, which = shown(capture, look)
    name, record, other = _records(capture, look)
    if which == "difference":
        name = f"{name} − {capture.reference.label}"
    return layer_map(
        record,
        style,
        quantity=quantity,
        reference=other,
        half=look.half,
        difference=which == "difference",
        scale=_scale(look),
        order="value" if look.order == "value" else "run",
        match=look.match,
        name=name,
    )


MAP = Plot(
    name="layer-map",
    title="Map of layers and steps",
    draw=_draw,
    reads=("variant", "quantity", "which", "scale", "order", "match", "half"),
)
PLOTS = (MAP,)


def _grid(look: Look, found: MapValues, frame: tuple[float, float, float, float]) -> str:
    """The cells as one button over the figure: the pointer or the arrow keys say which is meant."""
    rows, columns = found.values.shape
    row = found.layers.index(look.layer) if look.layer in found.layers else -1
    at = (max(row, 0), min(look.step, columns - 1))
    left, top, width, height = (100 * part for part in frame)
    values = [
        [None if math.isnan(value) else float(f"{value:.4g}") for value in line]
        for line in found.values.tolist()
    ]
    cells = json.dumps({"layers": found.layers, "values": values, "label": found.label})
    mark = (
        f'<i class="vq-map-mark" style="--row:{row};--column:{look.step}"></i>' if row >= 0 else ""
    )
    return (
        f'<button type="button" class="vq-map-grid" data-act="cell" data-layer="'
        f'{escape(found.layers[at[0]])}" data-step="{at[1]}" data-row="{at[0]}"'
        f' style="left:{left:.3f}%;top:{top:.3f}%;width:{width:.3f}%;height:{height:.3f}%;'
        f'--rows:{rows};--columns:{columns}" aria-describedby="vq-map-read"'
        ' aria-label="Cells of the map: arrow keys move, Enter opens the layer">'
        f'{mark}<i class="vq-map-focus" hidden></i></button>'
        f'<span hidden data-cells="{escape(cells)}"></span>'
    )


def _reading(look: Look, found: MapValues) -> str:
    row = found.layers.index(look.layer) if look.layer in found.layers else 0
    words = reading(found, row, min(look.step, found.values.shape[1] - 1))
    return f'<p class="vq-map-read" id="vq-map-read" aria-live="polite">{escape(words)}</p>'


def reading(found: MapValues, row: int, column: int) -> str:
    """Returns a cell in words, as the page's script does it: layer, step, value and its unit."""
    value = float(found.values[row, column])
    number = "not recorded" if math.isnan(value) else digits(value)
    return f"{found.layers[row]} · step {column + 1} · {number} · {found.label}"
