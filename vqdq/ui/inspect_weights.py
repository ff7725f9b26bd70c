"""The weight of the chosen layer beside its input: values, codes in use, error of each row."""

from __future__ import annotations

from collections.abc import Callable

from vqdq.capture import WeightRecord
from vqdq.ui.inspect_figures import Plot, figure
from vqdq.ui.inspection import Capture
from vqdq.ui.look import Look
from vqdq.ui.wording import escape
from vqdq.views import weights
from vqdq.views.style import Style, View


def section(capture: Capture, look: Look, *, narrow: bool) -> str:
    """Returns the stored weight of the chosen layer against the one in 16 bits."""
    side = capture.variant(look)
    name = f'<p class="vq-code vq-layer-name">{escape(look.layer)}</p>'
    if side is None:
        return (
            f'{name}<p class="vq-muted">Only FP16 was recorded. Choose a compressed model beside it'
            " to see what became of its weights.</p>"
        )
    record = _record(capture, look)
    if record is None:
        words = (
            "keeps its weight in 16 bits, unchanged."
            if side.weights
            else "has no weights recorded."
        )
        return f'{name}<p class="vq-muted">{escape(side.label)}: this layer {words}</p>'
    kept = f"stored by the codec {record.codec}" if record.codec else "in 16 bits, and changed"
    parts = [
        figure(capture, plot, look, narrow=narrow, heading=heading)
        for plot, heading in (
            (HISTOGRAM, "Values"),
            (CODES, "Codes in use"),
            (ROWS, "Error of each row"),
        )
        if record.codec or plot is HISTOGRAM
    ]
    return (
        f'{name}<p class="vq-muted">{escape(side.label)}: the weight of this layer is {kept}.</p>'
        + "".join(parts)
    )


def _record(capture: Capture, look: Look) -> WeightRecord | None:
    side = capture.variant(look)
    return None if side is None else side.weights.get(look.layer)


def _drawer(
    view: Callable[[WeightRecord, Style], View | None],
) -> Callable[[Capture, Look, Style], View | None]:
    def draw(capture: Capture, look: Look, style: Style) -> View | None:
        record = _record(capture, look)
        return None if record is None else view(record, style)

    return draw


_SEEN = ("variant", "layer")
HISTOGRAM = Plot(
    name="weight-histogram",
    title="Histogram of the weights",
    draw=_drawer(weights.weight_histogram),
    reads=_SEEN,
)
CODES = Plot(name="weight-codes", title="Codes in use", draw=_drawer(weights.code_use), reads=_SEEN)
ROWS = Plot(
    name="weight-rows", title="Error of each row", draw=_drawer(weights.row_error), reads=_SEEN
)
PLOTS = (HISTOGRAM, CODES, ROWS)
