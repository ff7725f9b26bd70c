"""Links in a model's folder: what they reach is read, and may be published with the result."""

from __future__ import annotations

from pathlib import Path

from vqdq.errors import UserError


def require_inside(path: Path, folder: Path) -> None:
    """Raises `UserError` for a file that a link takes out of its model's folder.

    Texts are copied as they are into what is made of a model, so a link to a private file would
    carry that along. In the hub's cache every file is a link into the same repository's blobs.

    Args:
        path: below `folder`.
        folder: of the whole model.
    """
    try:
        target, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a RuntimeError until Python 3.12
        raise UserError(
            "is a link that leads back to itself.", where=str(path), remedy="Remove the link."
        ) from error
    if home.parent.name == "snapshots":
        home = home.parents[1]
    if not target.is_relative_to(home):
        raise UserError(
            f"is a link out of the model's folder, to {target}.",
            where=str(path),
            remedy="Replace the link by the file if it belongs to the model.",
        )
