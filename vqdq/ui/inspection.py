"""A finished capture as markup: words and their maps, scores, a layer's input, all layers.

Drawing takes a tenth of a second and the page asks every moment, so each part is kept by what it
shows. Figures are inline SVG in the page's own colours and typeface.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vqdq.capture import ActivationRecord, AttentionRecord
from vqdq.errors import UserError
from vqdq.jobs.run import RunRecord, read_json
from vqdq.ui.look import HALVES, QUANTITIES, Look
from vqdq.ui.wording import digits, escape
from vqdq.views import activations, attention
from vqdq.views.style import PAGE, View, share

MANY = 12
"""Attention layers up to which each gets a button."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """One model's part of a capture."""

    label: str
    picture: npt.NDArray[np.uint8]
    activity: ActivationRecord
    attention: AttentionRecord | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Capture:
    """A finished capture: the reference and, when one was asked for, a compressed model."""

    sides: tuple[Side, ...]
    layer: str
    step: int

    @property
    def activity(self) -> list[tuple[str, ActivationRecord]]:
        """The activation records with their labels."""
        return [(side.label, side.activity) for side in self.sides]

    @property
    def attention(self) -> list[tuple[str, AttentionRecord]]:
        """The attention records with their labels; empty when one is missing."""
        found = [(side.label, side.attention) for side in self.sides]
        kept = [(label, record) for label, record in found if record is not None]
        return kept if len(kept) == len(self.sides) else []


@lru_cache(maxsize=4)
def open_capture(folder: Path, stamp: float) -> Capture:
    """Returns the capture in a run's folder; kept, for `stamp` says when it was finished.

    Raises:
        UserError: a file is missing or damaged.
    """
    del stamp
    result = read_json(folder / "result.json")
    if result is None:
        raise UserError("The result is missing.", where=str(folder), remedy="Record again.")
    parts = [result["reference"], *result.get("variants", ())]
    sides: list[Side] = []
    for index, part in enumerate(parts):
        try:
            with Image.open(folder / part["image"]) as image:
                picture = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise UserError(
                "The picture is missing.", where=str(folder / part["image"]), remedy="Record again."
            ) from error
        name = part.get("attention")
        sides.append(
            Side(
                label="FP16" if index == 0 else str(part["label"]),
                picture=picture,
                activity=ActivationRecord.load(folder / part["activations"]),
                attention=AttentionRecord.load(folder / name) if name else None,
                reason=part.get("attention_reason") or "",
            )
        )
    return Capture(sides=tuple(sides), layer=result["layer"], step=int(result["step"]))


def of_run(run: RunRecord) -> Capture:
    """Returns the capture of a finished run.

    Raises:
        UserError: a file is missing or damaged.
    """
    return open_capture(run.folder, run.finished or 0.0)


@lru_cache(maxsize=24)
def words(capture: Capture, look: Look) -> str:
    """Returns the prompt as words to click and the map of the chosen one."""
    records = capture.attention
    if not records:
        reason = escape(capture.sides[0].reason or "The attention was not recorded.")
        return f'<section class="vq-part"><h2>Words</h2><p class="vq-muted">{reason}</p></section>'
    reference = records[0][1]
    prompt = reference.prompt
    where = look.where if look.where in reference.layers else None
    chosen = _chosen_word(reference, look)
    mass = reference.word_mass(where)
    drifts = (
        attention.word_drift(reference, records[1][1], layer=where) if len(records) > 1 else None
    )
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
        for name, positions in (
            ("start", prompt.positions("start")),
            ("end", prompt.positions("end")),
            ("padding", prompt.positions("padding")),
        )
        if positions
    )
    body = ""
    if chosen >= 0:
        pictures = [side.picture for side in capture.sides]
        body = _figure(attention.word_map(records, pictures, chosen, PAGE, layer=where))
    return (
        '<section class="vq-part"><h2>Where each word is looked at</h2>'
        '<p class="vq-muted">Click a word. The percentage is its part of the attention, mean of'
        " all steps and places.</p>"
        f"{_wheres(capture, look)}"
        '<div class="vq-tokens" role="group" aria-label="Words of the prompt">'
        f"{''.join(chips)}{rest}"
        f"</div>{body}</section>"
    )


@lru_cache(maxsize=24)
def scores(capture: Capture, look: Look) -> str:
    """Returns the histogram of attention scores by the token's role."""
    records = capture.attention
    if not records:
        return ""
    where = look.where if look.where in records[0][1].layers else None
    return (
        '<section class="vq-part"><h2>Attention scores</h2>'
        + _halves(look, len(records[0][1].halves) > 1)
        + _figure(attention.score_histogram(records, PAGE, layer=where, half=look.half))
        + "</section>"
    )


@lru_cache(maxsize=48)
def layer(capture: Capture, look: Look) -> str:
    """Returns the input of the chosen layer at the chosen step, by channel and by place."""
    name, step = chosen_layer(capture, look)
    heading = (
        f'<h2>What goes into the layer</h2><p class="vq-code vq-layer-name">{escape(name)}</p>'
        f'<p class="vq-muted">Step {step + 1} of {len(capture.sides[0].activity.timesteps)}</p>'
    )
    try:
        records = [(label, record.layer(name, step)) for label, record in capture.activity]
    except UserError as error:
        return (
            f'<section class="vq-part">{heading}<div class="vq-nothing"><h3>Not recorded here</h3>'
            f"<p>{escape(error.what)} Recording draws the same picture again.</p>"
            '<div class="vq-actions"><button type="button" class="vq-button" data-act="record">'
            "Record this layer</button></div></div></section>"
        )
    sentences = "".join(
        f"<li>{escape(activations.outliers(record, half=look.half, name=label))}</li>"
        for label, record in records
    )
    order = _picks(
        "order",
        (("index", "By index", ""), ("size", "Largest first", "")),
        "size" if look.by_size else "index",
        "Order of the channels",
    )
    strip = activations.channel_strip(records, PAGE, half=look.half, by_size=look.by_size)
    tokens = capture.attention
    labels = tokens[0][1].tokens[tokens[0][1].half(look.half)].labels if tokens else ()
    places = activations.position_map(records, PAGE, half=look.half, labels=labels)
    shown = (
        f"<h3>By place</h3>{_figure(places)}"
        if places is not None
        else '<p class="vq-muted">This layer gets one vector for the whole picture: there are no'
        " places to show.</p>"
    )
    return (
        f'<section class="vq-part">{heading}<ul class="vq-facts-list">{sentences}</ul>'
        f"{_halves(look, len(records[0][1].halves) > 1)}"
        f"<h3>By channel</h3>{order}{_figure(strip)}{shown}</section>"
    )


@lru_cache(maxsize=24)
def layers(capture: Capture, look: Look) -> str:
    """Returns all layers against all steps, one quantity as colour."""
    record = capture.sides[-1].activity
    reference = capture.sides[0].activity
    known = QUANTITIES if len(capture.sides) > 1 else QUANTITIES[:-1]
    quantity = look.quantity if look.quantity in [name for name, _, _ in known] else known[0][0]
    view = activations.layer_map(
        record,
        PAGE,
        quantity=quantity,
        reference=reference,
        half=look.half,
        chosen=chosen_layer(capture, look),
    )
    which = next(words for name, _, words in known if name == quantity)
    name = capture.sides[len(capture.sides) - 1].label
    return (
        '<section class="vq-part"><h2>All layers, all steps</h2>'
        f'<p class="vq-muted">{escape(name)}. {escape(which)}.</p>'
        f"{_picks('quantity', known, quantity, 'What the colour shows')}{_figure(view)}</section>"
    )


def summary(run: RunRecord, capture: Capture) -> str:
    """Returns one line about the capture on display."""
    labels = " and ".join(escape(side.label) for side in capture.sides)
    count = len(capture.sides[0].activity.layers)
    seconds = digits(float((run.result or {}).get("seconds") or run.seconds), "s")
    return (
        f'<p class="vq-muted" role="status">{labels}: {count} layers at '
        f"{len(capture.sides[0].activity.timesteps)} steps, recorded in {seconds}. The pictures are"
        " the same as without recording.</p>"
    )


def chosen_layer(capture: Capture, look: Look) -> tuple[str, int]:
    """Returns the layer and step on display: the person's choice, else the capture's."""
    last = len(capture.sides[0].activity.timesteps) - 1
    step = capture.step if look.step < 0 else min(look.step, last)
    return look.layer or capture.layer, step


def _chosen_word(record: AttentionRecord, look: Look) -> int:
    """The clicked word, else the long one with the most uneven map; -1 without words."""
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


def _figure(view: View) -> str:
    return (
        f'<figure class="vq-figure"><div class="vq-figure-body" tabindex="0">{view.svg()}</div>'
        f"<figcaption>{escape(view.caption)}</figcaption></figure>"
    )


def _wheres(capture: Capture, look: Look) -> str:
    """The attention layers to choose from; of many, the one next to the chosen layer."""
    names = capture.attention[0][1].layers
    if len(names) > MANY:
        mine = chosen_layer(capture, look)[0]
        near = max(names, key=lambda name: _common(name, mine))
        names = tuple({look.where or near: None, near: None})
    known = [("", "All layers", "Mean of all cross-attention layers")]
    known += [(name, short(name), name) for name in names]
    return _picks("where", tuple(known), look.where, "Whose attention")


def _common(first: str, second: str) -> int:
    """How many leading parts two layers' names share."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def short(name: str) -> str:
    """Returns an attention layer's place in few words: "up 1 · attention 0"."""
    numbers = re.search(r"(down|up|mid)_block[s]?\.?(\d*).*?attentions\.(\d+)(.*)", name)
    if numbers is None:
        return name
    block, level, which, rest = numbers.groups()
    inner = re.search(r"transformer_blocks\.(\d+)", rest)
    deeper = f".{inner[1]}" if inner and inner[1] != "0" else ""
    return f"{block} {level}".strip() + f" · {int(which) + 1}{deeper}"


def _halves(look: Look, guided: bool) -> str:
    if not guided:
        return ""
    known = tuple((name, words, "") for name, words in HALVES)
    return _picks("half", known, look.half, "Half of the guidance")


def _picks(act: str, known: tuple[tuple[str, str, str], ...], on: str, label: str) -> str:
    buttons = "".join(
        f'<button type="button" class="vq-pick" data-act="{act}" data-value="{escape(name)}"'
        f' title="{escape(title)}" aria-pressed="{str(name == on).lower()}">'
        f"{escape(words)}</button>"
        for name, words, title in known
    )
    return f'<div class="vq-picks" role="group" aria-label="{escape(label)}">{buttons}</div>'
