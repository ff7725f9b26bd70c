"""The pictures of a blind test: every one that the protocol needs, drawn, stripped and sealed.

Models outermost, so that each is loaded once. What lies in the run's folder says nothing: names
follow from the protocol's secret seed, there is no metadata, every file is equally long and of one
date. Progress says "picture 3 of 40" and never which model draws it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from vqdq.errors import UserError
from vqdq.jobs import models
from vqdq.jobs.ballots import Picture
from vqdq.jobs.blind import strip
from vqdq.jobs.protocol import Entrant, Protocol
from vqdq.jobs.requests import BlindRequest, GenerateRequest
from vqdq.jobs.run import read_json, write_json
from vqdq.jobs.votes import VoteStore
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Event, Report, silent

if TYPE_CHECKING:
    from PIL.Image import Image

STAGE = "pairs"
_DRAWN = "drawn"
_KEPT = "start.json"


class PairsResult(TypedDict):
    """What was drawn; nothing here tells the models apart.

    Attributes:
        test: digest of the protocol.
        pictures: how many; `width`, `height`: of each, in pixels.
        starts: SHA-256 of the initial latent by seed, the same for every model.
    """

    test: str
    pictures: int
    width: int
    height: int
    starts: dict[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Painted:
    """A picture and the SHA-256 of the initial latent that it was drawn from."""

    image: Image
    start: str


Paint = Callable[[Entrant, Picture, Report], Painted]
"""Draws one picture with the model of an entrant."""


def execute(
    request: BlindRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> PairsResult:
    """Returns what was drawn into `folder`, a run's folder of the workspace with the votes.

    Raises:
        UserError: no such test, a model cannot be opened or does not fit the others, or a full
            disk.
    """
    from vqdq.jobs.draw import draw  # heavy: torch

    with closing(VoteStore.of(folder.parents[1])) as store:
        protocol = store.protocol(request.test)
    steps, guidance = sampling_of(protocol)
    check_models(protocol, lambda name: models.locate(folder.parents[1] / "models", name))

    def paint(entrant: Entrant, picture: Picture, on: Report) -> Painted:
        wanted = GenerateRequest(
            model=entrant.reference,
            prompt=picture.prompt,
            seed=picture.seed,
            steps=steps,
            guidance=guidance,
        )
        path = folder / f"{secrets.token_hex(16)}.png"
        try:
            drawn = draw(cache.get(wanted.model, report=on), wanted, path, report=on)
        finally:
            path.unlink(missing_ok=True)  # it carries its recipe
        return Painted(image=drawn.image, start=drawn.picture["initial_latent_sha256"])

    return draw_all(protocol, folder, paint, report=report)


def check_models(protocol: Protocol, locate: Callable[[str], str]) -> None:
    """Raises `UserError` when a model is no longer the one that the protocol was frozen with."""
    from vqdq.jobs.plan import fingerprint  # heavy: torch

    for entrant in protocol.entrants:
        if fingerprint(locate(entrant.reference)) != entrant.digest:
            raise UserError(
                "has changed since the test was fixed.",
                where=entrant.name,
                remedy="Make a new test; its hash will name the new model.",
            )


def draw_all(
    protocol: Protocol, folder: Path, paint: Paint, *, report: Report = silent
) -> PairsResult:
    """Returns what was drawn; pictures that are there already are not drawn again.

    Raises:
        UserError: a model draws another size, or starts from other noise.
    """
    begin = time.perf_counter()
    pictures = needed(protocol)
    kept = read_json(folder / _KEPT) or {}
    starts = cast("dict[str, str]", kept.get("starts", {}))
    size = tuple(cast("list[int]", kept.get("size", [])))
    for number, picture in enumerate(pictures):
        here = Event(stage=STAGE, done=number, total=len(pictures))

        def on(event: Event, now: Event = here) -> None:
            del event  # its words and its preview would tell which model draws
            report(now)

        on(here)
        path = drawn_path(protocol, folder, picture)
        if path.is_file():
            continue
        entrant = protocol.entrants[picture.entrant]
        painted = paint(entrant, picture, on)
        size = size or painted.image.size
        noise = starts.setdefault(str(picture.seed), painted.start)
        if painted.image.size != size or noise != painted.start:
            what = "other noise" if painted.image.size == size else "another size"
            raise UserError(
                f"its pictures have {what} than those of the other models.",
                where=entrant.name,
                remedy="Only models that differ by compression alone can be compared blind.",
            )
        write_json(folder / _KEPT, {"starts": starts, "size": list(size)})
        strip(painted.image, path)
    report(Event(stage=STAGE, done=len(pictures), total=len(pictures)))
    return PairsResult(
        test=protocol.digest,
        pictures=len(pictures),
        width=size[0],
        height=size[1],
        starts=starts,
        seconds=time.perf_counter() - begin,
    )


def needed(protocol: Protocol) -> tuple[Picture, ...]:
    """Returns every picture that some assessor may be shown, once, by model."""
    everything = len(protocol.prompts) * len(protocol.seeds)
    shown = everything if protocol.mode == "staircase" else protocol.pairs
    cells = {number: range(shown) for number in range(len(protocol.models))}
    if protocol.mode == "preference" and protocol.obvious_model is not None and protocol.obvious:
        number = protocol.entrants.index(protocol.obvious_model)
        last = range(max(0, protocol.pairs - protocol.obvious), protocol.pairs)
        cells.setdefault(number, last)
    return tuple(
        Picture(entrant=number, prompt=prompt, seed=seed)
        for number, places in cells.items()
        for prompt, seed in map(protocol.cell, places)
    )


def drawn_path(protocol: Protocol, folder: Path, picture: Picture) -> Path:
    """Returns where a picture lies in a run's folder: a name that only the server can make."""
    entrant = protocol.entrants.index(protocol.entrants[picture.entrant])  # listed twice: one
    label = f"drawn\0{entrant}\0{picture.seed}\0{picture.prompt}"
    key = bytes.fromhex(protocol.order_seed)
    return folder / _DRAWN / f"{hmac.digest(key, label.encode(), hashlib.sha256)[:16].hex()}.png"


def sampling_of(protocol: Protocol) -> tuple[int, float]:
    """Returns steps and guidance that a protocol fixes.

    Raises:
        UserError: it does not say them.
    """
    values = dict(protocol.drawing)
    try:
        return int(values["steps"]), float(values["guidance"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "does not say steps and guidance.", where="protocol", remedy="Make a new test."
        ) from error
