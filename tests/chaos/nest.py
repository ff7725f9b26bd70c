"""Processes that can be killed cheaply: forked from one that has imported all and run nothing.

A child counts its own operations (files opened, renamed, removed; reports of progress) and may be
told to end itself by SIGKILL at the n-th, so that every point can be hit and hit again; or it is
killed from outside after a time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# removal of what is already thrown away (shutil.rmtree) is one point for each file: enough
OPERATIONS = frozenset(
    {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
)
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended: killed, or with a value, or with the text of what it raised."""

    killed: bool
    code: int = 0
    value: Any = None
    fault: str = ""
    points: int = 0


class Points:
    """Counts operations below a folder; kills this process at the n-th."""

    def __init__(self, place: str, fatal: int, since: str) -> None:
        self.count = 0
        self._place = place
        self._fatal = fatal
        self._since = since
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]) == self._since:
            self._since = ""
        if event in OPERATIONS and str(arguments[0]).startswith(self._place):
            self.passed()

    def passed(self, _event: object = None) -> None:
        """One more operation."""
        if self._since:
            return
        self.count += 1
        if self.count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def start_nest() -> None:
    """Imports what all children need, once, in the process that they are forked from."""
    _CONTEXT.set_forkserver_preload(["tests.chaos.work"])


def run(
    function: Callable[..., Any],
    *arguments: Any,
    place: str,
    fatal: int = 0,
    since: str = "",
    after_seconds: float | None = None,
    patience_seconds: float = 300.0,
) -> Ended:
    """Returns how `function(points, *arguments)` ended in a process of its own.

    Args:
        place: folder whose operations count.
        fatal: the operation at which it kills itself; 0 never.
        since: path whose naming by a rename is the first operation that counts; "": all do.
        after_seconds: from the moment it begins to work, when it is killed from outside.
    """
    near, far = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(far, function, arguments, place, fatal, since))
    process.start()
    far.close()
    with near:
        answer = _listen(near, process, after_seconds, patience_seconds)
    process.join()
    code = process.exitcode
    process.close()
    return Ended(killed=code == -signal.SIGKILL, code=code, **answer)


def _listen(near: Any, process: Any, after: float | None, patience: float) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    deadline = time.monotonic() + patience
    told: list[Any] = []
    try:
        assert near.recv() == "begun"
        if after is not None:
            deadline = time.monotonic() + after
        while near.poll(max(0.0, deadline - time.monotonic())):
            kind, value = near.recv()
            if kind == "told":
                told.append(value)
            else:
                answer = value
        process.kill()
        assert after is not None, "a child hung"
        while near.poll(0.5):
            kind, value = near.recv()
            told += [value] if kind == "told" else []
    except EOFError:
        pass
    return answer | ({"value": told} if told and "value" not in answer else {})


def _child(far: Any, function: Any, arguments: Any, place: str, fatal: int, since: str) -> None:
    points = Points(place, fatal, since)
    far.send("begun")
    try:
        value = function(points, *arguments, tell=lambda value: far.send(("told", value)))
        far.send(("end", {"value": value, "points": points.count}))
    except BaseException as error:  # told to the parent
        text = "".join(traceback.format_exception(error))
        far.send(("end", {"fault": text, "points": points.count}))
