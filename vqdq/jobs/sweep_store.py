"""Results of a sweep in a folder that every computer sees: any file system that fsspec knows.

    receipts/<kind>/<key>.json          what was made, by whom, how long it took; the truth
    objects/<kind>/<key>-<token>.<ext>  its bytes, whose size and SHA-256 the receipt names

A key is the digest of all that decides a result, so equal work has one name. The bytes are written
first, under a name of their own, the receipt afterwards and only if there is none: what a receipt
names is whole, a process that is killed leaves at most bytes that nobody names, and of two that do
the same work one wins, and the other one says so (`again`).
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import secrets
import shutil
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vqdq.durable import make_folder, sha256, sync_folder
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # FAT and some network folders
RECEIPTS, OBJECTS, AGAIN = "receipts", "objects", "again"


class Store:
    """A shared folder of results.

    Args:
        url: a path, or an address like s3://bucket/folder.

    Raises:
        UserError: the kind of address is not known here, or the folder cannot be made.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            found = cast(Any, fsspec).core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"cannot be opened: {error}",
                where=url,
                remedy="Install what this kind of address needs, or name a folder.",
            ) from error
        self._fs: Any = found[0]
        self._root = str(found[1]).rstrip("/")
        self.folder = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        if self.folder is not None:
            with disk_faults(self.folder):
                make_folder(self.folder)

    def known(self) -> set[str]:
        """Returns the names, "<kind>/<key>", of all results that are there."""
        self._fs.invalidate_cache()
        place = f"{self._root}/{RECEIPTS}"
        with self._faults():
            try:
                files = cast(list[str], self._fs.find(place))
            except FileNotFoundError:
                return set()
        names = (posixpath.relpath(file, place) for file in files)
        return {
            name.removesuffix(".json")
            for name in names
            if name.endswith(".json") and not posixpath.basename(name).startswith(".")
        }

    def receipt(self, name: str) -> dict[str, Any] | None:
        """Returns what is known of a result, or None when it is not there."""
        with self._faults():
            try:
                content = cast(bytes, self._fs.cat_file(self._receipt(name)))
            except FileNotFoundError:
                return None
        return _parsed(content, self._receipt(name))

    def receipts(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns the receipts of results that are there, by name; many at a time on the net."""
        places = {self._receipt(name): name for name in names}
        if not places:
            return {}
        with self._faults():
            found = cast(dict[str, bytes], self._fs.cat(list(places), on_error="omit"))
        return {places[place]: _parsed(content, place) for place, content in found.items()}

    def keep(
        self, name: str, values: Mapping[str, Any], file: Path | None = None
    ) -> Mapping[str, Any]:
        """Returns the receipt that counts: this one, or that of whoever was first.

        Args:
            values: JSON values; `object`, `bytes`, `sha256` and `token` are added.
            file: the bytes of the result, if it has any.
        """
        token = secrets.token_hex(6)
        receipt = {**values, "token": token}
        if file is not None:
            place = f"{OBJECTS}/{name}-{token}{file.suffix}"
            size, digest = file.stat().st_size, sha256(file)
            receipt |= {"object": place, "bytes": size, "sha256": digest}
            self._put(file, f"{self._root}/{place}")
        text = json.dumps(receipt, ensure_ascii=False, allow_nan=False).encode()
        if self._write(self._receipt(name), text, first=True):
            return receipt
        self._write(f"{self._root}/{AGAIN}/{name}-{token}.json", text, first=False)
        found = self.receipt(name)
        return receipt if found is None else found

    def fetch(self, name: str, target: Path) -> Path:
        """Returns `target` after writing the bytes of a result to it.

        Raises:
            UserError: it is not there, or its bytes are not those that were written.
        """
        receipt = self.receipt(name)
        if receipt is None or "object" not in receipt:
            raise UserError("is not there.", where=name, remedy="Run the sweep again.")
        place = f"{self._root}/{receipt['object']}"
        target.unlink(missing_ok=True)
        with self._faults(), suppress(FileNotFoundError):
            self._fs.get_file(place, str(target))
        if not target.is_file() or sha256(target) != receipt["sha256"]:
            raise UserError(
                "the bytes are not those that were written.",
                where=place,
                remedy=f"Remove {self._receipt(name)} and run the sweep again: only this is made"
                " anew.",
            )
        return target

    def again(self) -> list[str]:
        """Returns the names of results that were made more than once, one for each extra time."""
        place = f"{self._root}/{AGAIN}"
        with self._faults():
            try:
                files = cast(list[str], self._fs.find(place))
            except FileNotFoundError:
                return []
        return [posixpath.relpath(file, place).rpartition("-")[0] for file in files]

    def write(self, name: str, content: bytes) -> None:
        """Writes a file for people into the folder, over an older one."""
        self._write(f"{self._root}/{name}", content, first=False)

    def read(self, name: str) -> bytes | None:
        """Returns a file of the folder, or None when it is not there."""
        with self._faults(), suppress(FileNotFoundError):
            return cast(bytes, self._fs.cat_file(f"{self._root}/{name}"))
        return None

    def tidy(self) -> int:
        """Returns how many objects were removed that no receipt names; nobody may be at work."""
        named = {receipt.get("object") for receipt in self.receipts(self.known()).values()}
        with self._faults():
            try:
                files = cast(list[str], self._fs.find(f"{self._root}/{OBJECTS}"))
            except FileNotFoundError:
                return 0
            lost = [f for f in files if posixpath.relpath(f, self._root) not in named]
            for file in lost:
                self._fs.rm_file(file)
        return len(lost)

    def place(self, name: str) -> str:
        """Returns the address of a file in the folder, for people."""
        return f"{self.url.rstrip('/')}/{name}"

    def _receipt(self, name: str) -> str:
        return f"{self._root}/{RECEIPTS}/{name}.json"

    def _put(self, file: Path, place: str) -> None:
        """Copies a file to a name that is its own; it counts only when a receipt names it."""
        if self.folder is None:
            with self._faults():
                self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
                self._fs.put_file(str(file), place)
            return
        target = Path(place)
        with disk_faults(target):
            make_folder(target.parent)
            with file.open("rb") as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
            sync_folder(target.parent)  # before a receipt names it

    def _write(self, place: str, content: bytes, *, first: bool) -> bool:
        """Whether the whole content took its name; with `first`, False if the name was taken."""
        if self.folder is not None:
            return _write_local(Path(place), content, first=first)
        with self._faults():
            self._fs.makedirs(posixpath.dirname(place), exist_ok=True)
            try:
                self._fs.pipe_file(place, content, mode="create" if first else "overwrite")
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _faults(self) -> Generator[None]:
        """Faults of the folder in plain words; a missing file is the caller's business."""
        try:
            with disk_faults(self.url):
                yield
        except FileNotFoundError:
            raise
        except (OSError, ImportError) as error:
            raise UserError(
                f"cannot be reached: {error}.",
                where=self.url,
                remedy="Check the address and the rights; what is done is kept.",
            ) from error


def _parsed(content: bytes, place: str) -> dict[str, Any]:
    try:
        values: object = json.loads(content)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError("is damaged.", where=place, remedy="Remove it; it is made again.")
    return cast(dict[str, Any], values)


def _write_local(path: Path, content: bytes, *, first: bool) -> bool:
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    with disk_faults(path):
        make_folder(path.parent)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not _named(part, path, first=first):
                return False
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    return True


def _named(part: Path, path: Path, *, first: bool) -> bool:
    """Whether a file took its name; with `first`, False if the name was taken."""
    if not first:
        part.replace(path)
        return True
    try:
        os.link(part, path)  # fails where the name is taken, which a rename does not
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        part.replace(path)
    return True
