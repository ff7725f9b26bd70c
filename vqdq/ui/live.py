"""Regions that follow the store: one clock, one function, and only what changed is sent.

A reload attaches again by itself, because nothing is remembered that is not in the store or in
`Session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import gradio as gr

from vqdq.ui.look import Look

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """What one open page shows; everything else is in the store.

    Attributes:
        compress_run, compare_run, inspect_run: runs on display; "" is the newest.
        inside: True once the Inspect tab was opened; its figures are not drawn before.
        look: what is looked at in the recording on display.
        dismissed: a stopped run that a person has put away.
        chosen: index of the variant on the light table.
        sent: signature of what each region last received.
    """

    compress_run: str = ""
    compare_run: str = ""
    dismissed: str = ""
    chosen: int = 0
    inspect_run: str = ""
    inside: bool = False
    look: Look = field(default_factory=Look)
    sent: Mapping[str, str] = field(default_factory=dict[str, str])

    def showing(self, **changes: Any) -> Session:
        """Returns the session with other things on display."""
        return replace(self, **changes)


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


def markup(render: Callable[[Session], str]) -> Callable[[Session], tuple[str, Any]]:
    """Returns the `render` of a region whose content is HTML: its own signature."""

    def both(session: Session) -> tuple[str, Any]:
        html = render(session)
        return html, html

    return both


def follow(regions: list[Region], session: Session) -> list[Any]:
    """Returns the updates of `regions` in order and, last, the session that remembers what was
    sent.
    """
    sent = dict(session.sent)
    updates: list[Any] = []
    for region in regions:
        signature, update = region.render(session)
        if sent.get(region.name) == signature:
            updates.append(gr.skip())
        else:
            sent[region.name] = signature
            updates.append(update)
    unchanged = sent == session.sent
    return [*updates, gr.skip() if unchanged else replace(session, sent=sent)]


def html(value: str, name: str, **options: Any) -> gr.HTML:
    """Returns an HTML region without Gradio's own text styles, whose `data-act` clicks are
    events.
    """
    return gr.HTML(value, elem_id=name, apply_default_css=False, js_on_load=CLICKS, **options)


def clicked(event: gr.EventData) -> dict[str, str]:
    """Returns the data of the clicked element: {"act": …}, all of them texts."""
    data = getattr(event, "_data", None) or {}
    return {str(key): str(value) for key, value in data.items()}
