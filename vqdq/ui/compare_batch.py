"""A batch on the page: middle and spread of every number, and the sets, most changed first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.results import ComparedPicture, Distance, PictureSet
from vqdq.jobs.run import FINISHED, RunRecord
from vqdq.quantities import digits
from vqdq.ui import comparison, header
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import count, escape, file_url, shorten

ORDERS = (
    ("flip", "FLIP"),
    ("psnr", "PSNR"),
    ("latent_cosine", "Latent cosine"),
    ("lost", "Alignment lost"),
    ("asked", "As asked"),
)
"""How sets are sorted, the most changed first; a set counts as its most changed variant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareLook:
    """What a person looks at in a batch.

    Attributes:
        place: number of the set on the light table; `by`: what sorts the sets.
    """

    place: int = 0
    by: str = "flip"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The middle of some numbers and the quarters around it."""

    low: float
    middle: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Returns median and quartiles (the nearest values); None for nothing."""
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(
        low=ordered[round(0.25 * last)],
        middle=statistics.median(ordered),
        high=ordered[round(0.75 * last)],
    )


def drawn(found: PictureSet) -> list[ComparedPicture]:
    """Returns the variants of a set that are drawn."""
    return [picture for picture in found["variants"] if picture is not None]


def change(found: PictureSet, by: str) -> tuple[float, ...]:
    """Returns how much a set changed, larger for more, of its most changed variant."""
    if by == "psnr":
        return max((-_psnr(each) for each in drawn(found)), default=-math.inf), 0
    if by == "latent_cosine":
        return max((-(each["latent_cosine"] or 0) for each in drawn(found)), default=-math.inf), 0
    flip = max((each["flip"] for each in drawn(found)), default=-math.inf)
    if by == "lost":
        return max((lost(found, each) for each in drawn(found)), default=-1), flip
    return flip, 0


def ranked(sets: Sequence[PictureSet], by: str) -> list[int]:
    """Returns the numbers of the sets that can be shown, the most changed first."""
    shown = [place for place, found in enumerate(sets) if found["reference"] and drawn(found)]
    if by == "asked":
        return shown
    return sorted(shown, key=lambda place: change(sets[place], by), reverse=True)


def lost(found: PictureSet, picture: ComparedPicture) -> int:
    """Returns how many things the original shows as asked and the variant does not."""
    reference = found["reference"]
    before = None if reference is None else reference["verdict"]
    after = picture["verdict"]
    if before is None or after is None:
        return 0
    return sum(bool(before[name]) and not after[name] for name in comparison.JUDGED)


def board(run: RunRecord, place: int, by: str) -> str:
    """Returns the batch below the light table; set `place` is on the table."""
    assert isinstance(run.request, CompareRequest)
    sets = comparison.sets_of(run)
    order = ranked(sets, by if run.state in FINISHED else "asked")
    orders = "".join(
        f'<button type="button" class="vq-mode" data-act="sort" data-by="{name}"'
        f' aria-pressed="{str(name == by).lower()}">{words}</button>'
        for name, words in ORDERS
    )
    cards = "".join(_card(run, sets, number, place) for number in order)
    return (
        f'<section class="vq-batch"><div class="vq-batch-head"><h2>{len(sets)} sets</h2>'
        f"{_state(run, len(order), len(sets))}</div>{_summary(run.request, sets)}"
        f'<div class="vq-sort" role="group" aria-label="Most changed first, by"><span'
        f' class="vq-muted vq-small">Most changed by</span>{orders}</div>'
        f'<ol class="vq-cards vq-sets" tabindex="0" aria-label="Sets">{cards}</ol></section>'
    )


def _state(run: RunRecord, done: int, total: int) -> str:
    if run.state == "done":
        return ""
    words = f"{done} of {total} can be seen"
    if run.state in ("queued", "running"):
        return f'<span class="vq-muted">{words} · {escape(header.position(run))}</span>'
    return (
        f'<span class="vq-muted">Stopped: {words}.</span><button type="button"'
        f' class="vq-button vq-button-small" data-act="resume" data-run="{escape(run.id)}">Go on'
        "</button>"
    )


def _summary(request: CompareRequest, sets: Sequence[PictureSet]) -> str:
    """One row a variant: median and quartiles, and how often it shows what was asked."""
    rows = "".join(_summary_row(sets, index) for index in range(len(request.variants)))
    floors = [found["floor"]["rounding"] for found in sets if found["floor"]]
    if floors:
        rows += _measured_row('<th scope="row">Floor (16-bit rounding)</th>', floors, "")
    if not rows:
        return ""
    heads = ("Model", "FLIP", "PSNR", "SSIM", "Latent cosine", "Shows what was asked")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="vq-scroll" tabindex="0" role="region" aria-label="All sets together">'
        f'<table class="vq-numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        '</div><p class="vq-small vq-muted">Median over the sets, and the range of the middle'
        " half.</p>"
    )


def _summary_row(sets: Sequence[PictureSet], index: int) -> str:
    pairs = [
        (found, picture)
        for found in sets
        if (picture := found["variants"][index]) is not None and found["reference"] is not None
    ]
    if not pairs:
        return ""
    pictures = [picture for _, picture in pairs]
    judged = [
        (bool(found["reference"]["verdict"]["passed"]), bool(picture["verdict"]["passed"]))
        for found, picture in pairs
        if found["reference"] and found["reference"]["verdict"] and picture["verdict"]
    ]
    words = ""
    if judged:
        before, after = (sum(side) for side in zip(*judged, strict=True))
        words = f"{after} of {len(judged)}, FP16 {before}"
    label = f'<th scope="row">{swatch(index + 1)}{escape(pictures[0]["label"])}</th>'
    return _measured_row(label, pictures, words)


def _measured_row(label: str, rows: Sequence[Distance], judged: str) -> str:
    columns: tuple[tuple[Callable[[Distance], float | None], str, int], ...] = (
        (lambda row: row["flip"], "", 0),
        (_psnr, "dB", 0),
        (lambda row: row["ssim"], "", 4),
        (lambda row: row["latent_cosine"], "", 4),
    )
    cells = ""
    for value, unit, places in columns:
        found = spread([number for row in rows if (number := value(row)) is not None])
        if found is None:
            cells += "<td>–</td>"
            continue
        low, middle, high = (
            f"{number:.{places}f}" if places else digits(number)
            for number in (found.low, found.middle, found.high)
        )
        space = f" {unit}" if unit else ""
        cells += f"<td><b>{middle}{space}</b><br><small>{low} – {high}</small></td>"
    return f"<tr>{label}{cells}<td>{judged or '–'}</td></tr>"


def _card(run: RunRecord, sets: Sequence[PictureSet], number: int, place: int) -> str:
    found = sets[number]
    reference = found["reference"]
    worst = max(drawn(found), key=lambda each: each["flip"])
    assert reference is not None
    pictures = "".join(
        f'<img src="{escape(file_url(run.folder / each["image"]))}" alt="" loading="lazy">'
        for each in (reference, worst)
    )
    gone = lost(found, worst)
    words = f"FLIP {digits(worst['flip'])} · {digits(_psnr(worst), 'dB')}"
    words += f" · {count(gone, 'thing')} lost" if gone else ""
    return (
        f'<li><button type="button" class="vq-card" data-act="set" data-set="{number}"'
        f' aria-pressed="{str(number == place).lower()}"><span class="vq-pair">{pictures}</span>'
        f"<span>{escape(shorten(found['prompt'], 64))}</span>"
        f"<small>seed {found['seed']} · {escape(words)}</small></button></li>"
    )


def _psnr(row: Distance) -> float:
    return math.inf if row["psnr"] is None else row["psnr"]
