"""A blind test from the first question to the results: what the page and callers use.

`next_question`, `vote`, `undo`, until everybody is done; then `reveal`, and only then
`outcome`. What is handed out before the end is `Ballot.shown` and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vqdq.durable import atomic
from vqdq.errors import UserError
from vqdq.jobs.ballots import Ballot, Picture, assessor_name, ballots, climb
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.outcome import Outcome, outcome_of
from vqdq.jobs.protocol import Question
from vqdq.jobs.votes import VoteStore

_DATE = 315532800  # 1980, seconds since the epoch: the oldest that every archive can store


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The question that an assessor is asked now.

    Attributes:
        ballot: for the server; `shown`: what the assessor may see.
        question: one of the protocol's.
        answered, questions: how many of how many; `questions` is 0 in a staircase, which ends
            when it knows enough.
    """

    ballot: Ballot
    question: Question
    shown: Mapping[str, Any]
    answered: int
    questions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far one assessor has come.

    Attributes:
        name: as first written.
        answered, questions: how many of how many; `questions` is 0 in a staircase.
        finished: nothing is left to ask.
    """

    name: str
    answered: int
    questions: int
    finished: bool


class BlindTest:
    """One frozen test in a votes file."""

    def __init__(self, store: VoteStore, test: str) -> None:
        self.store = store
        self.test = test
        self.protocol = store.protocol(test)

    def next_question(self, assessor: str) -> Asked | None:
        """Returns what the assessor is asked now, or None when they are done or it is over.

        Raises:
            UserError: the name is empty.
        """
        if self.store.revealed(self.test) is not None:
            return None
        return self._asked(assessor)[0]

    def _asked(self, assessor: str) -> tuple[Asked | None, int, int]:
        """What is left to ask first, and how many were answered of how many."""
        votes = self.store.votes(self.test, assessor)
        given = {(vote.ballot, vote.question) for vote in votes}
        asked = self.protocol.asked
        if self.protocol.mode == "staircase":
            choices = {vote.ballot: vote.choice for vote in votes}
            ballot = climb(self.protocol, assessor, choices)[1]
            found = [] if ballot is None else [(ballot, asked[0])]
            total = 0
        else:
            every = ballots(self.protocol, assessor)
            found = [(b, q) for b in every for q in asked if (b.token, q.key) not in given]
            total = len(every) * len(asked)
        if not found:
            return None, len(given), total
        ballot, question = found[0]
        now = Asked(
            ballot=ballot,
            question=question,
            shown=ballot.shown(question, self.protocol.choices),
            answered=len(given),
            questions=total,
        )
        return now, len(given), total

    def vote(
        self,
        assessor: str,
        ballot: str,
        question: str,
        choice: str,
        *,
        context: Mapping[str, Any] | None = None,
    ) -> Asked | None:
        """Returns the next question after storing the answer to the present one.

        Args:
            assessor: who answers.
            ballot, question: names from `Asked.shown`; they must be those asked now, so that a
                second click or an old page cannot answer something unseen.
            choice: one of the protocol's.
            context: viewport, zoom, seconds: what the page knows; kept with the vote.

        Raises:
            UserError: another question is asked now, or the choice is not offered.
        """
        now = self.next_question(assessor)
        if now is None:
            raise UserError("there is no open question.", where="blind test")
        if (ballot, question) != (now.ballot.token, now.question.key):
            raise UserError(
                "this is not the question that is asked now.",
                where="blind test",
                remedy="Reload the page; your vote may have been counted already.",
            )
        if choice not in self.protocol.choices:
            raise UserError(
                f'"{choice}" is not an answer.',
                where="blind test",
                remedy=f"Use one of: {', '.join(self.protocol.choices)}.",
            )
        self.store.add(
            self.test,
            assessor,
            ballot,
            question,
            choice,
            shown=now.ballot.record(self.protocol),
            context=context,
        )
        return self.next_question(assessor)

    def undo(self, assessor: str) -> Asked | None:
        """Returns the question whose answer was just taken back; possible until the end."""
        self.store.withdraw_last(self.test, assessor)
        return self.next_question(assessor)

    def picture(self, assessor: str, name: str) -> Picture:
        """Returns what to serve under one of the names shown now.

        Only the present pair is served, so that names cannot be tried out ahead.

        Raises:
            UserError: the name is not shown to this assessor now.
        """
        now = self.next_question(assessor)
        known = dict(now.ballot.pictures) if now is not None else {}
        if name not in known:
            raise UserError("there is no such picture now.", where="blind test")
        return known[name]

    def standing(self, assessor: str) -> Standing:
        """Returns how far an assessor has come, also one who has not begun.

        Raises:
            UserError: the name is empty.
        """
        now, answered, questions = self._asked(assessor)
        return Standing(
            name=assessor_name(assessor),
            answered=answered,
            questions=questions,
            finished=now is None,
        )

    def people(self) -> tuple[Standing, ...]:
        """Returns everybody who has voted, in order of their first vote."""
        return tuple(self.standing(person) for person in self.store.assessors(self.test))

    def unfinished(self) -> tuple[str, ...]:
        """Returns who has begun and not finished."""
        return tuple(person.name for person in self.people() if not person.finished)

    def reveal(self, *, early: bool = False) -> Outcome:
        """Returns the results after closing the test for good.

        Args:
            early: close it although somebody has not finished; the results will say so.

        Raises:
            UserError: nobody has voted, or somebody has not finished and `early` is False.
        """
        if self.store.revealed(self.test) is None:
            if not self.store.votes(self.test):
                raise UserError("nobody has voted yet.", where="blind test", remedy="Vote first.")
            left = self.unfinished()
            if left and not early:
                raise UserError(
                    f"{', '.join(left)} did not finish.",
                    where="blind test",
                    remedy="Wait, or stop early; the results will say that it was stopped early.",
                )
            self.store.reveal(self.test, early=bool(left))
        return self.outcome()

    def outcome(self) -> Outcome:
        """Returns the results of a test that was opened.

        Raises:
            UserError: it was not; results before the end would bias those who still vote.
        """
        opened = self.store.revealed(self.test)
        if opened is None:
            raise UserError(
                "results are shown only at the end.",
                where="blind test",
                remedy="Finish the test, or stop it early.",
            )
        return outcome_of(self.protocol, self.store.votes(self.test), early=opened.early)


def seal(source: str | Path, folder: str | Path, name: str) -> Path:
    """Returns the path of a lossless copy of a picture that tells nothing but its pixels.

    No metadata, no old name, no time of making: `folder/name.png`, see `strip`.

    Raises:
        UserError: the picture cannot be read or the copy not written.
    """
    target = Path(folder) / f"{name}.png"
    try:
        with Image.open(source) as picture:
            pixels = picture.convert("RGB")
    except (OSError, SyntaxError) as error:  # PIL says a broken PNG as SyntaxError
        raise UserError("is not a picture that can be read.", where=str(source)) from error
    strip(pixels, target)
    return target


def strip(picture: Image.Image, target: Path) -> None:
    """Writes the pixels alone to `target`, by one rename and dated 1980.

    Stored without compression: how well a picture packs tells smooth from noisy, and with equal
    sizes the server's `Content-Length`, `Last-Modified` and `ETag` are the same for all.

    Raises:
        UserError: the disk refuses.
    """
    bare = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as file:
            bare.save(file, format="PNG", compress_level=0)
            file.flush()
            os.utime(file.name, (_DATE, _DATE))
