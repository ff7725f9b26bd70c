"""What commands check before they start: what fails in here is wrong use (exit code 2)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vqdq.cli.terminal import WrongUse
from vqdq.errors import UserError
from vqdq.places import expanded
from vqdq.progress import Report, silent


@contextmanager
def asking() -> Generator[None]:
    """What fails in here fails before any work: it is wrong use."""
    try:
        yield
    except UserError as error:
        raise WrongUse(error.what, where=error.where, remedy=error.remedy) from error


def check_models(*models: str, report: Report = silent) -> None:
    """Names that are no model are wrong use; what is wrong inside one shows when it is loaded.

    Args:
        report: a model of the hub that is not here yet is downloaded.
    """
    from vqdq.models import sources

    with asking():
        for model in models:
            sources.locate(model, report=report)


def new_path(name: str) -> Path:
    """Returns the absolute path of an output that does not exist yet, in a folder that does."""
    target = expanded(name).absolute()
    if target.exists() or target.is_symlink():
        raise WrongUse(
            "already exists; nothing was changed.",
            where=str(target),
            remedy="Remove it or choose another output.",
        )
    in_a_folder(target)
    return target


def in_a_folder(target: Path) -> None:
    """Raises `WrongUse` when the folder of `target` does not exist."""
    if not target.parent.is_dir():
        raise WrongUse(
            "there is no such folder.", where=str(target.parent), remedy="Make it first."
        )
