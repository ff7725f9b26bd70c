"""A model as one file: what its compression wrote; the components it shares stay where they are."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from vqdq.durable import sha256
from vqdq.errors import UserError
from vqdq.jobs.sweep_store import Store


def pack(folder: Path, target: Path, *, leave: Sequence[str] = ()) -> None:
    """Writes the files of a folder but `leave` as an archive that depends on their bytes alone."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = path.relative_to(folder).as_posix()
            if name in leave:
                continue
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)


def unpack(store: Store, name: str, model: str, target: Path) -> Path:
    """Returns the folder of a model that a sweep made, whole: what it shares comes from `model`.

    Raises:
        UserError: it is not there, or a file is not the one that was packed.
    """
    from vqdq.models.sources import locate  # heavy: diffusers

    folder = target / "model"
    folder.mkdir()
    archive = store.fetch(name, target / "model.tar")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    archive.unlink()
    sums = dict(_sums(folder))
    base = locate(model).folder
    for shared in (store.receipt(name) or {}).get("shared", ()):
        place = folder / shared
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((base / shared).read_bytes())
        if sha256(place) != sums.get(shared):
            raise UserError(
                "is not the file that the model was made with.",
                where=str(base / shared),
                remedy="Copy the same model to every computer.",
            )
    return folder


def shared_files(folder: Path, model: str) -> list[str]:
    """Returns the names of files that are byte for byte those of the model it was made from."""
    from vqdq.models.sources import locate  # heavy: diffusers

    base = locate(model).folder
    found: list[str] = []
    for name, digest in _sums(folder):
        with suppress(OSError):
            if sha256(base / name) == digest:
                found.append(name)
    return found


def _sums(folder: Path) -> Generator[tuple[str, str]]:
    from vqdq.models.checkpoint import SUMS  # heavy: diffusers

    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest
