"""Reading back what a picture was drawn from: the text chunk "vqdq" of its PNG.

A picture comes from anywhere, so nothing of it is trusted: the chunks are walked without decoding
a pixel, nothing is unpacked, lengths are checked before anything is read, and every value passes
the checks of a request. What is wrong is said in words a person can act on.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from vqdq.errors import UserError
from vqdq.jobs.draw import CHUNK
from vqdq.jobs.inputs import prompt_files
from vqdq.jobs.requests import check_sampling
from vqdq.recipe import Recipe

MAX_FILE_BYTES = 64_000_000
MAX_CHUNK_BYTES = 1_000_000
MAX_CHUNKS = 100_000
MAX_DEPTH = 40  # of nested JSON; a recipe needs six
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"iTXt", b"zTXt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a picture says it was drawn from.

    Attributes:
        model: as the request named it: "demo", a folder, a hub id, a name in a workspace.
        base: what a compressed model was made of, or "" when the picture does not say.
        recipe_name: of the compressed model; "" for an original.
        recipe: whole, where the picture carries it; digest: of it, or "".
        versions: package -> version that drew it.
    """

    model: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    base: str = ""
    recipe_name: str = ""
    recipe: Recipe | None = None
    digest: str = ""
    versions: tuple[tuple[str, str], ...] = ()


def read(path: str | Path) -> Provenance:
    """Returns what the PNG in `path` was drawn from.

    Raises:
        UserError: not a PNG, damaged, too large, or without a recipe of this program.
    """
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            text = _text(file, Path(path).stat().st_size, name)
    except OSError as error:
        raise UserError("cannot be read.", where=name, remedy=f"{error.strerror}.") from error
    return _provenance(_json(text, name), name)


def _text(file: BinaryIO, size: int, name: str) -> str:
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"has {size / 1e6:.0f} MB.",
            where=name,
            remedy=f"A picture of this program has less than {MAX_FILE_BYTES / 1e6:.0f} MB.",
        )
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise UserError(
            "is not a PNG.", where=name, remedy="Choose a picture that this program saved."
        )
    for kind, content in _chunks(file, size, name):
        if kind == b"IHDR" and len(content) != 13:
            raise _damaged(name)
        if kind not in _TEXTS:
            continue
        keyword, zero, rest = content.partition(b"\0")
        if not zero or keyword != CHUNK.encode():
            continue
        return _decoded(kind, rest, name)
    raise UserError(
        "carries no recipe.",
        where=name,
        remedy="It was not drawn by this program, or another one saved it anew without it.",
    )


def _chunks(file: BinaryIO, size: int, name: str) -> Iterator[tuple[bytes, bytes]]:
    """The kind of every chunk and, of text chunks, the content; pixels are passed over."""
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise _damaged(name)
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if file.tell() + length + 4 > size:
            raise _damaged(name)
        if kind not in _TEXTS and kind != b"IHDR":
            file.seek(length + 4, 1)
            continue
        if length > MAX_CHUNK_BYTES:
            raise UserError(
                "holds a text that is too long.", where=name, remedy="It cannot be a recipe."
            )
        content = file.read(length)
        if zlib.crc32(kind + content) != int.from_bytes(file.read(4)):
            raise _damaged(name)
        yield kind, content
    raise _damaged(name)


def _decoded(kind: bytes, rest: bytes, name: str) -> str:
    """The text of a chunk, which lies plain in the file: nothing compressed is unpacked."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt" or rest[:1] != b"\0":
        raise UserError(
            "holds a packed recipe.", where=name, remedy="Use the file that this program saved."
        )
    parts = rest[2:].split(b"\0", 2)  # behind flag and method: language, keyword, text
    if len(parts) < 3:
        raise _damaged(name)
    try:
        return parts[2].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(name) from error


def _json(text: str, name: str) -> Mapping[str, Any]:
    depth = deepest = 0
    for mark in text:  # brackets inside texts count too: that only makes the limit stricter
        depth += (mark in "[{") - (mark in "]}")
        deepest = max(deepest, depth)
    try:
        values: object = json.loads(text) if deepest <= MAX_DEPTH else None
    except (ValueError, RecursionError):  # a number of a million digits is a ValueError
        values = None
    if not isinstance(values, dict):
        raise UserError(
            "carries a recipe that cannot be read.",
            where=name,
            remedy="Use the file that this program saved.",
        )
    return cast(dict[str, Any], values)


def _provenance(values: Mapping[str, Any], name: str) -> Provenance:
    prompt, seed = values.get("prompt"), values.get("seed")
    steps, guidance = values.get("steps"), values.get("guidance")
    try:
        check_sampling(prompt, seed, steps, guidance)
        recipe = _recipe(values.get("compression"))
    except UserError as error:
        raise UserError(
            f"carries settings that cannot be drawn: {error.what}",
            where=name,
            remedy=error.remedy,
        ) from error
    versions = values.get("versions")
    known = cast(dict[str, Any], versions) if isinstance(versions, dict) else {}
    return Provenance(
        model=_word(values.get("model")),
        prompt=cast(str, prompt),
        seed=cast(int, seed),
        steps=cast(int, steps),
        guidance=float(cast(float, guidance)),
        base=_word(values.get("base")),
        recipe_name=_word(values.get("recipe")),
        recipe=recipe,
        digest=recipe.digest if recipe is not None else _word(values.get("recipe_digest")),
        versions=tuple((_word(key), _word(value)) for key, value in list(known.items())[:40]),
    )


def _recipe(values: object) -> Recipe | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise UserError("its recipe is no recipe.", remedy="Use the file that this program saved.")
    try:
        recipe = Recipe.from_json(cast(dict[str, Any], values))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(
            "its recipe is no recipe.", remedy="Use the file that this program saved."
        ) from error
    if prompt_files(recipe):
        raise UserError(
            "its recipe names a file of a computer.", remedy="Choose the recipe on the page."
        )
    return recipe


def _word(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(mark for mark in text[:400] if mark.isprintable())


def _damaged(name: str) -> UserError:
    return UserError(
        "is a damaged PNG.", where=name, remedy="Copy it again from where it was saved."
    )
