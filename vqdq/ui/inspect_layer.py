"""One layer at one step: its channels, its places, its values against the quantizer's levels."""

from __future__ import annotations

import math

import numpy as np

from vqdq.capture import LayerRecord
from vqdq.ui.inspect_figures import Plot, figure, picks
from vqdq.ui.inspect_map import halves
from vqdq.ui.inspection import Capture
from vqdq.ui.look import Look
from vqdq.ui.wording import escape
from vqdq.views import activations, values
from vqdq.views.overview import detailed, layer_at
from vqdq.views.style import Style, View, share

TURNED = "as it is rounded"
"""What an input is called after its rotation or smoothing."""
_SEEN = ("variant", "layer", "step", "half")


def section(capture: Capture, look: Look, *, narrow: bool) -> str:
    """Returns everything about the input of the chosen layer at the chosen step."""
    heading = (
        f'<p class="vq-code vq-layer-name">{escape(look.layer)}</p>'
        f'<p class="vq-muted">Step {look.step + 1} of {capture.steps}</p>'
    )
    records = _records(capture, look)
    if not records:
        return heading + _button("Not recorded here", "Recording draws the same picture again.")
    sentences = "".join(
        f"<li>{escape(activations.outliers(record, half=look.half, name=label))}</li>"
        for label, record in records
    )
    clipped = _clipped(capture, look)
    if clipped:
        sentences += f"<li>{escape(clipped)}</li>"
    order = picks(
        "order-channels",
        (("index", "By index", ""), ("size", "Largest first", "")),
        "size" if look.by_size else "index",
        "Order of the channels",
    )

    def drawn(plot: Plot, heading: str) -> str:
        return figure(capture, plot, look, narrow=narrow, heading=heading)

    if all(detailed(record) for _, record in records):
        surface = (
            "<h3>Channel × place</h3>"
            + picks(
                "raised",
                (
                    ("flat", "Flat, log colours", "A map that hides nothing"),
                    ("raised", "Surface", "Magnitude as height: outliers stand up"),
                ),
                "raised" if look.raised else "flat",
                "How magnitude is shown",
            )
            + drawn(SURFACE, "")
        )
    else:
        surface = _button(
            "Extremes and histogram only",
            "Percentiles, the quantizer's levels and the surface of this layer are kept at another"
            " step. Recording draws the same picture again.",
        )
    places = drawn(PLACES, "By place") or (
        '<p class="vq-muted">This layer gets one vector for the whole picture: there are no'
        " places to show.</p>"
    )
    return (
        f'{heading}<ul class="vq-facts-list">{sentences}</ul>'
        f"{halves(look, capture)}<h3>By channel</h3>{order}{drawn(STRIP, '')}"
        f"{drawn(VALUES, 'Values')}{drawn(BEFORE, 'Before and after')}{places}{surface}"
    )


def _records(capture: Capture, look: Look) -> list[tuple[str, LayerRecord]]:
    """The reference and the variant at this layer and step, in equal detail."""
    found = [
        (side.label, layer_at(side.activity, look.layer, look.step)) for side in capture.shown(look)
    ]
    return [(label, record) for label, record in found if record is not None]


def _button(title: str, sentence: str) -> str:
    return (
        f'<div class="vq-nothing"><h3>{escape(title)}</h3><p>{escape(sentence)}</p>'
        '<div class="vq-actions"><button type="button" class="vq-button" data-act="record">'
        "Record this layer and step</button></div></div>"
    )


def _clipped(capture: Capture, look: Look) -> str:
    """What the quantizer of the variant's input loses, in one sentence; "" for 16-bit inputs."""
    side = capture.variant(look)
    if side is None or look.layer not in side.activity.layers:
        return ""
    record = side.activity
    at = (record.half(look.half), record.layers.index(look.layer), look.step)
    clipped, empty = float(record.scalars.clipped[at]), float(record.scalars.empty_share[at])
    if math.isnan(clipped):
        return f"{side.label}: the input of this layer stays in 16 bits."
    return (
        f"{side.label}: {share(clipped)} of the values lie beyond the quantizer's levels, "
        f"{share(empty)} of the levels never occur."
    )


def _strip(capture: Capture, look: Look, style: Style) -> View | None:
    records = _records(capture, look)
    if not records:
        return None
    side = capture.variant(look)
    codes = None if side is None else side.activity.codes.get((look.layer, look.step))
    groups = codes.index if codes is not None and len(codes.index) else None
    return activations.channel_strip(
        records, style, half=look.half, by_size=look.by_size, groups=groups
    )


def _places(capture: Capture, look: Look, style: Style) -> View | None:
    records = _records(capture, look)
    if not records:
        return None
    found = capture.attention(look)
    labels = found[0][1].tokens[found[0][1].half(look.half)].labels if found else ()
    return activations.position_map(records, style, half=look.half, labels=labels)


def _values(capture: Capture, look: Look, style: Style) -> View | None:
    """The values beside the levels they are rounded to, which are those of the turned input."""
    records = _records(capture, look)
    if not records:
        return None
    side = capture.variant(look)
    key = (look.layer, look.step)
    codes = None if side is None else side.activity.codes.get(key)
    turned = None if side is None else side.activity.turned.get(key)
    if side is not None and turned is not None:
        records = [records[0], (f"{side.label}, {TURNED}", turned)]
    return values.value_histogram(records, style, half=look.half, codes=codes)


def _before(capture: Capture, look: Look, style: Style) -> View | None:
    side = capture.variant(look)
    key = (look.layer, look.step)
    if side is None or key not in side.activity.turned or key not in side.activity.details:
        return None
    before, after = side.activity.details[key], side.activity.turned[key]
    return values.before_after(before, after, style, half=look.half, done=TURNED)


def _surface(capture: Capture, look: Look, style: Style) -> View | None:
    records = [(label, record) for label, record in _records(capture, look) if detailed(record)]
    if not records or not np.prod(records[0][1].positions, dtype=np.int64) > 1:
        return None
    kept = capture.reference.activity.kept
    here = kept is not None and (kept.name, kept.step) == (look.layer, look.step) and kept.whole
    return values.surface(
        records, style, half=look.half, flat=not look.raised, kept=kept if here else None
    )


STRIP = Plot(name="channel-strip", title="Range by channel", draw=_strip, reads=(*_SEEN, "by_size"))
PLACES = Plot(name="position-map", title="Largest value by place", draw=_places, reads=_SEEN)
VALUES = Plot(name="value-histogram", title="Histogram of the values", draw=_values, reads=_SEEN)
BEFORE = Plot(name="before-after", title="Channels before and after", draw=_before, reads=_SEEN)
SURFACE = Plot(name="surface", title="Channel and place", draw=_surface, reads=(*_SEEN, "raised"))
PLOTS = (STRIP, PLACES, VALUES, BEFORE, SURFACE)
