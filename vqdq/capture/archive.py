"""Records on disk: one `.npz` of plain arrays and a JSON header, never a pickle.

A record is written beside its final name and renamed, so a reader sees the whole file or none.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdq.errors import UserError

Array = npt.NDArray[Any]
_HEADER = "header"


def save(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes `header` and `arrays` to `path` in one rename.

    Raises:
        UserError: the folder is missing, full or cannot be written.
    """
    text = json.dumps(dict(header), ensure_ascii=False, allow_nan=False).encode()
    packed: dict[str, Array] = {_HEADER: np.frombuffer(text, dtype=np.uint8), **arrays}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **packed)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"The record cannot be written: {error.strerror}.",
            where=str(path),
            remedy="Choose a folder that exists and has room, and capture again.",
        ) from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, *, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the header and the arrays of a record of the given kind.

    Raises:
        UserError: the file is missing, damaged, of another kind or from another version.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
        header: dict[str, Any] = json.loads(arrays.pop(_HEADER).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            "The record is missing or damaged.", where=str(path), remedy="Capture it again."
        ) from error
    if header.get("kind") != kind or header.get("version") != version:
        raise UserError(
            f"The file holds {header.get('kind')!r} version {header.get('version')!r}, "
            f"not {kind!r} version {version}.",
            where=str(path),
            remedy="Capture it again with this version.",
        )
    return header, arrays
