"""The Blind test tab: pairs, a few questions, five keys, and words that follow the statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.blind import Asked, BlindTest
from vqdq.jobs.requests import BlindRequest
from vqdq.ui import blind_form, blind_setup, blind_tests, blind_vote, header, people
from vqdq.ui.blind_setup import Wish
from vqdq.ui.blind_tests import Sitting
from vqdq.ui.desk import Desk
from vqdq.ui.live import ACTION, Part, Region, Session, Wire, clicked, grown, html, markup

RESULTS = "blind results"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlindLook:
    """What a person does in the Blind tab.

    Attributes:
        person: who votes; "" while nobody does.
        making: a new test is being set up.
        pairs: which pairs of the results are shown; `page`: from 0.
    """

    person: str = ""
    making: bool = False
    pairs: str = "all"
    page: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What the tab shows: a list, a test, a question or results.

    Attributes:
        found: the test on display; None for the list.
        person: who votes; "" for nobody. `asked`: what, or None at the end.
        fault: why the test on display cannot be shown.
    """

    found: Sitting | None = None
    person: str = ""
    asked: Asked | None = None
    fault: UserError | None = None


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the regions and events of this tab."""
    with gr.Column(elem_classes=["vq-blind"]):
        fault = html("", "vq-blind-fault")
        main = html("", "vq-blind-main")
        start = html("", "vq-blind-start")
        with gr.Column(visible=False, elem_id="vq-blind-setup") as setup:
            form = blind_form.build(desk)
        pictures = html("", "vq-blind-pictures")
        replies = html("", "vq-blind-replies")
        results = html("", "vq-blind-results")
        seen = html("", "vq-blind-seen")

    def look_ahead(*values: Any) -> str:
        return blind_setup.outlook_html(desk, blind_form.asked_for(values))

    def begin(state: Session, *values: Any) -> tuple[Session, str]:
        try:
            run = submit(desk, blind_form.wish_of(values))
        except UserError as error:
            where = error.where.removeprefix("protocol.")
            return state, header.fault(
                error.what, where=where, remedy=error.remedy, title="Not a test yet"
            )
        return state.showing(blind=run).looking(BlindLook()), ""

    def act(state: Session, event: gr.EventData) -> tuple[Session, str]:
        data = clicked(event)
        try:
            return _acted(desk, state, data), ""
        except UserError as error:
            return state, header.fault(error.what, where=error.where, remedy=error.remedy)

    for trigger in form.triggers:
        trigger(look_ahead, form.inputs, form.outlook, trigger_mode="always_last", **ACTION)
    wires = [
        Wire(form.make.click, begin, [session, *form.inputs], [session, fault]),
        *(
            Wire(part.click, act, [session], [session, fault])
            for part in (main, replies, results, seen)
        ),
        Wire(tab.select, _enter, [session], [session]),
    ]
    regions = [
        Region("blind main", main, markup(lambda s: main_html(desk, s))),
        Region("blind start", start, markup(lambda s: start_html(desk, s))),
        Region("blind setup", setup, lambda s: _setup(desk, s)),
        Region("blind models", form.models, lambda s: _models(desk, s)),
        Region("blind pictures", pictures, markup(lambda s: pictures_html(desk, s))),
        Region("blind answers", replies, markup(lambda s: answers_html(desk, s))),
        Region(RESULTS, results, lambda s: _results(desk, s)),
        Region("blind pairs", seen, markup(lambda s: seen_html(desk, s))),
    ]
    return Part(regions=regions, wires=wires, doors=[start])


def submit(desk: Desk, wish: Wish) -> str:
    """Returns the id of the queued run that draws the pictures of a new, frozen test.

    Raises:
        UserError: what in the wish cannot be a test, or a model cannot be read.
    """
    protocol = blind_setup.protocol_of(desk, wish)
    test = desk.votes.freeze(protocol)
    return desk.workspace.submit(BlindRequest(test=test, name=protocol.name))


def vote(
    desk: Desk, test: str, assessor: str, choice: str = "", ballot: str = "", question: str = ""
) -> dict[str, Any]:
    """Returns what the assessor is asked now, after storing the answer when there is one.

    Args:
        test: id of its run, or the beginning of its hash.
        choice: one of the offered; "" only asks. "undo" takes the last answer back.
        ballot, question: from the last answer of this function; they must be those asked now.

    Returns:
        `Ballot.shown`, the files of the sealed pictures by side, and how many were answered; only
        `done` at the end.

    Raises:
        UserError: no such test, its pictures are not drawn yet, or the answer does not fit.
    """
    found, assessor = blind_tests.find(desk, test), people.assessor(assessor)
    if found.state in ("drawing", "stopped"):
        raise UserError(
            "its pictures are not drawn yet.", where=found.name, remedy="Wait for its run."
        )
    if choice == "undo":
        asked = found.test.undo(assessor)
    elif choice:
        asked = found.test.vote(assessor, ballot, question, choice, context={"by": "api"})
    else:
        asked = found.test.next_question(assessor)
    if asked is None:
        return {"done": True}
    paths = blind_vote.sealed(found.test, found.run, asked)
    return {
        **asked.shown,
        "pictures": {side: str(path) for side, path in paths.items()},
        "answered": asked.answered,
        "questions": asked.questions,
        "done": False,
    }


def results(desk: Desk, test: str, *, reveal: bool = False) -> dict[str, Any]:
    """Returns the results of a test as JSON values; see `vqdq.jobs.outcome.Outcome`.

    Args:
        test: id of its run, or the beginning of its hash.
        reveal: end the test when it is still open; nobody can vote afterwards.

    Raises:
        UserError: it is still open and `reveal` is False, or nobody has voted.
    """
    found = blind_tests.find(desk, test)
    if reveal:
        desk.workspace.own(found.run.id)
    made = found.test.reveal(early=True) if reveal else found.test.outcome()
    return {"protocol": found.test.protocol.to_json(), **made.to_json()}


def scene(desk: Desk, session: Session) -> Scene:
    """Returns what the tab shows now."""
    run, look = session.run("blind"), session.look(BlindLook)
    if not run or look.making:
        return Scene()
    try:
        found = blind_tests.sitting(desk, desk.workspace.run(run))
        if found.state != "open" or not look.person:
            return Scene(found=found)
        asked = found.test.next_question(look.person)
        return Scene(found=found, person=look.person, asked=asked)
    except UserError as error:
        return Scene(fault=error)


def main_html(desk: Desk, session: Session) -> str:
    """Returns the list, a test before its results, or what stands above the pictures."""
    if "blind" not in session.opened:
        return ""
    now = scene(desk, session)
    if now.fault is not None:
        return blind_tests.BACK + header.fault(
            now.fault.what, where=now.fault.where, remedy=now.fault.remedy
        )
    if now.found is None:
        return _home(desk, session)
    if now.person:
        return blind_vote.head_html(now.found, now.person, now.asked)
    if now.found.state == "revealed":
        return ""
    return blind_tests.test_html(now.found)


def pictures_html(desk: Desk, session: Session) -> str:
    """Returns the pictures of the present pair; "" when nobody votes."""
    now = scene(desk, session) if "blind" in session.opened else Scene()
    if now.found is None or now.asked is None:
        return ""
    try:
        paths = blind_vote.sealed(now.found.test, now.found.run, now.asked)
    except UserError as error:
        return header.fault(error.what, where=error.where, remedy=error.remedy)
    return blind_vote.pictures_html(now.found, now.asked, paths)


def answers_html(desk: Desk, session: Session) -> str:
    """Returns the answers to the present question; "" when nobody votes."""
    now = scene(desk, session) if "blind" in session.opened else Scene()
    if now.found is None or now.asked is None:
        return ""
    return blind_vote.answers_html(now.found, now.person, now.asked)


def _acted(desk: Desk, state: Session, data: dict[str, str]) -> Session:
    """The session after a click inside the tab."""
    run, look = data.get("run", ""), state.look(BlindLook)
    match data.get("act"):
        case "home":
            return state.showing(blind="").looking(BlindLook())
        case "make":
            return state.showing(blind="").looking(BlindLook(making=True))
        case "look":
            return state.showing(blind=run).looking(BlindLook())
        case "cancel":
            desk.workspace.cancel(run)
        case "resume":
            desk.workspace.resume(run)
        case "delete":
            desk.workspace.delete(run)
            return state.showing(blind="").looking(BlindLook())
        case "join":
            test = _test(desk, run)
            person = test.standing(people.assessor(data.get("person", ""))).name
            return state.showing(blind=run).looking(BlindLook(person=person))
        case "vote":
            _test(desk, run).vote(
                people.assessor(data.get("person", "")),
                data.get("ballot", ""),
                data.get("question", ""),
                data.get("choice", ""),
                context={key: data[key][:200] for key in CONTEXT if key in data},
            )
        case "undo" if look.person:
            _test(desk, run).undo(people.assessor(look.person))
        case "stop":
            return state.looking(replace(look, person=""))
        case "unblind":
            desk.workspace.own(run)
            _test(desk, run).reveal(early=True)
            return state.looking(BlindLook())
        case "pairs":
            return state.looking(replace(look, pairs=data.get("value", "all"), page=0))
        case "page" if data.get("value", "").isdigit():
            return state.looking(replace(look, page=int(data["value"])))
        case _:
            pass
    return state


CONTEXT = ("viewport", "zoom", "seconds")
"""What the script says about the moment of a vote; kept with it."""


def _test(desk: Desk, run: str) -> BlindTest:
    return blind_tests.sitting(desk, desk.workspace.run(run)).test


def _home(desk: Desk, session: Session) -> str:
    """The list of tests, or what this tab is for; above the form while one is set up."""
    tests = blind_tests.list_html(desk)
    if session.look(BlindLook).making or not tests:
        back = blind_tests.BACK if tests else ""
        return f"{back}{_WHY}"
    return (
        '<div class="vq-blind-home" data-shown-run=""><div class="vq-blind-bar">'
        "<h2>Blind tests</h2>"
        '<button type="button" class="primary" data-act="make">New test</button></div>'
        f"{tests}</div>"
    )


_WHY = (
    '<div class="vq-blind-why" data-shown-run=""><h2>Ask people, without telling them which'
    " is which</h2><p>Numbers"
    " miss what people see. Two pictures of one prompt and one noise, side and order by lot,"
    " results only at the end, and words that say no more than the votes do.</p></div>"
)


def start_html(desk: Desk, session: Session) -> str:
    """Returns the way to a first compressed model, in the place of the form; "" with one."""
    if desk.variants() or not _setting_up(desk, session):
        return ""
    return (
        '<div class="vq-nothing"><h3>There is no compressed model yet</h3><p>Compress this model'
        " first: people then say which of two pictures is better, without knowing which model drew"
        ' it.</p><div class="vq-actions"><button type="button" class="vq-button" data-act="start">'
        "Open Compress</button></div></div>"
    )


def _setting_up(desk: Desk, session: Session) -> bool:
    """Whether a test is set up: when one asks for it, and before there is any."""
    return "blind" in session.opened and (
        session.look(BlindLook).making
        or (not session.run("blind") and not desk.workspace.runs("blind", 1))
    )


def _setup(desk: Desk, session: Session) -> tuple[str, Any]:
    """Whether the form is there."""
    shown = _setting_up(desk, session) and bool(desk.variants())
    return str(shown), gr.update(visible=shown)


def _models(desk: Desk, session: Session) -> tuple[str, Any]:
    known = desk.variants()
    return repr(known), gr.update(**grown(session, "blind models", known))


def _results(desk: Desk, session: Session) -> tuple[str, Any]:
    """The results of the test on display; drawn once, for they never change."""
    now = scene(desk, session) if "blind" in session.opened else Scene()
    if now.found is None or now.found.reveal is None:
        return "", ""
    run = now.found.run.id
    if session.page.sent.get(RESULTS) == run:
        return run, ""  # what is there stays
    from vqdq.ui import blind_results  # heavy: matplotlib

    try:
        return run, blind_results.results_html(now.found)
    except UserError as error:
        return f"{run} fault", header.fault(error.what, where=error.where, remedy=error.remedy)


def seen_html(desk: Desk, session: Session) -> str:
    """Returns the pairs of the results on display, and who said what; "" before the end."""
    now = scene(desk, session) if "blind" in session.opened else Scene()
    if now.found is None or now.found.reveal is None:
        return ""
    from vqdq.ui import blind_pairs

    look = session.look(BlindLook)
    return blind_pairs.pairs_html(now.found, look.pairs, look.page)


def _enter(state: Session) -> Session:
    return state.entering("blind")
