"""The two exceptions that cross rooms: a fault a person can mend, and a job asked to stop.

Everything a user can cause (bad input, a full disk, a missing file) is raised as `UserError`, so
that the command line, the page and Python callers all show the same three things: where, what, what
to do.
"""

from __future__ import annotations


class UserError(Exception):
    """A fault with a place, a fact and a next step; printed without a traceback.

    Args:
        what: the fact, one sentence ("320 inputs cannot be split into vectors of 6.").
        where: the place (a layer name, a file, a setting); may be empty.
        remedy: what is allowed and the next step ("Use 4, 5, 8 or 10."); may be empty.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        step = f" {self.remedy}" if self.remedy else ""
        return f"{place}{self.what}{step}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.remedy))


def _rebuild(kind: type[UserError], what: str, where: str, remedy: str) -> UserError:
    return kind(what, where=where, remedy=remedy)


class Cancelled(Exception):
    """Raised at the next report after a job was asked to stop; leaves nothing half-written."""
