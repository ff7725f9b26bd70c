"""Records on disk: one `.npz` of plain arrays and a JSON header, never a pickle.

A record is written beside its final name and renamed, so a reader sees the whole file or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import zipfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from vqdq.durable import atomic
from vqdq.errors import UserError

Array = npt.NDArray[Any]
_HEADER = "header"
_MOST_BYTES = 1 << 29  # of a record; a larger one is not packed to an eighth
_MOST_MEMBERS = 100_000
_MOST_HEADER = 10_000  # bytes of text that numpy evaluates as a literal
_LEVEL = 1  # of the compression: 4 times as fast as the usual 6, and 6 % larger
_SMALL = 256  # values of an array that are looked at before it is compressed
_DAMAGE = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    RecursionError,
)  # of what is read
R = TypeVar("R")


def save(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes `header` and `arrays` to `path` in one rename.

    Raises:
        UserError: the folder is missing, full or cannot be written.
    """
    text = json.dumps(dict(header), ensure_ascii=False, allow_nan=False).encode()
    packed: dict[str, Array] = {_HEADER: np.frombuffer(text, dtype=np.uint8), **arrays}
    try:
        with atomic(path) as file, zipfile.ZipFile(file, "w", compresslevel=_LEVEL) as archive:
            for name, array in packed.items():
                noise = _is_noise(array)
                archive.compression = zipfile.ZIP_STORED if noise else zipfile.ZIP_DEFLATED
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.asarray(array), allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"The record cannot be written: {error.strerror}.",
            where=str(path),
            remedy="Choose a folder that exists and has room, and capture again.",
        ) from error


def _is_noise(array: Array) -> bool:
    """Whether full float32 precision is in use: such numbers take long and hardly get shorter."""
    if array.dtype != np.float32 or array.size < _SMALL:
        return False
    some = np.ascontiguousarray(array.reshape(-1)[:: max(1, array.size // _SMALL)])
    return bool((some.view(np.uint32) & np.uint32(0xFFF)).any())


@contextlib.contextmanager
def reading(path: Path) -> Generator[None, None, None]:
    """Tells a record that lacks a part, or holds one of another shape, as a damaged one."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(path) from error


def load(path: Path, *, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the header and the arrays of a record of the given kind.

    Raises:
        UserError: the file is missing, damaged, of another kind or from another version.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            _refuse_bomb(path, cast(zipfile.ZipFile, archive.zip))
            header: dict[str, Any] = json.loads(archive[_HEADER].tobytes())
            known = header.get("kind") == kind and header.get("version") == version
            names = [name for name in archive.files if name != _HEADER and known]
            arrays = {name: np.asarray(archive[name]) for name in names}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # zipfile, its decoders and NumPy's parser raise a dozen kinds
        raise _damaged(path) from error
    if not known:
        raise _refused(path, header, kind, version)
    return header, arrays


def _refuse_bomb(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses a file that would fill the memory: what it unpacks to is bounded before it does.

    A member is unpacked up to the size that it states, and an array may not state a larger one.
    """
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if len(members) > _MOST_MEMBERS or unpacked > max(_MOST_BYTES, 8 * path.stat().st_size):
        raise UserError(
            f"The record would unpack to {unpacked / 1e9:.3g} GB.",
            where=str(path),
            remedy="It is damaged or was not made by this program: capture it again.",
        )
    for member in members:
        with archive.open(member) as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file, max_header_size=_MOST_HEADER)
        if math.prod(shape) * dtype.itemsize > member.file_size or dtype.hasobject:
            raise ValueError(member.filename)


def _damaged(path: Path) -> UserError:
    return UserError(
        "The record is missing or damaged.", where=str(path), remedy="Capture it again."
    )


def _refused(path: Path, header: Mapping[str, Any], kind: str, version: int) -> UserError:
    found = header.get("version")
    if header.get("kind") != kind:
        what = f"The file holds {header.get('kind')!r}, not {kind!r}."
    elif isinstance(found, int) and found < version:
        what = f"The record is of an earlier form ({found}, now {version}) and lacks what is shown."
    else:
        what = f"The record has the form {found!r}, this program reads {version}."
    return UserError(what, where=str(path), remedy="Capture it again with this version.")


def flatten(record: object, place: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the plain fields of a frozen record as JSON values, and its arrays under `place`."""
    entry: dict[str, Any] = {}
    arrays: dict[str, Array] = {}
    for field in dataclasses.fields(cast(Any, record)):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{place}/{field.name}"] = value
        else:
            entry[field.name] = value
    return entry, arrays


def restore(kind: type[R], entry: Mapping[str, Any], arrays: Mapping[str, Array], place: str) -> R:
    """Returns the record that `flatten` took apart; lists become tuples again."""
    values: dict[str, Any] = {
        key: tuple(cast(list[Any], value)) if isinstance(value, list) else value
        for key, value in entry.items()
    }
    for field in dataclasses.fields(cast(Any, kind)):
        name = f"{place}/{field.name}"
        if name in arrays:
            values[field.name] = arrays[name]
    return kind(**values)


def shortened(array: Array) -> Array:
    """Returns float32 numbers with 11 of their 23 bits of mantissa, others as they are.

    The relative error is below 2^-11 and the file a third smaller.
    """
    if array.dtype != np.float32:
        return array
    return (np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)


def plain_times(times: tuple[float, ...]) -> list[float | None]:
    """Returns timesteps as JSON has them: an unknown one is null."""
    return [None if math.isnan(time) else time for time in times]


def real_times(times: list[float | None]) -> tuple[float, ...]:
    """Returns timesteps that `plain_times` wrote."""
    return tuple(math.nan if time is None else float(time) for time in times)
