"""Setting a blind test up: what a person wants to know becomes a protocol, before it is frozen."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from vqdq.errors import UserError
from vqdq.jobs import costs, pairs
from vqdq.jobs import plan as planning
from vqdq.jobs.protocol import QUESTIONS, Entrant, Mode, Protocol
from vqdq.jobs.requests.checks import MAX_SEED, check_number, check_whole
from vqdq.quantities import digits, roughly
from vqdq.ui.blind_words import answers, in_words, power_words
from vqdq.ui.desk import Desk
from vqdq.ui.settings import whole
from vqdq.ui.wording import chip, count, escape, shorten

REFERENCE = "FP16"
OBVIOUS_BITS = 2.6  # a model of at most so many is plainly worse than full precision
MOST_PAIRS = 400
ANSWER_SECONDS = 6.0  # of one answer, an estimate
_SEEDS = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a person wants to know, as the form says it.

    Attributes:
        variants: names of compressed models; the reference always takes part.
        seeds: as written: "7", "7, 9" or "7-12"; continued when there are too few for the pairs.
        identical, obvious, repeats: control pairs as shares of the pairs.
    """

    variants: tuple[str, ...]
    prompts: tuple[str, ...]
    name: str = ""
    mode: Mode = "preference"
    seeds: str = "7"
    pairs: int = 20
    questions: tuple[str, ...] = ("match", "overall")
    margin: float = 0.1
    identical: float = 0.1
    obvious: float = 0.1
    repeats: float = 0.1
    steps: int = 20
    guidance: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What a test would be, before it is made.

    Attributes:
        words: the protocol in sentences; `power`: what it can find; `hints`: what would help.
        pictures: to draw; `seconds`: of drawing; `source`: where that is known from.
        answers: that each person gives, about.
    """

    words: tuple[str, ...]
    power: tuple[str, ...]
    pictures: int
    seconds: float
    source: str
    answers: int
    hints: tuple[str, ...] = field(default=())


def protocol_of(desk: Desk, wish: Wish, *, digests: bool = True) -> Protocol:
    """Returns the protocol that a wish asks for.

    Args:
        digests: hash the models' files; without, for a preview.

    Raises:
        UserError: naming what does not fit, and what to do.
    """
    _check(wish)
    known = {entry.name: entry for entry in desk.workspace.models()}
    mine = {name for _, name in desk.variants()}
    for name in wish.variants:
        if name not in mine:
            raise UserError(
                f'there is no compressed model "{name[:80]}".',
                where="models",
                remedy="Choose one of the list, or compress one first.",
            )

    def entrant(name: str) -> Entrant:
        bits = known[name].bits_per_weight
        digest = planning.fingerprint(desk.workspace.locate(name)) if digests else "preview"
        return Entrant(name=name, digest=digest, bits=bits)

    first = Entrant(
        name=REFERENCE,
        digest=planning.fingerprint(desk.model) if digests else "preview",
        bits=16.0,
        model=desk.model,
    )
    others = [entrant(name) for name in dict.fromkeys(wish.variants)]
    if wish.mode == "staircase":
        _check_levels(others)
        others.sort(key=lambda one: one.bits or 0)
    asked = tuple(question for question in QUESTIONS if question.key in wish.questions)
    number = wish.pairs
    climbs = wish.mode == "staircase"
    prompts = wish.prompts if climbs else wish.prompts[:number]
    seeds = _seeds(wish.seeds, 1 if climbs else -(-number // len(prompts)))
    asks = wish.mode == "preference"
    coarse = _obvious(desk) if asks and wish.obvious else None
    coarse = None if coarse in wish.variants else coarse  # every pair would be a control
    return Protocol(
        name=shorten(wish.name, 80) or f"Blind test {len(desk.votes.tests()) + 1}",
        models=(first, *others),
        prompts=prompts,
        seeds=seeds,
        pairs=len(prompts) * len(seeds) if climbs else number,
        mode=wish.mode,
        questions=asked if asks else QUESTIONS,
        primary=asked[-1].key if asks else "overall",
        margin=wish.margin,
        identical=round(wish.identical * number) if asks else 0,
        obvious=max(1, round(wish.obvious * number)) if coarse else 0,
        obvious_model=entrant(coarse) if coarse else None,
        repeats=wish.repeats if asks else 0.0,
        drawing=(("steps", str(wish.steps)), ("guidance", f"{wish.guidance:g}")),
    )


def outlook(desk: Desk, wish: Wish) -> Outlook:
    """Returns what a test would be.

    Raises:
        UserError: the wish cannot be a test.
    """
    made = protocol_of(desk, wish, digests=False)
    each, source = picture_seconds(desk, wish.steps, wish.guidance)
    pictures = len(pairs.needed(made))
    hints: list[str] = []
    if made.mode == "preference" and wish.obvious and _obvious(desk) is None:
        hints.append(
            "There is no model at about 2 bits. With one, some pairs would be plainly different"
            " and show whether people look closely."
        )
    return Outlook(
        words=in_words(made),
        power=power_words(made),
        pictures=pictures,
        seconds=pictures * each,
        source=source,
        answers=answers(made),
        hints=tuple(hints),
    )


def picture_seconds(desk: Desk, steps: int, guidance: float) -> tuple[float, str]:
    """Returns the seconds of one picture and where they are known from."""
    found = [
        float(row["seconds"]) / float(run.result["steps"])
        for run in desk.workspace.runs("compare", 20)
        if run.state == "done" and run.result and run.request.to_json()["model"] == desk.model
        for row in (run.result["reference"], *run.result["variants"])
    ]
    if found:
        return steps * statistics.median(found), "Estimated from your earlier comparisons."
    calls = steps * (2 if guidance > 1 else 1)
    each = calls * costs.call_seconds(desk.component, desk.pixels)
    return each, "Estimated from a computer with two cores."


def outlook_html(desk: Desk, wish: Wish | UserError) -> str:
    """Returns the outlook as markup, or why there is none."""
    try:
        if isinstance(wish, UserError):
            raise wish
        found = outlook(desk, wish)
    except UserError as error:
        step = f" {escape(error.remedy)}" if error.remedy else ""
        place = f"<b>{escape(error.where.removeprefix('protocol.'))}</b>: " if error.where else ""
        return (
            '<div class="vq-blind-outlook"><h3>Not a test yet</h3>'
            f"<p>{place}{escape(error.what)}{step}</p></div>"
        )
    lines = "".join(f"<li>{escape(line)}</li>" for line in found.words)
    power = "".join(f"<p>{escape(line)}</p>" for line in found.power)
    hints = "".join(f'<p class="vq-muted">{escape(line)}</p>' for line in found.hints)
    minutes = roughly(found.answers * ANSWER_SECONDS)
    return (
        f'<div class="vq-blind-outlook"><h3>The protocol</h3><ul>{lines}</ul>{power}{hints}'
        f"<p>{count(found.pictures, 'picture')} to draw, about {roughly(found.seconds)}"
        f" {chip('estimated', found.source)} Then about {found.answers} answers a person, some"
        f" {minutes} {chip('estimated', 'At six seconds an answer.')}</p></div>"
    )


def _check(wish: Wish) -> None:
    if wish.mode not in get_args(Mode):
        raise UserError(f"{wish.mode!r} is not a kind of test.", where="mode")
    if not wish.variants:
        raise UserError(
            "no compressed model is chosen.", where="models", remedy="Choose one or more."
        )
    if not wish.prompts:
        raise UserError("there is no prompt.", where="prompts", remedy="Choose some.")
    check_whole(wish.pairs, "pairs", 1, MOST_PAIRS)
    check_whole(wish.steps, "steps", 1, 1000)
    check_number(wish.guidance, "guidance", 0, 100)
    for where in ("identical", "obvious", "repeats"):
        check_number(getattr(wish, where), where, 0, 1)
    keys = [question.key for question in QUESTIONS]
    if wish.mode == "preference" and not set(wish.questions) & set(keys):
        raise UserError("no question is chosen.", where="questions", remedy="Choose one or more.")


def _check_levels(others: Sequence[Entrant]) -> None:
    widths = sorted({entrant.bits for entrant in others if entrant.bits is not None})
    if len(widths) < 2:
        have = f"only {digits(widths[0])} bits" if widths else "none"
        raise UserError(
            f"it takes two or more bit widths, and there is {have}.",
            where="models",
            remedy="Compress to 2, 3 and 4 bits first, then choose them all.",
        )
    if len(widths) < len(others):
        raise UserError(
            "two of the models have the same bits.", where="models", remedy="Leave one out."
        )


def _obvious(desk: Desk) -> str | None:
    mine = {name for _, name in desk.variants()}
    coarse = [
        (entry.bits_per_weight, entry.name)
        for entry in desk.workspace.models()
        if entry.name in mine and entry.bits_per_weight and entry.bits_per_weight <= OBVIOUS_BITS
    ]
    return min(coarse)[1] if coarse else None


def _seeds(text: str, least: int) -> tuple[int, ...]:
    """The seeds in a text, continued upwards until there are `least`."""
    found: list[int] = []
    for part in filter(None, (piece.strip() for piece in str(text).split(","))):
        match = _SEEDS.fullmatch(part)
        if match is None:
            raise UserError(
                f'"{part[:40]}" is not a seed.',
                where="seeds",
                remedy='Write 7, or "7, 9", or 7-12.',
            )
        first = whole(match[1], "seeds")
        last = whole(match[2] or match[1], "seeds")
        if not first <= last < min(first + MOST_PAIRS, MAX_SEED):
            raise UserError(f"{part[:40]} is out of range.", where="seeds", remedy="Write 7-12.")
        found += range(first, last + 1)
    seeds = list(dict.fromkeys(found)) or [0]
    while len(seeds) < least:
        seeds.append(max(seeds) + 1)
    return tuple(seeds)
