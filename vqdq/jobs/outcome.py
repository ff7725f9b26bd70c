"""The results of a blind test: votes with the sides undone, counted and put into words.

Only pairs count for the comparison. Controls and repeats say how far an assessor can be believed:
whether equal pictures were called equal, whether the obvious was seen, whether the same answer came
twice, and whether one side was favoured. Nobody's votes are left out for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vqdq.errors import UserError
from vqdq.jobs.ballots import assessor_key, climb, staircase_rule
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.votes import Vote
from vqdq.metrics.agreement import Agreement, krippendorff
from vqdq.metrics.bradley_terry import Game, Standing, standings
from vqdq.metrics.preference import (
    Judgement,
    Preference,
    adjusted,
    by_majority,
    preference,
)
from vqdq.metrics.preference import Outcome as Said
from vqdq.metrics.proportions import Interval, wilson
from vqdq.metrics.staircase import Threshold, threshold
from vqdq.metrics.verdict import ALPHA, Detection, Verdict, detection, verdict

_PASSED = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two models on one question."""

    question: str
    first: str
    second: str
    preference: Preference
    verdict: Verdict
    agreement: Agreement


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Three or more models on one question, best first; empty with `why` when there is none."""

    question: str
    standings: tuple[Standing, ...]
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessor:
    """How far one assessor's answers can be believed; every share with its interval.

    Attributes:
        name: as written; `votes`: answers, skips included.
        left: decisive answers for the picture on side A; about one half.
        same_twice: repeats answered as the first time.
        identical_called_equal: identical controls called equal (or both bad).
        obvious_seen: obvious controls in which the reference was preferred.
    """

    name: str
    votes: int
    left: Interval
    same_twice: Interval
    identical_called_equal: Interval
    obvious_seen: Interval

    def concerns(self) -> tuple[str, ...]:
        """Returns what speaks against these answers, in sentences; empty when nothing does.

        A side is favoured when the interval of `left` excludes one half. Of the controls, less than
        three in four is a concern: guessing between two sides would see one in two.
        """
        found: list[str] = []
        if not self.left.contains(0.5):
            side = "left" if self.left.value > 0.5 else "right"
            found.append(f"{self.name} favoured the {side} side ({_per_cent(self.left)} left).")
        controls = (
            (self.obvious_seen, "saw {} of the obvious differences."),
            (self.identical_called_equal, "called {} of the identical pictures equal."),
            (self.same_twice, "gave {} of the repeated answers again."),
        )
        for share, words in controls:
            if share.value < _PASSED:  # false for nan, where there was no control
                found.append(f"{self.name} {words.format(_per_cent(share))}")
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a blind test found.

    Attributes:
        test: digest of the protocol; `early`: somebody had not finished.
        comparisons: two models a row, all questions; p values are after Holm over all of them.
        rankings: for three or more models, one a question.
        detections: ABX: "everybody" first, then each assessor at α / number of assessors.
        thresholds: staircase: the just-noticeable bit width of each assessor.
        assessors: how far each can be believed.
    """

    test: str
    early: bool
    comparisons: tuple[Comparison, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    detections: tuple[tuple[str, Detection], ...] = ()
    thresholds: tuple[tuple[str, Threshold], ...] = ()
    assessors: tuple[Assessor, ...] = ()

    def words(self) -> tuple[str, ...]:
        """Returns the results as sentences."""
        lines = [f"{c.question}: {c.verdict.words}" for c in self.comparisons]
        lines += [f"{name}: {found.words}" for name, found in self.detections]
        lines += [f"{name}: {found.words}" for name, found in self.thresholds]
        for person in self.assessors:
            lines += person.concerns()
        if self.comparisons and all(math.isnan(a.obvious_seen.value) for a in self.assessors):
            lines.append(
                "No obvious pairs were judged, so nothing shows that these assessors would have"
                " noticed a difference."
            )
        if self.early:
            lines.append("The test was stopped before everybody had finished.")
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values; null where JSON has no such number."""
        return _finite(asdict(self)) | {"words": list(self.words())}


def outcome_of(protocol: Protocol, votes: Sequence[Vote], *, early: bool) -> Outcome:
    """Returns the results of the votes that count.

    The bootstrap is seeded by the protocol's digest, so that the same votes give the same numbers.
    """
    test = protocol.digest
    if protocol.mode == "abx":
        return Outcome(test=test, early=early, detections=_detections(votes))
    if protocol.mode == "staircase":
        return Outcome(test=test, early=early, thresholds=_thresholds(protocol, votes))
    generator = torch.Generator().manual_seed(int(test[:12], 16))
    counted = [v for v in votes if v.shown["kind"] == "pair" and v.choice != "skip"]
    comparisons: list[tuple[str, str, str, tuple[Judgement, ...]]] = []
    for question in protocol.asked:
        for i, j in protocol.comparisons:
            first, second = protocol.models[i].name, protocol.models[j].name
            about = [
                v
                for v in counted
                if v.question == question.key and {v.shown["a"], v.shown["b"]} == {first, second}
            ]
            judged = tuple(_judgement(vote, first) for vote in about)
            comparisons.append((question.key, first, second, judged))
    decided = [by_majority(judged) for *_, judged in comparisons]
    numbers = adjusted(
        [preference(pairs, margin=protocol.margin, generator=generator) for pairs in decided]
    )
    rows = tuple(
        Comparison(
            question=question,
            first=first,
            second=second,
            preference=result,
            verdict=verdict(result, first, second),
            agreement=_agreement(judged),
        )
        for (question, first, second, judged), result in zip(comparisons, numbers, strict=True)
    )
    rankings: list[Ranking] = []
    if len(protocol.models) > 2:
        for question in protocol.asked:
            games = [
                Game(first=row.first, second=row.second, prompt=item.prompt, outcome=item.outcome)
                for row, pairs in zip(rows, decided, strict=True)
                if row.question == question.key
                for item in pairs
            ]
            rankings.append(_ranking(question.key, games, len(protocol.models), generator))
    return Outcome(
        test=test,
        early=early,
        comparisons=rows,
        rankings=tuple(rankings),
        assessors=tuple(_assessor(protocol, group) for group in _by_assessor(votes)),
    )


def _ranking(
    question: str, games: Sequence[Game], models: int, generator: torch.Generator
) -> Ranking:
    try:
        found = standings(games, generator)
    except UserError as error:  # too few votes to connect the models
        return Ranking(question=question, standings=(), why=error.what)
    if len(found) < models:
        why = "some models were never compared with the others, not even through a third."
        return Ranking(question=question, standings=(), why=why)
    return Ranking(question=question, standings=found, why="")


def _said(vote: Vote, first: str) -> Said:
    if vote.choice in ("a", "b"):
        return "first" if vote.shown[vote.choice] == first else "second"
    return "both bad" if vote.choice == "both bad" else "tie"


def _judgement(vote: Vote, first: str) -> Judgement:
    return Judgement(
        pair=vote.shown["pair"],
        prompt=vote.shown["prompt"],
        assessor=vote.key,
        outcome=_said(vote, first),
    )


def _agreement(judged: Iterable[Judgement]) -> Agreement:
    units: dict[str, list[str]] = {}
    for item in judged:
        units.setdefault(item.pair, []).append(item.outcome)
    return krippendorff(units.values())


def _by_assessor(votes: Iterable[Vote]) -> list[list[Vote]]:
    groups: dict[str, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(vote.key, []).append(vote)
    return list(groups.values())


def _assessor(protocol: Protocol, votes: Sequence[Vote]) -> Assessor:
    given = [vote for vote in votes if vote.choice != "skip"]

    def of(kind: str) -> list[Vote]:
        return [vote for vote in given if vote.shown["kind"] == kind]

    reference = protocol.models[0].name
    pairs = {(v.shown["pair"], v.question): _side_undone(v) for v in of("pair")}
    again = [
        pairs[key] == _side_undone(v)
        for v in of("repeat")
        if (key := (v.shown["pair"], v.question)) in pairs
    ]
    sides = [v.choice == "a" for v in of("pair") + of("repeat") if v.choice in ("a", "b")]
    equal = [v.choice in ("equal", "both bad") for v in of("identical")]
    seen = [_said(v, reference) == "first" for v in of("obvious")]
    return Assessor(
        name=votes[0].assessor,
        votes=len(votes),
        left=_share(sides),
        same_twice=_share(again),
        identical_called_equal=_share(equal),
        obvious_seen=_share(seen),
    )


def _side_undone(vote: Vote) -> str:
    return str(vote.shown[vote.choice]) if vote.choice in ("a", "b") else vote.choice


def _share(values: Sequence[bool]) -> Interval:
    return wilson(sum(values), len(values))


def _per_cent(share: Interval) -> str:
    return f"{100 * share.value:.0f}%"


def _detections(votes: Sequence[Vote]) -> tuple[tuple[str, Detection], ...]:
    groups = [(g[0].assessor, [v for v in g if v.choice != "skip"]) for g in _by_assessor(votes)]
    everybody = ("everybody", [vote for _, group in groups for vote in group])
    return tuple(
        (
            name,
            detection(
                sum(vote.choice == vote.shown["x"] for vote in group), len(group), alpha=alpha
            ),
        )
        for (name, group), alpha in zip(
            [everybody, *groups], [ALPHA, *[ALPHA / len(groups)] * len(groups)], strict=True
        )
    )


def _thresholds(protocol: Protocol, votes: Sequence[Vote]) -> tuple[tuple[str, Threshold], ...]:
    rule = staircase_rule(protocol)
    found: list[tuple[str, Threshold]] = []
    for group in _by_assessor(votes):
        choices: Mapping[str, str] = {vote.ballot: vote.choice for vote in group}
        answers, _ = climb(protocol, assessor_key(group[0].assessor), choices)
        found.append((group[0].assessor, threshold(rule, answers)))
    return tuple(found)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value
