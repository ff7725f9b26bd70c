"""What may be read on behalf of people who are not at this computer.

Once a login lets others in, a model is "demo", a compressed one of the workspace, the one on the
desk, or lies in a folder that the owner named; a recipe is a shipped one, and no request names a
file. Links do not help: a model's real files have to lie inside as well. Nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from vqdq.errors import UserError
from vqdq.jobs.requests import Request
from vqdq.places import expanded

_MODELS = ("model", "variant", "variants")
_FILES = ("calibration", "sensitivity", "output", "prompt_file")
_MOST_FILES = 2000


class Permitted:
    """The places that the owner opened.

    Args:
        workspace: its folder.
        folders: of models, as named by the owner; what lies anywhere below them is allowed.
        names: models that the owner named himself: on the desk.
        recipes: names of the shipped recipes.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        folders: Iterable[Path] = (),
        names: Iterable[str] = (),
        recipes: Iterable[str] = (),
    ) -> None:
        self._workspace = _real(workspace)
        self._folders = tuple(_real(folder) for folder in folders)
        self._names = frozenset(("demo", *names))
        self._recipes = frozenset((*recipes, "original"))

    def check(self, request: Request) -> None:
        """Raises `UserError` when a request names a model or a file outside of the places."""
        self._walk(request.to_json())

    def check_model(self, reference: str) -> None:
        """Raises `UserError` unless a model may be opened.

        Its folder and each file in it have to lie, links followed, inside one place.
        """
        if reference in self._names or not reference:
            return
        path = Path(reference)
        if len(path.parts) == 1 and reference not in (".", "..", "~"):
            path = self._workspace / "models" / reference
        real = _real(expanded(path))
        places = (*self._folders, self._workspace / "models")
        place = next((place for place in places if real.is_relative_to(place)), None)
        if place is None or real == place or not os.path.exists(real):
            raise self._refused(reference)
        count = 0
        for folder, _, names in os.walk(real):
            for name in names:
                count += 1
                if count > _MOST_FILES or not _real(Path(folder, name)).is_relative_to(place):
                    raise self._refused(reference)

    def _refused(self, reference: str) -> UserError:
        return UserError(
            "is not among the models that may be opened here.",
            where=reference[:80],
            remedy="Who runs the studio names folders of models with --models.",
        )

    def _walk(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key in _MODELS:
                for each in cast(list[Any], value if isinstance(value, list) else [value]):
                    self.check_model(str(each or ""))
            elif key in _FILES and isinstance(value, str) and value:
                if not _real(Path(value)).is_relative_to(self._workspace):
                    raise UserError(
                        "names a file of the computer that the studio runs on.",
                        where=key,
                        remedy="Leave it out; upload prompts instead.",
                    )
            elif key == "made":
                for each in cast(dict[str, str], value).values():
                    self.check_model(each)
            elif key == "axes":
                for axis in cast(list[dict[str, Any]], value):
                    self._axis(axis)
            elif isinstance(value, Mapping):
                self._walk(cast(Mapping[str, Any], value))

    def _axis(self, axis: Mapping[str, Any]) -> None:
        for value in axis["values"]:
            if axis["name"] == "model":
                self.check_model(str(value))
            elif axis["name"] == "recipe" and value not in self._recipes:
                raise UserError(
                    f'"{str(value)[:60]}" is no shipped recipe.',
                    where="recipe",
                    remedy="Choose one.",
                )


def _real(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # a loop of links, a zero byte
        raise UserError("is no path.", where=str(path)[:80]) from error
