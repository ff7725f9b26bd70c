"""The same picture from a reference and its compressed variants, with the proof that only the
model differs.

A batch is many sets of such pictures. Models are the outer loop, so that each is loaded once, and
every picture is kept when it is finished: a cancelled batch shows what it has, and goes on there.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any, cast

import torch

from vqdq.jobs import certificate, distance, floor
from vqdq.jobs.batch import Journal
from vqdq.jobs.draw import Drawn, draw
from vqdq.jobs.extras import Measures
from vqdq.jobs.requests import CompareRequest, GenerateRequest
from vqdq.jobs.results import ComparedPicture, CompareResult, Floor, Picture
from vqdq.jobs.warm import Warm, WarmPipelines
from vqdq.progress import Event, Report, silent


def execute(
    request: CompareRequest, folder: Path, *, report: Report = silent, cache: WarmPipelines
) -> CompareResult:
    """Returns pictures and distances, after writing the PNG files into `folder`.

    Raises:
        UserError: a model cannot be opened, pictures of different sizes, or a full disk.
    """
    start = time.perf_counter()
    journal = Journal(folder, request)
    base = cache.get(request.model, device=request.device, report=report)
    measures = Measures(request)
    work = _Work(
        request=request,
        folder=folder,
        journal=journal,
        base=base,
        measures=measures,
        report=report,
    )
    references = [work.reference(place) for place in range(len(request.sets))]
    if request.floor:
        for place, reference in enumerate(references):
            work.floor(place, reference)
    differences: list[str] = []
    for model, name in enumerate(request.variants, start=1):
        warm = cache.get(name, setting=request.setting, device=request.device, report=report)
        differences += _differences(base, warm)
        for place, reference in enumerate(references):
            work.variant(place, model, warm, reference)
    shown = [journal.pictures[0, model] for model in range(len(request.variants) + 1)]
    proof = certificate.certify(shown, differences, type(base.pipeline.scheduler).__name__)
    for place in range(1, len(references)):
        others = [journal.pictures[place, model] for model in range(len(request.variants) + 1)]
        found = certificate.mismatches(others)
        proof["problems"] += [f"Set {place + 1}: {line}" for line in found]
    journal.close()
    return CompareResult(
        prompt=request.prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        reference=shown[0],
        variants=cast(list[ComparedPicture], shown[1:]),
        images={picture["variant"]: picture["image"] for picture in shown},
        floor=journal.floors.get(0),
        sets=len(references),
        certificate=proof,
        notices=list(dict.fromkeys(each.notice for each in references if each.notice)),
        seconds=time.perf_counter() - start,
    )


@dataclasses.dataclass(kw_only=True, slots=True)
class _Work:
    """One comparison under way; `done` counts pictures, those of an earlier start included."""

    request: CompareRequest
    folder: Path
    journal: Journal
    base: Warm
    measures: Measures
    report: Report
    done: int = 0

    def reference(self, place: int) -> Drawn:
        """Returns the reference's picture of a set, drawn or kept from before."""
        with_latents = self.journal.reference(place)
        if with_latents is not None:
            self.done += 1
            return with_latents
        drawn = draw(
            self.base,
            self._asked(place, self.request.model),
            self.folder / self._file(place, 0),
            report=self._share(),
        )
        drawn.picture["extras"] = self.measures.of(drawn.image, self.request.sets[place][0])
        self._keep(place, 0, drawn, drawn.picture)
        return drawn

    def floor(self, place: int, reference: Drawn) -> None:
        """Measures the reference against itself; the exact repeat once in a batch is enough."""
        repeat = place == 0
        if place not in self.journal.floors:
            asked = self._asked(place, self.request.model)
            path = self.folder / f".floor-{place}.png"
            reports = [self._share(ahead) for ahead in range(1 + repeat)]
            found = floor.measure(self.base, asked, reference, path, reports)
            self._keep_floor(place, found)
        self.done += 1 + repeat

    def variant(self, place: int, model: int, warm: Warm, reference: Drawn) -> None:
        """Draws one variant's picture of a set and measures it, unless that was done before."""
        if (place, model) in self.journal.pictures:
            self.done += 1
            return
        path = self.folder / self._file(place, model)
        asked = self._asked(place, self.request.variants[model - 1])
        drawn = draw(warm, asked, path, report=self._share())
        prompt = self.request.sets[place][0]
        drawn.picture["extras"] = self.measures.of(drawn.image, prompt, reference.image)
        self._keep(place, model, drawn, _against(reference, drawn, self.folder))

    @property
    def total(self) -> int:
        """Pictures to draw, those for the floor included."""
        sets = len(self.request.sets)
        return sets * (1 + len(self.request.variants)) + self.request.floor * (sets + 1)

    def _asked(self, place: int, model: str) -> GenerateRequest:
        prompt, seed = self.request.sets[place]
        steps, guidance = self.request.steps, self.request.guidance
        return GenerateRequest(
            model=model, prompt=prompt, seed=seed, steps=steps, guidance=guidance
        )

    def _file(self, place: int, model: int) -> str:
        name = file_names(self.request.variants)[model]
        return f"{place + 1:03d}-{name}" if self.request.is_batch else name

    def _keep(self, place: int, model: int, drawn: Drawn, picture: Picture) -> None:
        self.done += 1
        if self.request.is_batch:
            self.journal.add(place, model, drawn, picture)
        else:
            self.journal.pictures[place, model] = picture

    def _keep_floor(self, place: int, found: Floor) -> None:
        if self.request.is_batch:
            self.journal.add_floor(place, found)
        else:
            self.journal.floors[place] = found

    def _share(self, ahead: int = 0) -> Report:
        """The steps of a picture as a share of all pictures' steps: one bar, one ETA."""
        steps = self.request.steps
        before, total = (self.done + ahead) * steps, self.total * steps

        def on(event: Event) -> None:
            self.report(dataclasses.replace(event, done=before + event.done, total=total))

        return on


def file_names(variants: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the PNG of the reference and of each variant; the names are safe and distinct."""
    names = ["reference.png"]
    for number, variant in enumerate(variants, start=1):
        last = re.split(r"[/\\]", variant.rstrip("/\\"))[-1]
        clean = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-")[:48]
        names.append(f"{number}-{clean or 'variant'}.png")
    return tuple(names)


def _against(reference: Drawn, drawn: Drawn, folder: Path) -> ComparedPicture:
    latents = reference.latents, drawn.latents
    numbers, seen = distance.between(reference.image, drawn.image, latents)
    stem = drawn.picture["image"].removesuffix(".png")
    distance.save_error_map(folder / f"{stem}-error.png", reference.image, drawn.image)
    distance.save_flip_map(folder / f"{stem}-flip.png", seen.error)
    return ComparedPicture(
        **drawn.picture,
        **numbers,
        error_map=f"{stem}-error.png",
        error_scale=distance.ERROR_SCALE,
        flip_map=f"{stem}-flip.png",
    )


def _differences(reference: Warm, other: Warm) -> list[str]:
    """What differs beside the denoiser: such pictures would not show the compression alone."""
    from vqdq.models import pipelines  # heavy: diffusers

    denoiser = pipelines.denoiser(reference.pipeline)[0]
    mine = cast(dict[str, Any], reference.pipeline.components)
    theirs = cast(dict[str, Any], other.pipeline.components)
    found: list[str] = []
    for name, part in mine.items():
        twin = theirs.get(name)
        if name == denoiser or not isinstance(part, torch.nn.Module):
            continue  # the scheduler is part of the certificate
        if not isinstance(twin, torch.nn.Module) or not _equal(part, twin):
            found.append(f"{other.label}: the weights of its {name} differ.")
    return found


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value.cpu(), second[key].cpu()) for key, value in first.items()
    )
