"""JSON files of a model, read as what strangers made: regular, small, and an object at the top."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from vqdq.errors import UserError
from vqdq.models.parsing import parse_object
from vqdq.models.weights import unreadable

MAX_BYTES = 64_000_000  # the largest real ones, tokenizers, have 11 MB


def read_object(path: Path, *, remedy: str = "Copy the model again.") -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        UserError: it cannot be read, is no file, is too long, or holds no object.
    """
    place = str(path)
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError("is no file.", where=place, remedy=remedy)
        if facts.st_size > MAX_BYTES:
            raise UserError(
                f"has {facts.st_size:,} bytes; {MAX_BYTES:,} are allowed.",
                where=place,
                remedy=remedy,
            )
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise
    except UnicodeDecodeError as error:
        raise UserError("is not JSON.", where=place, remedy=remedy) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_object(text, place, remedy=remedy)
