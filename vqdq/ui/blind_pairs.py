"""After the end: every pair that was judged, which model drew which picture, and who said what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vqdq.jobs import pairs
from vqdq.jobs.ballots import Picture
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.votes import Vote
from vqdq.ui.blind_results import colours
from vqdq.ui.blind_tests import Sitting
from vqdq.ui.blind_words import SHORT
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import count, escape, file_url

PAGE = 12
KINDS = {
    "identical": "check: one picture twice",
    "obvious": "check: an obvious difference",
    "repeat": "again, sides swapped",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One pair and everything that was said about it.

    Attributes:
        kind: as in `Trial`; first, second: names of the models.
        answers: question, assessor and what was said: a model's name, "equal", "right", …
        said: what most said on the question that decides, or "equal".
    """

    kind: str
    first: str
    second: str
    prompt: str
    seed: int
    answers: tuple[tuple[str, str, str], ...]
    said: str

    @property
    def sort(self) -> str:
        """In which of the choices of `choices_of` it is, beside "all"."""
        if self.kind != "pair":
            return "checks"
        return self.said if self.said in ("right", "wrong") else (
            "decided" if self.said in (self.first, self.second) else "equal"
        )  # fmt: skip


def judged(protocol: Protocol, votes: Iterable[Vote]) -> tuple[Judged, ...]:
    """Returns every pair that was judged, in the order of first votes."""
    groups: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        groups.setdefault((vote.shown["kind"], vote.shown["pair"]), []).append(vote)
    order = {entrant.name: at for at, entrant in reversed(list(enumerate(protocol.entrants)))}
    found: list[Judged] = []
    for (kind, _), group in groups.items():
        shown = group[0].shown
        first, second = sorted((shown["a"], shown["b"]), key=lambda name: order.get(name, 0))
        answers = tuple((vote.question, vote.assessor, _said(vote)) for vote in group)
        primary = protocol.primary if protocol.mode == "preference" else protocol.asked[0].key
        decided = [said for question, _, said in answers if question == primary]
        found.append(
            Judged(
                kind=kind,
                first=first,
                second=second,
                prompt=shown["prompt"],
                seed=int(shown["seed"]),
                answers=answers,
                said=_most(decided),
            )
        )
    return tuple(found)


def _said(vote: Vote) -> str:
    if vote.shown.get("x"):
        if vote.choice == "skip":
            return "skip"
        return "right" if vote.choice == vote.shown["x"] else "wrong"
    return str(vote.shown[vote.choice]) if vote.choice in ("a", "b") else vote.choice


def _most(said: Sequence[str]) -> str:
    counted = [one for one in said if one != "skip"]
    return next((one for one in counted if 2 * counted.count(one) > len(counted)), "equal")


def choices_of(protocol: Protocol) -> tuple[tuple[str, str], ...]:
    """Returns which pairs can be chosen to be shown: value and words."""
    if protocol.mode != "preference":
        return (("all", "All"), ("right", "Told apart"), ("wrong", "Missed"))
    return (("all", "All"), ("decided", "Decided"), ("equal", "Equal"), ("checks", "Checks"))


def pairs_html(found: Sitting, wanted: str, page: int) -> str:
    """Returns a page of the pairs with their models and votes.

    Args:
        wanted: one of `choices_of`; page: from 0.
    """
    protocol = found.test.protocol
    every = judged(protocol, found.test.store.votes(found.test.test))
    kept = [item for item in every if wanted in ("all", item.sort)]
    last = max(0, (len(kept) - 1) // PAGE)
    page = min(page, last)
    buttons = "".join(
        f'<button type="button" class="vq-pick" data-act="pairs" data-value="{value}"'
        f' aria-pressed="{str(value == wanted).lower()}">{words}</button>'
        for value, words in choices_of(protocol)
    )
    rows = "".join(_pair(found, item) for item in kept[page * PAGE : (page + 1) * PAGE])
    turn = (
        f'<div class="vq-actions">{_turn(page - 1, "Earlier", page > 0)}'
        f"<span>{page + 1} of {last + 1}</span>{_turn(page + 1, 'Later', page < last)}</div>"
        if last
        else ""
    )
    return (
        f'<section class="vq-blind-seen"><h3>{count(len(kept), "pair")}, and who said what</h3>'
        f'<div class="vq-picks" role="group" aria-label="Which pairs">{buttons}</div>'
        f'<div class="vq-blind-list">{rows}</div>{turn}</section>'
    )


def _turn(page: int, words: str, on: bool) -> str:
    off = "" if on else " disabled"
    return (
        '<button type="button" class="vq-button vq-button-small" data-act="page"'
        f' data-value="{page}"{off}>{words}</button>'
    )


def _pair(found: Sitting, item: Judged) -> str:
    protocol = found.test.protocol
    marks = colours(protocol)
    names = [entrant.name for entrant in protocol.entrants]
    figures = ""
    for name in (item.first, item.second):
        picture = Picture(entrant=names.index(name), prompt=item.prompt, seed=item.seed)
        path = pairs.drawn_path(protocol, found.run.folder, picture)
        won = str(item.said == name != item.first or item.said == name != item.second).lower()
        figures += (
            f'<figure data-won="{won}"><img src="{escape(file_url(path))}"'
            f' alt="{escape(name)}: {escape(item.prompt)}" loading="lazy"><figcaption>'
            f"{swatch(marks[name])}{escape(name)}</figcaption></figure>"
        )
    kind = f" · {KINDS[item.kind]}" if item.kind in KINDS else ""
    asked = dict.fromkeys(question for question, _, _ in item.answers)
    said = "".join(
        f"<dt>{escape(SHORT.get(question, 'Answer'))}</dt><dd>"
        + ", ".join(
            f"{escape(person)}: {escape(word)}"
            for key, person, word in item.answers
            if key == question
        )
        + "</dd>"
        for question in asked
    )
    return (
        f'<article class="vq-blind-one"><div class="vq-blind-two">{figures}</div>'
        f"<p>{escape(item.prompt)}</p><p class='vq-muted'>seed {item.seed}{kind}</p>"
        f"<dl>{said}</dl></article>"
    )
