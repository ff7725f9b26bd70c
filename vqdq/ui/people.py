"""Who is at the other end: the person behind the event that runs now, and what people may do.

Gradio runs every event of a page in a context that knows its request. The store asks here
(`Ledger.person`), so that no tab can forget to.
"""

from __future__ import annotations

from gradio.context import LocalContext

from vqdq.errors import UserError

_NOBODY = "\0"  # no name of a person holds it


def current() -> str | None:
    """Returns who caused the event that runs now; None without a login or outside of an event."""
    request = LocalContext.request.get(None)
    name = None if request is None else getattr(request, "username", None)
    return name if isinstance(name, str) and name else None


def visitor() -> str:
    """Returns who caused the event that runs now; outside of an event, somebody without any runs.

    What a page shows before anybody asked for it must be nobody's.
    """
    return current() or _NOBODY


def assessor(asked: str) -> str:
    """Returns under which name somebody votes: their own, where there is a login."""
    return current() or asked


def refuse_visitors(what: str) -> None:
    """Raises `UserError` where a login says that this may be another computer.

    Args:
        what: what only makes sense at the computer that the studio runs on.
    """
    if current() is not None:
        raise UserError(
            f"{what} works only at the computer that the studio runs on.",
            remedy="Ask who runs it.",
        )
