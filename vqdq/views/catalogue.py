"""Which figures the records of an inspection give: a name for each, and a function that draws it.

Names read like paths ("layers/mid_block…to_q/channels") and serve as file names. A figure that has
nothing to show is not listed, or gives None when it is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile

import numpy as np

from vqdq.capture import AttentionRecord, LayerRecord
from vqdq.jobs.inspected import Inspected
from vqdq.views import activations, attention, attention_mass, layer_map, trajectory, values
from vqdq.views import weights as stored
from vqdq.views.overview import detailed, layer_at
from vqdq.views.style import Style, View

Drawer = Callable[[], View | None]
Figures = dict[str, Drawer]


def figures(
    models: Sequence[Inspected],
    style: Style,
    *,
    layers: Sequence[str],
    step: int,
    half: str = "cond",
) -> Figures:
    """Returns the figures of the reference and its variants by name; none is drawn yet.

    Args:
        models: the reference, then its variants.
        layers: shown in detail, at `step` (from 0).
        half: of the guidance; a record without it has one half for every name.
    """
    found = maps(models, style, half=half, chosen=(layers[0], step) if layers else None)
    for layer in layers:
        found |= of_layer(models, style, layer=layer, step=step, half=half)
    found |= of_attention(models, style, half=half, near=layers[0] if layers else "")
    errors = [model.errors for model in models if model.errors is not None]
    if errors:
        found["trajectory"] = partial(trajectory.trajectory, errors, style)
    return found


def maps(
    models: Sequence[Inspected],
    style: Style,
    *,
    half: str = "cond",
    chosen: tuple[str, int] | None = None,
) -> Figures:
    """Returns the layer × step maps: each quantity of each model, and how variants differ."""
    found: Figures = {}
    reference = models[0].activity
    for index, model in enumerate(models):
        other = None if index == 0 else reference
        for name, quantity in layer_map.QUANTITIES.items():
            if quantity.against and other is None:
                continue
            known = quantity.read(model.activity.scalars)
            if not np.isfinite(known).any():
                continue
            draw = partial(
                layer_map.layer_map, model.activity, style, quantity=name, reference=other,
                half=half, chosen=chosen, name=model.label,
            )  # fmt: skip
            found[f"maps/{name}-{_who(index)}"] = draw
            if other is None or quantity.against:
                continue
            if np.isfinite(quantity.read(other.scalars)).any():
                found[f"maps/{name}-{_who(index)}-difference"] = partial(draw, difference=True)
    return found


def of_layer(
    models: Sequence[Inspected], style: Style, *, layer: str, step: int, half: str = "cond"
) -> Figures:
    """Returns the figures of one layer: its input by channel, place and value, and its weight."""
    named = [(model.label, layer_at(model.activity, layer, step)) for model in models]
    records = [(label, record) for label, record in named if record is not None]
    found: Figures = {}
    folder = f"layers/{layer}"
    if records:
        found[f"{folder}/channels"] = partial(
            activations.channel_strip,
            records,
            style,
            half=half,
            groups=_groups(models, layer, step),
        )
        found[f"{folder}/channels-sorted"] = partial(
            activations.channel_strip, records, style, half=half, by_size=True
        )
        found[f"{folder}/values"] = partial(values.value_histogram, records, style, half=half)
        if records[0][1].positions:
            found[f"{folder}/places"] = partial(
                activations.position_map, records, style, half=half, labels=_labels(models, half)
            )
        found |= _surfaces(models, records, style, folder, step, half)
    key = (layer, step)
    for index, model in enumerate(models):
        who, turned, codes = _who(index), model.activity.turned, model.activity.codes
        if key in codes and records:
            given = (model.label, turned.get(key) or model.activity.details[key])
            found[f"{folder}/levels-{who}"] = partial(
                values.value_histogram, [records[0], given], style, half=half, codes=codes[key]
            )
        if key in turned and key in model.activity.details:
            found[f"{folder}/before-after-{who}"] = partial(
                values.before_after, model.activity.details[key], turned[key], style, half=half,
                done="as it is rounded",
            )  # fmt: skip
        if layer in model.weights:
            weight = model.weights[layer]
            found[f"{folder}/weight-{who}"] = partial(stored.weight_histogram, weight, style)
            found[f"{folder}/weight-rows-{who}"] = partial(stored.row_error, weight, style)
            if weight.use.size:
                found[f"{folder}/weight-codes-{who}"] = partial(stored.code_use, weight, style)
    return found


def of_attention(
    models: Sequence[Inspected], style: Style, *, half: str = "cond", near: str = ""
) -> Figures:
    """Returns the figures of how the text is looked at, and the self-attention next to `near`."""
    records = [(model.label, model.attention) for model in models if model.attention is not None]
    if not records:
        return {}
    first = records[0][1]
    found: Figures = {
        "attention/scores": partial(attention.score_histogram, records, style, half=half),
        "attention/roles": partial(attention_mass.role_steps, records, style, half=half),
    }
    for index, model in enumerate(models):
        if model.scores is not None and model.attention is not None:
            found[f"attention/scores-levels-{_who(index)}"] = partial(
                _levelled, [records[0], (model.label, model.attention)], model, style, half
            )
    if first.self_layers:
        layer = max(first.self_layers, key=lambda name: _common(name, near))
        found[f"attention/self-{layer}"] = partial(
            attention_mass.self_attention, records, style, layer=layer, half=half
        )
    variants = [
        (index, model) for index, model in enumerate(models[1:], 1) if model.attention is not None
    ]
    for index, model in variants or [(0, models[0])]:
        pair = records[:1] if not index else [records[0], (model.label, _record(model))]
        who = _who(index)
        for by in ("step", "head"):
            found[f"attention/mass-by-{by}-{who}"] = partial(
                attention_mass.token_mass, pair, style, by=by, half=half
            )
        pictures = [models[0].picture, model.picture][: len(pair)]
        for at, word in enumerate(first.prompt.words):
            name = f"attention/word-{at + 1:02d}-{_plain(word.text)}-{who}"
            found[name] = partial(attention.word_map, pair, pictures, at, style)
        if index and first.prompt.words:
            found[f"attention/drift-{who}"] = partial(_drift, first, _record(model), style)
    return found


def _surfaces(
    models: Sequence[Inspected],
    records: list[tuple[str, LayerRecord]],
    style: Style,
    folder: str,
    step: int,
    half: str,
) -> Figures:
    """Channel × place; with the values themselves where the reference's were kept whole."""
    known = [(label, record) for label, record in records if detailed(record)]
    if not known or int(np.prod(known[0][1].positions, dtype=np.int64)) < 2:
        return {}
    kept = models[0].activity.kept
    here = kept is not None and (kept.name, kept.step) == (known[0][1].name, step) and kept.whole
    draw = partial(values.surface, known, style, half=half, kept=kept if here else None)
    return {
        f"{folder}/surface": partial(draw, flat=True),
        f"{folder}/surface-raised": partial(draw, flat=False),
    }


def _groups(models: Sequence[Inspected], layer: str, step: int) -> np.ndarray | None:
    """The group of each channel in the first variant whose quantizer shares scales in groups."""
    for model in models:
        codes = model.activity.codes.get((layer, step))
        if codes is not None and len(codes.index):
            return codes.index
    return None


def _labels(models: Sequence[Inspected], half: str) -> tuple[str, ...]:
    record = models[0].attention
    return () if record is None else record.tokens[record.half(half)].labels


def _levelled(
    records: list[tuple[str, AttentionRecord]], model: Inspected, style: Style, half: str
) -> View | None:
    assert model.scores is not None
    levels = attention_mass.quantizer_marks(
        _record(model), model.scores.scheme, model.scores.bits, half=half
    )
    return attention.score_histogram(records, style, half=half, levels=levels)


def _drift(reference: AttentionRecord, variant: AttentionRecord, style: Style) -> View:
    words = [word.text for word in reference.prompt.words]
    return attention_mass.drift_bars(attention.word_drift(reference, variant), words, style)


def _record(model: Inspected) -> AttentionRecord:
    assert model.attention is not None
    return model.attention


def _who(index: int) -> str:
    return f"variant-{index}" if index else "reference"


def _common(first: str, second: str) -> int:
    """How many leading parts two layers' names share."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _plain(text: str) -> str:
    """A word as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24] or "word"
