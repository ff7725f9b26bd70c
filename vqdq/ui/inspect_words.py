"""The words of the prompt: who gets the attention, where each is looked at, what moved."""

from __future__ import annotations

import re
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from vqdq.capture import AttentionRecord
from vqdq.ui.inspect_figures import Plot, figure, picks
from vqdq.ui.inspect_map import halves
from vqdq.ui.inspection import Capture
from vqdq.ui.look import Look
from vqdq.ui.wording import escape
from vqdq.views import attention, attention_mass
from vqdq.views.style import Style, View, share

MANY = 12
"""Attention layers up to which each gets a button."""
STEP = "step"
"""Stands for the mean of all layers at the chosen step, among the layers to choose from."""


def section(capture: Capture, look: Look, *, narrow: bool) -> str:
    """Returns the prompt as words to click, their maps, and the scores of the attention."""
    records = capture.attention(look)
    if not records:
        reason = next(
            filter(None, (side.why_not("attention") for side in capture.shown(look))),
            "The attention was not recorded.",
        )
        return f'<p class="vq-muted">{escape(reason)}</p>'

    def drawn(plot: Plot, heading: str = "") -> str:
        return figure(capture, plot, look, narrow=narrow, heading=heading)

    by = picks(
        "by",
        (("step", "By step", ""), ("head", "By head", "")),
        look.by,
        "Rows of the map",
    )
    inside = records[0][1].self_layers
    own = ""
    if inside:
        known = tuple((name, short(name), name) for name in _near(inside, look.layer))
        own = (
            "<h3>The picture looks at itself</h3>"
            + picks("inside", known, _inside(records[0][1], look), "Layer of self-attention")
            + drawn(SELF)
        )
    lead = (
        "Click a word. The percentage is its part of the attention, mean of all steps and places."
    )
    if not records[0][1].has_words:
        lead = (
            "Which column of this model's text is which word is not known: there are no maps of"
            " words, and the text is one part in the figures."
        )
    return (
        f'<p class="vq-muted vq-lead">{lead}</p>{_wheres(records[0][1], look)}'
        f"{_tokens(records, look)}{drawn(WORD)}{drawn(DRIFT, 'What moved')}"
        f"<h3>Scores by the token's role</h3>{halves(look, capture)}{drawn(SCORES)}"
        f"{drawn(ROLES, 'Roles along the steps')}"
        f"<h3>Attention of each token</h3>{by}{drawn(MASS)}{own}"
    )


def _tokens(records: list[tuple[str, AttentionRecord]], look: Look) -> str:
    """The prompt as a strip of words to click, with their share and how much of it moved."""
    reference = records[0][1]
    prompt = reference.prompt
    layer = _layer(reference, look)
    chosen = chosen_word(reference, look)
    mass = reference.word_mass(layer)
    drifts = attention.word_drift(reference, records[1][1], layer=layer) if records[1:] else None
    chips: list[str] = []
    for index, word in enumerate(prompt.words):
        drift = "" if drifts is None else f" · moved {share(drifts[index])}"
        part = share(float(mass[list(word.tokens)].sum()))
        chips.append(
            f'<button type="button" class="vq-token" data-act="word" data-at="{index}"'
            f' aria-pressed="{str(index == chosen).lower()}">{escape(word.text)}'
            f"<small>{part}{drift}</small></button>"
        )
    rest = "".join(
        f'<span class="vq-token vq-token-quiet">{name}'
        f"<small>{share(float(mass[list(positions)].sum()))}</small></span>"
        for name in ("start", "end", "padding")
        if (positions := prompt.positions(name))
    )
    if not prompt.words:
        return ""
    return (
        '<div class="vq-tokens" role="group" aria-label="Words of the prompt">'
        f"{''.join(chips)}{rest}</div>"
    )


def chosen_word(record: AttentionRecord, look: Look) -> int:
    """Returns the clicked word, else the long one with the most uneven map; -1 without words."""
    found = record.prompt.words
    if not found:
        return -1
    if 0 <= look.word < len(found):
        return look.word
    maps = [record.token_map(word.tokens) for word in found]
    uneven = [
        each.max() / max(float(each.mean()), 1e-9) if len(word.text) > 2 else 0.0
        for word, each in zip(found, maps, strict=True)
    ]
    return int(np.argmax(uneven))


def _layer(record: AttentionRecord, look: Look) -> str | None:
    return look.where if look.where in record.layers else None


def _step(look: Look) -> int | None:
    return look.step if look.where == STEP else None


def _wheres(record: AttentionRecord, look: Look) -> str:
    """The attention layers to choose from; of many, the one next to the chosen layer."""
    names = record.layers
    if len(names) > MANY:
        names = tuple({look.where: None, **dict.fromkeys(_near(names, look.layer, 1))})
        names = tuple(name for name in names if name in record.layers)
    known = [
        ("", "All layers", "Mean of all cross-attention layers and steps"),
        (STEP, f"Step {look.step + 1}", "Mean of all cross-attention layers at the chosen step"),
        *((name, short(name), name) for name in names),
    ]
    on = look.where if look.where in (*record.layers, STEP) else ""
    return picks("where", tuple(known), on, "Whose attention")


def _near(names: tuple[str, ...], layer: str, count: int = MANY) -> tuple[str, ...]:
    """At most `count` layers, those that share most of their name with `layer`, as they run."""
    if len(names) <= count:
        return names
    best = sorted(names, key=lambda name: -_common(name, layer))[:count]
    return tuple(name for name in names if name in best)


def _common(first: str, second: str) -> int:
    """How many leading parts two layers' names share."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def short(name: str) -> str:
    """Returns an attention layer's place in few words: "up 1 · 2"."""
    numbers = re.search(r"(down|up|mid)_block[s]?\.?(\d*).*?attentions\.(\d+)(.*)", name)
    if numbers is None:  # of a transformer: "block 3", "single block 12"
        joint = re.search(r"(single_)?(?:joint_)?transformer_blocks\.(\d+)", name)
        return name if joint is None else f"{'single ' if joint[1] else ''}block {joint[2]}"
    block, level, which, rest = numbers.groups()
    inner = re.search(r"transformer_blocks\.(\d+)", rest)
    deeper = f".{inner[1]}" if inner and inner[1] != "0" else ""
    return f"{block} {level}".strip() + f" · {int(which) + 1}{deeper}"


def _word(capture: Capture, look: Look, style: Style) -> View | None:
    records = capture.attention(look)
    chosen = chosen_word(records[0][1], look)
    if chosen < 0:
        return None
    pictures = [side.picture for side in capture.shown(look)]
    layer = _layer(records[0][1], look)
    return attention.word_map(records, pictures, chosen, style, layer=layer, step=_step(look))


def _drift(capture: Capture, look: Look, style: Style) -> View | None:
    records = capture.attention(look)
    words = [word.text for word in records[0][1].prompt.words]
    if len(records) < 2 or not words:
        return None
    layer = _layer(records[0][1], look)
    drifts = attention.word_drift(records[0][1], records[1][1], layer=layer)
    return attention_mass.drift_bars(drifts, words, style)


def _scores(capture: Capture, look: Look, style: Style) -> View | None:
    records = capture.attention(look)
    layer = _layer(records[0][1], look)
    return attention.score_histogram(
        records,
        style,
        layer=layer,
        step=_step(look),
        half=look.half,
        levels=_levels(capture, look, layer),
    )


def _levels(capture: Capture, look: Look, layer: str | None) -> npt.NDArray[np.floating] | None:
    """Where the variant's recipe rounds scores to, log2; None where it leaves them alone."""
    side = capture.variant(look)
    if side is None or side.scores is None or side.attention is None:
        return None
    return attention_mass.quantizer_marks(
        side.attention,
        side.scores.scheme,
        side.scores.bits,
        layer=layer,
        step=_step(look),
        half=look.half,
    )


def _roles(capture: Capture, look: Look, style: Style) -> View | None:
    return attention_mass.role_steps(capture.attention(look), style, half=look.half)


def _mass(capture: Capture, look: Look, style: Style) -> View | None:
    records = capture.attention(look)
    layer = _layer(records[0][1], look)
    by = "head" if look.by == "head" else "step"
    return attention_mass.token_mass(records, style, by=by, layer=layer, half=look.half)


def _inside(record: AttentionRecord, look: Look) -> str:
    """The chosen layer of self-attention, else the one nearest to the chosen layer."""
    if look.inside in record.self_layers:
        return look.inside
    return _near(record.self_layers, look.layer, 1)[0]


def _self(capture: Capture, look: Look, style: Style) -> View | None:
    records = capture.attention(look)
    layer = _inside(records[0][1], look)
    return attention_mass.self_attention(records, style, layer=layer, half=look.half)


_SHOWN = ("variant", "where", "step")
WORD = Plot(name="word-map", title="Map of the word", draw=_word, reads=(*_SHOWN, "word"))
DRIFT = Plot(name="word-drift", title="Drift of the words", draw=_drift, reads=("variant", "where"))
SCORES = Plot(
    name="score-histogram", title="Attention scores", draw=_scores, reads=(*_SHOWN, "half")
)
ROLES = Plot(name="roles-by-step", title="Roles by step", draw=_roles, reads=("variant", "half"))
MASS = Plot(
    name="token-mass",
    title="Attention of each token",
    draw=_mass,
    reads=("variant", "where", "half", "by"),
)
SELF = Plot(
    name="self-attention",
    title="Self-attention",
    draw=_self,
    reads=("variant", "layer", "half", "inside"),
)
PLOTS = (WORD, DRIFT, SCORES, ROLES, MASS, SELF)
