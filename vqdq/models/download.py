"""Models by hub id: only safetensors and texts are fetched, never a program, and nobody is told.

An id may pin a revision, "owner/name@revision" (a branch, a tag or a commit). What a branch points
at is asked once in the life of a process, so that a job sees one commit from its plan to its end.
"""

from __future__ import annotations

import errno
import functools
import glob
import re
import shutil
from collections.abc import Collection, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.errors import Cancelled, UserError
from vqdq.models.component_files import wanted_files
from vqdq.progress import Event, Report, silent

INDEX = "model_index.json"
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(\w[\w./-]*))?")
_POLL_SECONDS = 0.2
_CHUNK_BYTES = 2**20  # of what is counted, and what a stop waits for; the client's own is 10 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A model of the hub on this disk.

    Attributes:
        folder: in the hub's cache.
        name: "owner/name".
        revision: the commit, 40 hexadecimal digits.
    """

    folder: Path
    name: str
    revision: str


def is_hub_id(reference: str) -> bool:
    """Returns True for "owner/name" and "owner/name@revision"."""
    return _HUB_ID.fullmatch(reference) is not None


def download(
    model: str, *, weights_of: Collection[str] | None = None, report: Report = silent
) -> Snapshot:
    """Returns the snapshot of a hub id, from the cache when there is no connection.

    A download that stops is gone on with by the next call, from the byte it was at.

    Args:
        weights_of: components whose weights are needed; None means all.
        report: stage "download", in bytes; may raise `Cancelled`.

    Raises:
        UserError: offline and not cached, no such model or revision, no permission, no safetensors
            in it, or a full disk.
    """
    from huggingface_hub import constants

    match = _HUB_ID.fullmatch(model)
    assert match is not None, model
    name, asked = match.groups()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, _CHUNK_BYTES)
    with _said_plainly(model):
        revision = _commit(name, asked, constants.HF_HUB_OFFLINE)
        sizes = _sizes(name, revision, constants.HF_HUB_OFFLINE)
        files = wanted_files(sizes, _index(name, revision, sizes, model), weights_of, model)
        folder = _fetch(name, revision, {path: sizes[path] for path in files}, report)
    return Snapshot(folder=folder, name=name, revision=revision)


@functools.lru_cache(maxsize=256)
def _commit(name: str, asked: str | None, offline: bool) -> str:
    from huggingface_hub import HfApi

    return HfApi().resolve_revision(name, revision=asked, local_files_only=offline).resolved


def _sizes(name: str, revision: str, offline: bool) -> Mapping[str, int]:
    """Returns the files of a commit with their bytes; of a cache without a list, what is there."""
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        return {item.path: item.size for item in get_cached_repo_tree(name, revision=revision)}
    except CachedRepoTreeNotFoundError:
        if offline:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
            found = (item for item in folder.rglob("*") if item.is_file())
            return {item.relative_to(folder).as_posix(): item.stat().st_size for item in found}
    tree = HfApi().list_repo_tree(name, recursive=True, revision=revision)
    return {item.path: item.size for item in tree if isinstance(item, RepoFile)}


def _index(name: str, revision: str, sizes: Mapping[str, int], model: str) -> Path:
    from huggingface_hub import hf_hub_download

    if INDEX not in sizes:
        single = next((path for path in sizes if path.endswith(".safetensors")), None)
        raise UserError(
            f"is no diffusers pipeline: there is no {INDEX}.",
            where=model,
            remedy="Use the diffusers version of the model."
            if single is None
            else f"Run `hf download {name} {single}` and name the file that it prints.",
        )
    return Path(hf_hub_download(name, INDEX, revision=revision))


def _fetch(name: str, revision: str, sizes: Mapping[str, int], report: Report) -> Path:
    """Downloads what is not here yet, in a thread of its own, while this one reports.

    The client calls its progress bars from several threads; a report is not made for that.
    """
    from huggingface_hub import try_to_load_from_cache

    total = sum(sizes.values())
    missing = sum(
        size
        for path, size in sizes.items()
        if not isinstance(try_to_load_from_cache(name, path, revision=revision), str)
    )
    counter = _Counter()
    if not missing:
        return _snapshot(name, revision, sizes, counter)
    _require_space(missing)
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="download")
    work = pool.submit(_snapshot, name, revision, sizes, counter)
    try:
        while not work.done():
            done = min(total, total - missing + counter.bytes)
            report(Event(stage="download", done=done, total=total, message=name))
            wait([work], timeout=_POLL_SECONDS)
    finally:
        counter.stopped = True
        pool.shutdown(wait=False)  # a cancelled one ends with the chunk that is under way
    report(Event(stage="download", done=total, total=total, message=name))
    return work.result()


def _snapshot(name: str, revision: str, files: Collection[str], counter: _Counter) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(path) for path in files]
    found = snapshot_download(
        name, revision=revision, allow_patterns=patterns, tqdm_class=counter.bar
    )
    return Path(found)


class _Counter:
    """Counts bytes as they come, and stops the download at the next ones when asked to.

    Attributes:
        bytes: received by now.
        stopped: set to stop.
        bar: the class that the client makes its progress bars of; nothing is drawn.
    """

    def __init__(self) -> None:
        from tqdm.std import tqdm

        counter = self
        self.stopped = False
        self.bars: list[Any] = []

        class Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument, reportUntypedBaseClass]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})
                self.received = 0
                if kwargs.get("unit") == "B":
                    counter.bars.append(self)

            def update(self, n: float | None = 1) -> bool | None:
                self.received += int(n or 0)
                if counter.stopped:
                    raise Cancelled
                return super().update(n)

        self.bar: Any = Bar

    @property
    def bytes(self) -> int:
        # one bar counts what came over the wire, another what was written: the same, or less
        return max((bar.received for bar in self.bars), default=0)


def _require_space(missing: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < missing:
        raise UserError(
            f"the disk has {free:,} bytes free, the download takes {missing:,}.",
            where=str(cache),
            remedy="Free space, or set HF_HOME to a folder on another disk.",
        )


@contextmanager
def _said_plainly(model: str) -> Generator[None, None, None]:
    """Turns the client's faults into `UserError`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    name, _, revision = model.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            "the hub asks you to accept this model's terms first.",
            where=model,
            remedy=f"Accept them at https://huggingface.co/{name}, then run `hf auth login`.",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            "the hub has no such model.",
            where=model,
            remedy="Check the name, or log in with `hf auth login` when it is private.",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f'the model has no branch, tag or commit "{revision}".',
            where=model,
            remedy=f"Look at https://huggingface.co/{name}/commits/main.",
        ) from error
    except HFValidationError as error:
        raise UserError(
            "is no name that the hub takes.",
            where=model,
            remedy='Write "owner/name" or "owner/name@revision".',
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "the disk is full.",
                where=constants.HF_HUB_CACHE,
                remedy="Free space, or set HF_HOME to a folder on another disk; the download "
                "goes on where it stopped.",
            ) from error
        if not isinstance(error, LocalEntryNotFoundError | HTTPError | ConnectionError):
            raise
        raise _unreachable(model, name, pinned) from error
    except (HTTPError, RevisionResolutionError) as error:
        raise _unreachable(model, name, pinned) from error


def _unreachable(model: str, name: str, pinned: str) -> UserError:
    from huggingface_hub import constants

    fact = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    return UserError(
        f"there is no such folder, the model is not (or not wholly) in the cache, and {fact}.",
        where=model,
        remedy=f"Run `hf download {name}{pinned}` where there is a connection and copy the folder "
        'here, or use "demo" or a local folder. What was downloaded is kept.',
    )
