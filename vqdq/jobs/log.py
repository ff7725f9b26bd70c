"""What a studio does, as JSON lines that programs read: `log/*.jsonl` of a workspace, rotating.

Each line has a time, an event and, for runs, the run's id. No line holds a prompt or a path, unless
the owner asks for details.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

FOLDER = "log"
MAX_BYTES, KEPT = 1_000_000, 4
_LOGGER = logging.getLogger("vqdq.studio")
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False
_LOGGER.setLevel(logging.INFO)
# a path: anything with a separator in it; a text: anything in quotation marks
_PATHS = re.compile(r"(?:~|\b[A-Za-z]:)?(?:[/\\][^\s/\\\"'”’:;,]+)+[/\\]?|[\w.-]+(?:/[\w.-]+)+")
_TEXTS = re.compile(r"\"[^\"]*\"|“[^”]*”|(?<!\w)'(?:[^']|(?<=\w)'(?=\w))*'(?!\w)")


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, *, details: bool) -> None:
        super().__init__()
        self._details = details

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        private: dict[str, str] = getattr(record, "private", {})
        told = private if self._details else {key: scrub(text) for key, text in private.items()}
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{record.msecs:03.0f}Z",
            "process": os.getpid(),
            "event": record.getMessage(),
            **facts,
            **told,
        }
        return json.dumps({k: v for k, v in line.items() if v is not None}, ensure_ascii=False)


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs a line of the log, never the work that it tells about."""


def open_log(workspace: Path, name: str, *, details: bool = False) -> logging.Handler:
    """Returns the handler that writes `log/<name>.jsonl` from now on; close it with `close_log`.

    Args:
        details: prompts, paths and messages as they are.
    """
    folder = workspace / FOLDER
    folder.mkdir(exist_ok=True)
    handler = _File(
        folder / f"{name}.jsonl", maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8", delay=True
    )
    handler.setFormatter(_Lines(details=details))
    _LOGGER.addHandler(handler)
    return handler


def close_log(handler: logging.Handler) -> None:
    """Ends what `open_log` began."""
    _LOGGER.removeHandler(handler)
    handler.close()


def note(event: str, *, private: dict[str, str] | None = None, **facts: Any) -> None:
    """Writes one line where a log is open.

    Args:
        facts: numbers, ids, states; None is left out.
        private: texts that may hold a prompt or a path; scrubbed unless details were asked for.
    """
    _LOGGER.info(event, extra={"facts": facts, "private": private or {}})


def scrub(text: str) -> str:
    """Returns a message without what it names: quoted words and paths are replaced by marks."""
    return _PATHS.sub("<path>", _TEXTS.sub("<text>", text))
