"""The blind tests of a workspace: their list, and one of them before its results are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vqdq.errors import UserError
from vqdq.jobs.blind import BlindTest, Standing
from vqdq.jobs.requests import BlindRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.votes import Reveal
from vqdq.ui import header
from vqdq.ui.blind_words import TITLES, answers, in_words, power_words
from vqdq.ui.desk import Desk, as_fault
from vqdq.ui.wording import count, escape, moment, shorten

LIMIT = 40
State = Literal["drawing", "stopped", "open", "revealed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sitting:
    """A blind test as the page knows it: the run that drew its pictures, and its votes.

    Attributes:
        people: everybody who has voted.
        reveal: when its results were shown, or None.
    """

    run: RunRecord
    test: BlindTest
    people: tuple[Standing, ...]
    reveal: Reveal | None

    @property
    def name(self) -> str:
        """What the person who made it calls it."""
        return self.run.name or self.test.protocol.name

    @property
    def state(self) -> State:
        """What can be done with it."""
        if self.reveal is not None:
            return "revealed"
        if self.run.state in ("queued", "running"):
            return "drawing"
        return "open" if self.run.state == "done" else "stopped"


def sitting(desk: Desk, run: RunRecord) -> Sitting:
    """Returns the test whose pictures a run draws.

    Raises:
        UserError: the votes file does not know it.
    """
    if not isinstance(run.request, BlindRequest):
        raise UserError("is not a blind test.", where=run.id, remedy="Choose another.")
    test = BlindTest(desk.votes, run.request.test)
    return Sitting(run=run, test=test, people=test.people(), reveal=desk.votes.revealed(test.test))


def find(desk: Desk, name: str) -> Sitting:
    """Returns a test by the id of its run, or by (the beginning of) its hash.

    Raises:
        UserError: there is none, or more than one.
    """
    runs = desk.workspace.runs("blind", 1000)
    found = [
        run
        for run in runs
        if name
        and isinstance(run.request, BlindRequest)
        and (run.id == name or run.request.test.startswith(name))
    ]
    if len(found) != 1:
        what = "there is no such blind test." if not found else "several blind tests begin so."
        raise UserError(what, where=name[:64] or "test", remedy="Use the id of its run.")
    return sitting(desk, found[0])


def list_html(desk: Desk) -> str:
    """Returns every test with its state and what can be done; "" when there is none."""
    cards = "".join(_card(desk, run) for run in desk.workspace.runs("blind", LIMIT))
    return f'<div class="vq-blind-tests">{cards}</div>' if cards else ""


def _card(desk: Desk, run: RunRecord) -> str:
    try:
        found = sitting(desk, run)
    except UserError as error:  # the votes file was moved away: the pictures alone are no test
        return (
            f'<article class="vq-blind-card"><h3>{escape(shorten(run.title, 80))}</h3>'
            f'<p class="vq-muted">{escape(error)}</p>'
            f'<div class="vq-actions">{_delete(run)}</div></article>'
        )
    protocol = found.test.protocol
    return (
        f'<article class="vq-blind-card" data-state="{found.state}">'
        f"<h3>{escape(shorten(found.name, 80))}</h3>"
        f'<p class="vq-muted">{TITLES[protocol.mode]} · {count(protocol.pairs, "pair")} ·'
        f" {moment(run.created)}</p><p>{escape(state_words(found))}</p>"
        f'<div class="vq-actions">{_doors(found)}{_delete(run)}</div></article>'
    )


def state_words(found: Sitting) -> str:
    """Returns the state of a test: "Drawing, picture 3 of 40", "Open: Ana 12 of 40"."""
    match found.state:
        case "drawing":
            return f"Drawing, {header.position(found.run)}"
        case "stopped":
            return "Drawing stopped before it was done."
        case "revealed":
            early = found.reveal is not None and found.reveal.early
            people = count(len(found.people), "person").replace("persons", "people")
            return f"Results shown{', stopped early' if early else ''} · {people}"
        case "open":
            if not found.people:
                return "Ready. Nobody has voted yet."
            return f"Open: {', '.join(map(_standing, found.people))}"


def _standing(person: Standing) -> str:
    if person.finished:
        return f"{person.name} done"
    of = f" of {person.questions}" if person.questions else ""
    return f"{person.name} {person.answered}{of}"


def _doors(found: Sitting) -> str:
    match found.state:
        case "drawing":
            return _button(found.run, "look", "Watch") + _button(found.run, "cancel", "Cancel")
        case "stopped":
            return _button(found.run, "resume", "Draw the rest") + _button(
                found.run, "look", "Look at it"
            )
        case "open":
            return _button(found.run, "look", "Vote")
        case "revealed":
            return _button(found.run, "look", "Results")


def _button(run: RunRecord, act: str, words: str) -> str:
    return (
        f'<button type="button" class="vq-button vq-button-small" data-act="{act}"'
        f' data-run="{escape(run.id)}">{words}</button>'
    )


def _delete(run: RunRecord) -> str:
    if run.state == "running":
        return ""
    return (
        '<button type="button" class="vq-button vq-button-small vq-button-quiet"'
        ' data-confirm="delete" data-sure="Delete its pictures for good?"'
        f' data-run="{escape(run.id)}">Delete</button>'
    )


def test_html(found: Sitting) -> str:
    """Returns a test before its results: drawing, or who votes; the protocol and its hash."""
    run, protocol = found.run, found.test.protocol
    words = "".join(f"<li>{escape(line)}</li>" for line in in_words(protocol))
    power = "".join(f"<p>{escape(line)}</p>" for line in power_words(protocol))
    return (
        f'<div class="vq-blind-test" data-shown-run="{escape(run.id)}">{BACK}'
        f"<h2>{escape(shorten(found.name, 80))}</h2>{_now(found)}"
        '<section class="vq-blind-protocol"><h3>Fixed before the first vote</h3>'
        f'<ul>{words}</ul>{power}<p class="vq-muted">About {answers(protocol)} answers a person.'
        f" SHA-256 of the protocol:</p>{hash_html(found.test.test)}</section></div>"
    )


def hash_html(digest: str) -> str:
    """Returns the protocol's hash, to be copied."""
    return (
        f'<p class="vq-blind-hash"><code>{digest}</code> <button type="button"'
        f' class="vq-button vq-button-small vq-button-quiet" data-copy="{digest}">Copy'
        "</button></p>"
    )


BACK = '<p><button type="button" class="vq-link" data-act="home">All blind tests</button></p>'


def _now(found: Sitting) -> str:
    run = found.run
    if found.state == "drawing":
        return header.progress(run)
    if found.state == "stopped":
        button = _button(run, "resume", "Draw the rest")
        if run.state == "cancelled":
            return (
                "<p>Stopped before all pictures were drawn; those that are there are kept.</p>"
                f'<div class="vq-actions">{button}</div>'
            )
        fault = as_fault(run.error)
        return header.fault(
            fault.what, where=fault.where, remedy=fault.remedy, title="Not drawn", actions=button
        )
    return join_html(found)


def join_html(found: Sitting) -> str:
    """Returns the question who votes, and how far everybody is."""
    run = escape(found.run.id)
    people = "".join(
        f"<li>{escape(_standing(person))}"
        + (
            ""
            if person.finished
            else f' <button type="button" class="vq-button vq-button-small" data-act="join"'
            f' data-run="{run}" data-person="{escape(person.name)}">Continue as'
            f" {escape(person.name)}</button>"
        )
        + "</li>"
        for person in found.people
    )
    voted = f'<ul class="vq-blind-people">{people}</ul>' if people else ""
    left = [person.name for person in found.people if not person.finished]
    ends = ""
    if found.people:
        sure = "End the test now?" if left else "End the test?"
        ends = (
            '<div class="vq-actions"><button type="button" class="vq-button"'
            f' data-confirm="unblind" data-sure="{sure}" data-run="{run}">Show the'
            ' results</button><span class="vq-muted">'
            + ("Not everybody has finished; the results will say so." if left else "")
            + " Nobody can vote afterwards.</span></div>"
        )
    return (
        f'<div class="vq-blind-join" data-blind-join="{run}"><label for="vq-blind-name">Who'
        ' votes?</label><input type="text" id="vq-blind-name" data-blind-name maxlength="80"'
        ' autocomplete="off" placeholder="Your name"><button type="button" class="primary'
        f' vq-blind-go" data-act="join" data-run="{run}" data-person="">Vote</button></div>'
        f"{voted}{ends}"
    )
