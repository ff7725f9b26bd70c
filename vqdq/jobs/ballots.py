"""What each assessor is shown, in which order, on which side, and under which names.

All of it follows from the protocol's order seed and the assessor's name by HMAC-SHA-256, so a
restart shows the same test, and nothing about it can be guessed without the seed. What leaves the
server is `Ballot.shown`: random-looking names, the prompt and the question; no model, seed, kind
or order. An identical pair has two names like any other.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

from vqdq.errors import UserError
from vqdq.jobs.protocol import Protocol, Question
from vqdq.metrics.staircase import Answer, Staircase

T = TypeVar("T")
Kind = Literal["pair", "identical", "obvious", "repeat"]

_GAP = 5  # pairs that lie between a pair and its repeat, where there are that many
_NAME_LENGTH = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Which picture a name stands for; known to the server alone."""

    entrant: int
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Two pictures to be compared.

    Attributes:
        pair: names prompt, seed and models; the same for every assessor, and for a repeat.
        kind: a pair that counts, a control or a repeat.
        first, second: numbers of the models in `Protocol.entrants`.
        prompt, seed: what both were drawn from.
    """

    pair: str
    kind: Kind
    first: int
    second: int
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ballot:
    """One trial as one assessor sees it.

    Attributes:
        token: its name outside the server, 32 hexadecimal digits.
        number, total: place in the assessor's order, from 1.
        trial: what it is.
        swapped: True when the second model is A.
        x: in ABX, which of the two X is: "a" or "b"; otherwise "".
        pictures: name outside the server and picture, for A, B and, in ABX, X.
    """

    token: str
    number: int
    total: int
    trial: Trial
    swapped: bool
    x: str
    pictures: tuple[tuple[str, Picture], ...]

    def shown(self, question: Question, choices: Sequence[str]) -> dict[str, Any]:
        """Returns all that may leave the server before the end."""
        sides = ("a", "b", "x")[: len(self.pictures)]
        return {
            "ballot": self.token,
            "number": self.number,
            "total": self.total,
            "question": question.key,
            "text": question.text,
            "prompt": self.trial.prompt if question.shows_prompt else "",
            "pictures": {side: name for side, (name, _) in zip(sides, self.pictures, strict=True)},
            "choices": list(choices),
        }

    def record(self, protocol: Protocol) -> dict[str, Any]:
        """Returns what is kept with a vote, so that votes can be read without this program."""
        names = [protocol.entrants[picture.entrant].name for _, picture in self.pictures]
        return {
            "number": self.number,
            "pair": self.trial.pair,
            "kind": self.trial.kind,
            "prompt": self.trial.prompt,
            "seed": self.trial.seed,
            "a": names[0],
            "b": names[1],
            "x": self.x,
        }


def assessor_name(text: str) -> str:
    """Returns a name in one form: composed characters, single spaces.

    Raises:
        UserError: empty, longer than 80 characters, or with control characters.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > _NAME_LENGTH or not name.isprintable():
        raise UserError(
            "an assessor needs a name.",
            where="assessor",
            remedy=f"Use 1 to {_NAME_LENGTH} letters; it tells your votes from others'.",
        )
    return name


def assessor_key(name: str) -> str:
    """Returns what makes two spellings one person: "Ana" and "ana" are the same."""
    return assessor_name(name).casefold()


def ballots(protocol: Protocol, assessor: str) -> tuple[Ballot, ...]:
    """Returns everything an assessor will be shown, in order; not for a staircase.

    Sides are balanced: of each two models, the first is A in half of the pairs (one more or less).
    """
    return _ballots(protocol, assessor_key(assessor))


@lru_cache(maxsize=64)  # asked for at every vote
def _ballots(protocol: Protocol, key: str) -> tuple[Ballot, ...]:
    draw = _draw_of(protocol, key)
    base = draw.shuffled(_trials(protocol), "order")
    swapped = _sides(base, draw)
    order = [(float(at), trial, swapped[at]) for at, trial in enumerate(base)]
    order += _repeats(protocol, base, swapped, draw)
    order.sort(key=lambda row: row[0])
    return tuple(
        _ballot(protocol, draw, trial, side, number, len(order))
        for number, (_, trial, side) in enumerate(order, start=1)
    )


def staircase_ballot(protocol: Protocol, assessor: str, number: int, level: int) -> Ballot:
    """Returns the `number`-th trial (from 1) of a staircase: the reference against a level.

    Args:
        level: number of the model in `Protocol.models`, 1 or more.
    """
    key = assessor_key(assessor)
    draw = _draw_of(protocol, key)
    lap, place = divmod(number - 1, len(protocol.prompts) * len(protocol.seeds))
    cell = _cells(protocol, key, lap)[place]
    trial = _trial(protocol, "pair", 0, level, cell, f"{number}")
    return _ballot(protocol, draw, trial, draw.bit(f"side {number}"), number, 0)


def staircase_rule(protocol: Protocol) -> Staircase:
    """Returns the rule of a staircase test: one level a compressed model."""
    return Staircase(levels=tuple(float(e.bits) for e in protocol.models[1:] if e.bits is not None))


def climb(
    protocol: Protocol, assessor: str, choices: Mapping[str, str]
) -> tuple[list[Answer], Ballot | None]:
    """Returns the answers of one assessor so far, and the next trial, or None at the end.

    Args:
        choices: what was chosen, by `Ballot.token`. A skipped trial is no answer, and another of
            the same level follows; twice the most trials is the end for who skips everything.
    """
    rule = staircase_rule(protocol)
    levels = {entrant.bits: number for number, entrant in enumerate(protocol.models) if number}
    answers: list[Answer] = []
    number = 1
    while (bits := rule.next_level(answers)) is not None and number <= 2 * rule.most:
        ballot = staircase_ballot(protocol, assessor, number, levels[bits])
        choice = choices.get(ballot.token)
        if choice is None:
            return answers, ballot
        if choice != "skip":
            answers.append(Answer(bits=bits, right=choice == ballot.x))
        number += 1
    return answers, None


def pictures_of(shown: Sequence[Ballot]) -> Mapping[str, Picture]:
    """Returns the picture behind each name of these ballots, for the server that serves them."""
    return {name: picture for ballot in shown for name, picture in ballot.pictures}


def _trials(protocol: Protocol) -> list[Trial]:
    found = [
        _trial(protocol, "pair", first, second, number)
        for first, second in protocol.comparisons
        for number in range(protocol.pairs)
    ]
    if protocol.mode == "preference":
        found += _controls(protocol, "identical", 0, protocol.identical)
        found += _controls(protocol, "obvious", len(protocol.models), protocol.obvious)
    return found


def _controls(protocol: Protocol, kind: Kind, second: int, count: int) -> list[Trial]:
    cells = [protocol.pairs - 1 - number % protocol.pairs for number in range(count)]
    return [
        _trial(protocol, kind, 0, second, cell, f"{kind} {number}")
        for number, cell in enumerate(cells)
    ]


def _trial(
    protocol: Protocol, kind: Kind, first: int, second: int, cell: int, suffix: str = ""
) -> Trial:
    prompt, seed = protocol.cell(cell)
    pair = f"{first}v{second}:{cell}" + (f" {suffix}" if suffix else "")
    return Trial(pair=pair, kind=kind, first=first, second=second, prompt=prompt, seed=seed)


def _sides(base: Sequence[Trial], draw: _Draw) -> list[bool]:
    swapped = [False] * len(base)
    groups: dict[tuple[str, int, int], list[int]] = {}
    for at, trial in enumerate(base):
        groups.setdefault((trial.kind, trial.first, trial.second), []).append(at)
    for group, places in groups.items():
        odd = draw.bit(f"sides {group}")
        for rank, at in enumerate(draw.shuffled(places, f"sides {group}")):
            swapped[at] = (rank % 2 == 1) != odd
    return swapped


def _repeats(
    protocol: Protocol, base: Sequence[Trial], swapped: Sequence[bool], draw: _Draw
) -> list[tuple[float, Trial, bool]]:
    """Some pairs again with sides swapped, each later than the first time by `_GAP` or more."""
    pairs = [at for at, trial in enumerate(base) if trial.kind == "pair"]
    if protocol.mode != "preference" or not protocol.repeats:
        return []
    count = max(1, round(protocol.repeats * len(pairs)))
    early = [at for at in pairs if at + _GAP < len(base)]
    late = [at for at in pairs if at + _GAP >= len(base)]
    chosen = [*draw.shuffled(early, "repeats"), *late][:count]
    found: list[tuple[float, Trial, bool]] = []
    for at in chosen:
        room = max(0, len(base) - at - _GAP)  # places behind base[at + _GAP] … behind the last
        place = at + _GAP + draw.share(f"repeat {at}") * room if room else len(base) + at
        found.append((place + 0.5, replace(base[at], kind="repeat"), not swapped[at]))
    return found


def _ballot(
    protocol: Protocol, draw: _Draw, trial: Trial, swapped: bool, number: int, total: int
) -> Ballot:
    token = draw.token(f"ballot {number} {trial.pair}")
    sides = (trial.second, trial.first) if swapped else (trial.first, trial.second)
    x = ""
    if protocol.mode != "preference":
        x = "ab"[draw.bit(f"x {token}")]
        sides = (*sides, sides["ab".index(x)])
    pictures = tuple(
        (
            draw.token(f"picture {side} {token}"),
            Picture(entrant=entrant, prompt=trial.prompt, seed=trial.seed),
        )
        for side, entrant in enumerate(sides)
    )
    return Ballot(
        token=token,
        number=number,
        total=total,
        trial=trial,
        swapped=swapped,
        x=x,
        pictures=pictures,
    )


@lru_cache(maxsize=64)
def _cells(protocol: Protocol, key: str, lap: int) -> list[int]:
    cells = range(len(protocol.prompts) * len(protocol.seeds))
    return _draw_of(protocol, key).shuffled(cells, f"cells {lap}")


@lru_cache(maxsize=64)
def _draw_of(protocol: Protocol, key: str) -> _Draw:
    return _Draw(protocol, key)


class _Draw:
    """Numbers that follow from the order seed, the assessor and a label."""

    def __init__(self, protocol: Protocol, key: str) -> None:
        self._key = bytes.fromhex(protocol.order_seed)
        self._who = f"{protocol.digest}\0{key}"

    def token(self, label: str) -> str:
        return self._bytes(label)[:16].hex()

    def bit(self, label: str) -> bool:
        return bool(self._bytes(label)[0] & 1)

    def share(self, label: str) -> float:
        return int.from_bytes(self._bytes(label)[:6]) / 2**48

    def shuffled(self, items: Sequence[T], label: str) -> list[T]:
        order = sorted(range(len(items)), key=lambda at: self._bytes(f"{label} {at}"))
        return [items[at] for at in order]

    def _bytes(self, label: str) -> bytes:
        return hmac.digest(self._key, f"{self._who}\0{label}".encode(), hashlib.sha256)
