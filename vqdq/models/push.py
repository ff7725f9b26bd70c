"""A compressed folder on the hub: checked, sent in one commit, and compared with what arrived."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.durable import sha256
from vqdq.errors import UserError
from vqdq.models.checkpoint import SUMS, packed_config, verify
from vqdq.models.sources import locate
from vqdq.progress import Event, Report, silent

CARD = "README.md"
_PLACEHOLDER = "path/to/this/folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """What will be sent.

    Attributes:
        folder: where it lies.
        name: "owner/name".
        files: path in the repository -> bytes.
        texts: files that are sent otherwise than they lie there: the card, which names the model,
            and the checksums of it.
    """

    folder: Path
    name: str
    files: Mapping[str, int]
    texts: Mapping[str, bytes]

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What the hub now has.

    Attributes:
        url: of the model; commit: 40 hexadecimal digits.
        private: whether only its owner sees it.
    """

    url: str
    commit: str
    private: bool


def parcel(
    folder: str | Path, name: str, *, base_model: str | None = None, report: Report = silent
) -> Parcel:
    """Returns what `push` will send, after every checksum and every layer was checked.

    Args:
        base_model: hub id of the model that was compressed, for the card; what the card says stays.
        report: the stages of `verify`.

    Raises:
        UserError: no compressed folder, a damaged one, or a name that no hub takes.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    source = locate(folder)
    packed_config(source)
    try:
        for repo in (name, base_model):
            if repo is not None:
                validate_repo_id(repo)
                if repo.count("/") != 1:
                    raise HFValidationError
    except HFValidationError as error:
        raise UserError(
            "is no name of a model on the hub.",
            where=name if base_model is None else f"{name}, {base_model}",
            remedy='Write "owner/name": letters, digits, ".", "-" and "_".',
        ) from error
    found = verify(source.folder, report=report)
    if not found.ok:
        raise UserError(
            f"is damaged and was not sent: {found.problems[0]}",
            where=str(source.folder),
            remedy="See `vqdq verify`; copy the folder again or compress once more.",
        )
    lines = (source.folder / SUMS).read_text("utf-8").splitlines()
    names = [line.partition("  ")[2] for line in lines]
    card = _card((source.folder / CARD).read_text("utf-8"), name, base_model)
    sums = "".join(
        f"{hashlib.sha256(card).hexdigest() if path == CARD else line.partition('  ')[0]}  {path}\n"
        for line, path in zip(lines, names, strict=True)
    )
    texts = {CARD: card, SUMS: sums.encode()}
    files = {path: (source.folder / path).stat().st_size for path in names}
    files |= {path: len(text) for path, text in texts.items()}
    return Parcel(folder=source.folder, name=name, files=files, texts=texts)


def push(
    sent: Parcel, *, private: bool = False, revision: str | None = None, report: Report = silent
) -> Pushed:
    """Sends a parcel as one commit, and compares what the hub has afterwards.

    Weights are uploaded one file after the other; the commit that makes them visible comes last, so
    that a push that stops leaves nothing half-finished, and the next one goes on with what is
    missing.

    Args:
        private: for a repository that is created now; one that is public is refused then.
        revision: a branch, created if it does not exist; None means "main".
        report: stage "upload", in bytes; may raise `Cancelled`.

    Raises:
        UserError: no token, no permission, no connection, a public repository that was to be
            private, or other content on the hub than was sent.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils import disable_progress_bars, get_token

    constants.HF_HUB_DISABLE_TELEMETRY = True
    if get_token() is None:
        raise UserError(
            "nobody is logged in at the hub.",
            where=sent.name,
            remedy="Run `hf auth login`, or set HF_TOKEN to a token that may write.",
        )
    disable_progress_bars()
    api, done = HfApi(), 0
    with _said_plainly(sent.name):
        address = str(api.create_repo(sent.name, private=private, exist_ok=True))
        hidden = bool(api.model_info(sent.name).private)
        if private and not hidden:
            raise UserError(
                "exists and is public; nothing was sent.",
                where=sent.name,
                remedy="Choose another name, or make the repository private first.",
            )
        if revision is not None:
            api.create_branch(sent.name, branch=revision, exist_ok=True)
        operations: list[Any] = []
        for path, size in sent.files.items():
            report(Event(stage="upload", done=done, total=sent.bytes, message=path))
            content = sent.texts.get(path, sent.folder / path)
            operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            api.preupload_lfs_files(sent.name, [operation], revision=revision)
            operations.append(operation)
            done += size
        made = api.create_commit(
            sent.name,
            operations,
            commit_message="Upload a model compressed with VQDQ",
            revision=revision,
        )
        _compare(api, sent, made.oid)
    report(Event(stage="upload", done=sent.bytes, total=sent.bytes, message=sent.name))
    return Pushed(url=address, commit=made.oid, private=hidden)


def _card(text: str, name: str, base_model: str | None) -> bytes:
    """Returns the card with the model's own name, and what the hub needs to file it."""
    from huggingface_hub import ModelCard

    card = ModelCard(text.replace(_PLACEHOLDER, name), ignore_metadata_errors=True)
    data: Any = card.data
    data.library_name, data.pipeline_tag = "diffusers", "text-to-image"
    data.base_model = data.base_model or base_model
    if data.base_model is not None:
        data.base_model_relation = "quantized"
    elif hasattr(data, "base_model_relation"):
        del data.base_model_relation  # the hub refuses a relation to nothing
    data.tags = list(dict.fromkeys([*(data.tags or []), "vqdq"]))
    return str(card).encode()


def _compare(api: Any, sent: Parcel, commit: str) -> None:
    """Raises `UserError` unless the hub has every file with the bytes that were sent."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(sent.name, recursive=True, revision=commit)
    there = {item.path: item for item in tree if isinstance(item, RepoFile)}
    for path, size in sent.files.items():
        found = there.get(path)
        same = found is not None and found.size == size
        if same and found is not None and found.lfs is not None:
            text = sent.texts.get(path)
            mine = hashlib.sha256(text).hexdigest() if text else sha256(sent.folder / path)
            same = found.lfs.sha256 == mine
        elif same and found is not None:
            content = sent.texts.get(path) or (sent.folder / path).read_bytes()
            same = found.blob_id == hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
        if not same:
            raise UserError(
                f"the hub has another {path} than was sent.",
                where=f"{sent.name}@{commit}",
                remedy="Push again; do not use this commit.",
            )


@contextmanager
def _said_plainly(name: str) -> Generator[None, None, None]:
    """Turns the client's faults into `UserError`."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise UserError(
                "the hub does not let this token write there.",
                where=name,
                remedy="Use `hf auth login` with a token that may write, or a name of your own.",
            ) from error
        raise UserError(
            f"the hub answers {status}: {error.server_message or 'no reason'}.",
            where=name,
            remedy="Push again later: what was uploaded is not sent twice.",
        ) from error
    except (HTTPError, ConnectionError) as error:
        offline = constants.HF_HUB_OFFLINE
        raise UserError(
            "HF_HUB_OFFLINE is set." if offline else "the hub cannot be reached.",
            where=name,
            remedy="Unset it and push again."
            if offline
            else "Push again with a connection: what was uploaded is not sent twice.",
        ) from error
