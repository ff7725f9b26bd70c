"""A batch's pictures as they are finished, one line each: none is lost, and a resume goes on.

`pictures.jsonl` in the run's folder is the truth while it runs, after a stop, and at the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from vqdq.durable import append_line, atomic
from vqdq.errors import UserError
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.results import ComparedPicture, Floor, Picture, PictureSet
from vqdq.places import inside

if TYPE_CHECKING:
    from vqdq.jobs.draw import Drawn

FILE = "pictures.jsonl"


class Journal:
    """What is drawn of a batch.

    Args:
        folder: the run's; what lies there already is not drawn again.
        request: names the sets and the models; 0 is the reference.
    """

    def __init__(self, folder: Path, request: CompareRequest) -> None:
        self._folder = folder
        self.pictures: dict[tuple[int, int], Picture] = {}
        self.floors: dict[int, Floor] = {}
        for line in _lines(folder / FILE):
            place, model = line.get("set"), line.get("model")
            if not isinstance(place, int) or not 0 <= place < len(request.sets):
                continue
            floor, picture = line.get("floor"), line.get("picture")
            if isinstance(floor, dict):
                self.floors[place] = cast(Floor, floor)
            if not isinstance(model, int) or not 0 <= model <= len(request.variants):
                continue
            if not isinstance(picture, dict):
                continue
            with contextlib.suppress(UserError):  # damaged: it is drawn again
                if inside(folder, cast(Picture, picture).get("image")).is_file():
                    self.pictures[place, model] = cast(Picture, picture)

    def add(self, place: int, model: int, drawn: Drawn, picture: Picture) -> None:
        """Keeps a finished picture of set `place`; the latent of a reference, too.

        Raises:
            UserError: the disk is full.
        """
        self.pictures[place, model] = picture
        if model == 0:
            with disk_faults(self._folder), atomic(self._latents(picture)) as file:
                np.save(file, drawn.latents.numpy(), allow_pickle=False)
        self._append({"set": place, "model": model, "picture": picture})

    def add_floor(self, place: int, floor: Floor) -> None:
        """Keeps the floor of set `place`."""
        self.floors[place] = floor
        self._append({"set": place, "floor": floor})

    def reference(self, place: int) -> Drawn | None:
        """Returns the reference's picture of set `place` as it was drawn, or None."""
        from PIL import Image

        from vqdq.jobs.draw import Drawn

        picture = self.pictures.get((place, 0))
        if picture is None or not self._latents(picture).is_file():
            return None
        with Image.open(self._folder / picture["image"]) as file:
            image = file.convert("RGB")
        return Drawn(
            picture=picture,
            image=image,
            latents=torch.from_numpy(np.load(self._latents(picture), allow_pickle=False)),
            notice="",
        )

    def close(self) -> None:
        """Removes what only a resume needs."""
        for (_, model), picture in self.pictures.items():
            if model == 0:
                self._latents(picture).unlink(missing_ok=True)

    def _latents(self, picture: Picture) -> Path:
        return self._folder / f".{picture['image']}.npy"

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values, ensure_ascii=False, allow_nan=False)
        with disk_faults(self._folder):
            append_line(self._folder / FILE, line)


def read(folder: Path, request: CompareRequest) -> list[PictureSet]:
    """Returns every set of a batch in the asked order, with what is drawn of it so far."""
    journal = Journal(folder, request)
    return [
        PictureSet(
            prompt=prompt,
            seed=seed,
            reference=journal.pictures.get((place, 0)),
            variants=[
                cast(ComparedPicture | None, journal.pictures.get((place, model)))
                for model in range(1, len(request.variants) + 1)
            ],
            floor=journal.floors.get(place),
        )
        for place, (prompt, seed) in enumerate(request.sets)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, without a line that was not finished."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            values: object = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found.append(cast(dict[str, Any], values))
    return found
