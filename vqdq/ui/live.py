"""Regions that follow the store: one clock, one function, and only what changed is sent.

A reload attaches again by itself, because nothing is remembered that is not in the store or in
`Session`.
"""

from __future__ import annotations

import ast
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, TypeVar, cast

import gradio as gr
from gradio.context import LocalContext

L = TypeVar("L")

PRIVATE: Final[dict[str, Any]] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "queue": False,
}
"""How the page's own events are registered: quick reads and writes of the store, no queue.

Gradio sums up all earlier events with pandas after each queued one: a clock would feed that
forever.
"""
ACTION: Final[dict[str, Any]] = PRIVATE | {"queue": True}
"""How an action of a person is registered: messages to them and `always_last` need the queue."""
CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button && !button.disabled) trigger('click', {...button.dataset});
});
"""
"""Turns a click on any `data-act` element inside a `gr.HTML` into one event that carries its
data.
"""


class Page:
    """One open page, the same for all copies of its session.

    No dataclass: Gradio takes those apart where it describes a state, and a lock cannot be copied.

    Attributes:
        arrived: what its address asks for was taken up; until then there is nothing to send, and a
            late answer for a page that has not arrived would empty what it shows by now.
        sent: signature of what each region last received.
        now: the session as the last event left it; None before the first one.
        lock: held by an event that changes the session; see `changing`.
    """

    def __init__(self, sent: Mapping[str, str] | None = None) -> None:
        self.arrived = False
        self.sent = dict(sent or {})
        self.now: Session | None = None
        self.lock = threading.RLock()

    def __deepcopy__(self, _: object) -> Page:
        """Returns another page: Gradio copies the first session for each page that opens."""
        return Page()


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What one open page shows; everything else is in the store.

    Attributes:
        runs: kind of run -> the one on display; where there is none, the newest is shown.
        dismissed: a stopped run that a person has put away.
        opened: ids of the tabs that were opened; what is costly to draw waits for that.
        looks: what is looked at, a frozen dataclass of each tab's own by its type.
        page: one for all copies of a session, and written in place: an answer that takes long must
            not undo what happened meanwhile.
    """

    runs: Mapping[str, str] = field(default_factory=dict[str, str])
    dismissed: str = ""
    opened: frozenset[str] = frozenset()
    looks: Mapping[type, object] = field(default_factory=dict[type, object])
    page: Page = field(default_factory=Page, compare=False)

    @property
    def latest(self) -> Session:
        """The page's session as it is now; this copy may be from before another event."""
        return self.page.now or self

    def showing(self, **runs: str) -> Session:
        """Returns the session with other runs on display, by kind."""
        return replace(self, runs={**self.runs, **runs})

    def run(self, kind: str) -> str:
        """Returns the id of the run of that kind on display; "" for the newest."""
        return self.runs.get(kind, "")

    def dismissing(self, run: str) -> Session:
        """Returns the session with that stopped run put away; "" brings it back."""
        return replace(self, dismissed=run)

    def entering(self, tab: str) -> Session:
        """Returns the session after a tab was opened."""
        return replace(self, opened=self.opened | {tab})

    def look(self, kind: type[L]) -> L:
        """Returns what a tab looks at; `kind()` until a person chose something."""
        found = self.looks.get(kind)
        return found if isinstance(found, kind) else kind()

    def looking(self, *looks: object) -> Session:
        """Returns the session with other looks, each in the place of its type."""
        return replace(self, looks={**self.looks, **{type(look): look for look in looks}})

    def anew(self) -> Session:
        """Returns the session after another model was put on the desk: its runs are others."""
        self.page.sent.clear()
        return replace(self, runs={}, dismissed="", looks={})

    def arrive(self) -> None:
        """Says that the page just opened: nothing was sent to it yet, and from now on it may be."""
        self.page.sent.clear()
        self.page.arrived = True


@dataclass(frozen=True, slots=True)
class Region:
    """A component whose content is a function of the store and the session.

    Attributes:
        name: unique.
        component: where it is shown.
        render: returns (signature, update); the update is sent when the signature is new.
    """

    name: str
    component: Any
    render: Callable[[Session], tuple[str, Any]]


class Wire(NamedTuple):
    """An event of a tab, for page.py to connect; afterwards it brings the regions up to date."""

    trigger: Any
    function: Any
    inputs: list[Any]
    outputs: list[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a tab, or a part of one, gives to the page.

    Attributes:
        regions: follow the store.
        wires: events that change the session.
        doors: components whose `data-act` clicks are the page's own (`page.ACTS`): "open" shows a
            run in its tab, "cancel", "resume", "delete" and "reveal" act on it.
    """

    regions: list[Region] = field(default_factory=list[Region])
    wires: list[Wire] = field(default_factory=list[Wire])
    doors: list[Any] = field(default_factory=list[Any])

    def __add__(self, other: Part) -> Part:
        return Part(
            regions=[*self.regions, *other.regions],
            wires=[*self.wires, *other.wires],
            doors=[*self.doors, *other.doors],
        )


def changing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns an event's function that may change the session, its first argument.

    Events of one page overlap: a tab that opens, a press in it. Each would write the session that
    it had read, and undo the other. So they take turns, each with what the last one left.
    """

    @functools.wraps(function)
    def one(state: Session, *values: Any) -> Any:
        with state.page.lock:
            answer = function(state.latest, *values)
            parts = cast(Sequence[Any], answer if isinstance(answer, list | tuple) else [answer])
            left = next((part for part in parts if isinstance(part, Session)), None)
            state.page.now = left or state.page.now
        return answer

    return one


def markup(render: Callable[[Session], str]) -> Callable[[Session], tuple[str, Any]]:
    """Returns the `render` of a region whose content is HTML: its own signature."""

    def both(session: Session) -> tuple[str, Any]:
        html = render(session)
        return html, html

    return both


def follow(regions: list[Region], session: Session) -> list[Any]:
    """Returns the updates of `regions` in order; the session remembers what was sent."""
    updates: list[Any] = []
    fresh: dict[str, str] = {}
    for region in regions:
        signature, update = region.render(session)
        if session.page.sent.get(region.name) == signature:
            updates.append(gr.skip())
        else:
            fresh[region.name] = signature
            updates.append(update)
    session.page.sent.update(fresh)  # at the end: a render that fails leaves nothing half sent
    return updates


def changed(regions: list[Region], session: Session) -> bool:
    """Returns True when `follow` would send something."""
    return any(session.page.sent.get(each.name) != each.render(session)[0] for each in regions)


def grown(session: Session, region: str, known: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Returns what to change in a list of models whose region has `repr(known)` as signature.

    What a person chose stays chosen when models are added; when one went away, or there was none
    yet, the first is chosen.
    """
    before = cast(list[tuple[str, str]], ast.literal_eval(session.page.sent.get(region) or "()"))
    if before and {name for _, name in before} <= {name for _, name in known}:
        return {"choices": list(known)}
    return {"choices": list(known), "value": [known[0][1]] if known else []}


def page_key() -> str:
    """Returns what tells the page whose event this is from other pages; "" outside of an event."""
    request = LocalContext.request.get(None)
    return str(getattr(request, "session_hash", "") or "")


def html(value: str, name: str, **options: Any) -> gr.HTML:
    """Returns an HTML region without Gradio's own text styles, whose `data-act` clicks are
    events.
    """
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=CLICKS, **options)


def clicked(event: gr.EventData) -> dict[str, str]:
    """Returns the data of the clicked element: {"act": …}, all of them texts."""
    data = getattr(event, "_data", None) or {}
    return {str(key): str(value) for key, value in data.items()}
